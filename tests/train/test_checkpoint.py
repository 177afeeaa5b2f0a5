"""A checkpoint comes back as it was, or not at all."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from espalier.errors import DataError
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.types import FLOAT, Fixed, Format, TensorType, Value
from espalier.train.calibrate import initial_state
from espalier.train.checkpoint import Checkpoint, EpochLog, Position
from espalier.train.config import Quantise, TrainConfig
from espalier.train.optimise import Update

LOG = EpochLog(1, 0.1, 0.5, 0.75, 0.7, {"f.w": 3}, {"f": 2})


def checkpoint(update: Update = Update.BUFFERED) -> Checkpoint:
    is_float = update is Update.FLOAT
    word: Format = FLOAT if is_float else Fixed.of(8, 6)
    x, y = Value("x", TensorType((4,), word)), Value("f", TensorType((3,), word))
    w, b = Value("f.w", TensorType((3, 4), word)), Value("f.b", TensorType((3,), word))
    graph = Graph("g", (x,), (w, b), (ops.Linear(y, x, w, b),), (y,))
    random = np.random.RandomState(1)
    state = initial_state(graph, {"f.w": random.randn(3, 4) / 2, "f.b": random.randn(3) / 2}, update)
    formats: dict[str, Format] = {} if is_float else {"f.w.grad": Fixed.of(32, 10), "f.grad": Fixed.of(16, 14)}
    config = TrainConfig(quantise=None if is_float else Quantise(update=update))
    return Checkpoint(graph, formats, state, config, Position(1, 2, 0.1, 7.0), (LOG,))


@pytest.mark.parametrize("update", list(Update))
def test_comes_back_as_it_was(tmp_path: Path, update: Update) -> None:
    path, saved = tmp_path / "c.safetensors", checkpoint(update)
    saved.save(path)
    found = Checkpoint.load(path)
    for field in ("graph", "gradient_formats", "config", "position", "log"):
        assert getattr(found, field) == getattr(saved, field)
    assert set(found.state) == set(saved.state)
    for name, array in saved.state.items():
        assert np.array_equal(found.state[name], array) and found.state[name].dtype == array.dtype, name
    assert set(found.weights) == set(found.live) == {"f.w", "f.b"}
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_stored_types(tmp_path: Path) -> None:
    checkpoint().save(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", framework="numpy") as file:
        kinds = {name: str(file.get_tensor(name).dtype) for name in ("f.w", "f.w.master", "f.w.momentum", "f.w.live")}
    assert kinds == {"f.w": "int16", "f.w.master": "int32", "f.w.momentum": "int32", "f.w.live": "bool"}


def test_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"^Checkpoint .*c.safetensors cannot be written \(No space left on device\): "
                                        r"what was there before is intact; make room or choose another place$"):
        replace(checkpoint(), position=Position(9)).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.safetensors"]


def test_missing_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^There is no checkpoint .*none.safetensors: train one first, or give the "
                                        r"right path$"):
        Checkpoint.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("length", [0, 7, 100, 1500, -1])
def test_truncated_wrong(tmp_path: Path, length: int) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"^Checkpoint .*c.safetensors is damaged or truncated \([^\n]*\): train again "
                                        r"or use a copy$"):
        Checkpoint.load(path)


@pytest.mark.parametrize("update", [Update.BUFFERED, Update.FLOAT])
@pytest.mark.parametrize("where", ["first tensor byte", "middle", "last byte", "loss in the log"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, update: Update, where: str) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint(update).save(path)
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[{"first tensor byte": first, "middle": (first + len(content)) // 2, "last byte": -1,
             "loss in the log": content.index(b"0.75")}[where]] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^Checkpoint .*c.safetensors contradicts itself \(bytes have changed since it "
                                        r"was saved: its SHA-256 digest is that of others\): train again or use a "
                                        r"copy$"):
        Checkpoint.load(path)


def test_a_file_of_before_digests_is_read(tmp_path: Path) -> None:
    path, saved = tmp_path / "c.safetensors", checkpoint()
    _tamper(path, saved, {})
    assert np.array_equal(Checkpoint.load(path).state["f.w"], saved.state["f.w"])


def test_foreign_file_wrong(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "c.safetensors")
    with pytest.raises(DataError, match=r"c.safetensors is a safetensors file, but no checkpoint of Espalier: give one "
                                        r"that train wrote$"):
        Checkpoint.load(tmp_path / "c.safetensors")


CONTRADICTIONS = {
    "missing": ({"f.w.master": None}, r"tensor 'f.w.master' is missing"),
    "shape": ({"f.w": np.zeros((3, 5), np.int16)}, r"tensor 'f.w' has shape \(3, 5\) instead of \(3, 4\)"),
    "kind": ({"f.w": np.zeros((3, 4), np.float32)}, r"tensor 'f.w' must hold words, not float32"),
    "mask": ({"f.w.live": np.ones((3, 4), np.uint8)}, r"tensor 'f.w.live' must be bool, not uint8"),
    "dead": ({"f.w.live": np.zeros((3, 4), np.bool_)}, r"tensor 'f.w' has values where weights are dead"),
    "range": ({"f.w": np.full((3, 4), 128, np.int16)}, r"tensor 'f.w' has words outside fixed<8,2,AP_RND,AP_SAT>"),
    "master": ({"f.w": np.zeros((3, 4), np.int16)}, r"tensor 'f.w' is not its master, rounded"),
    "unknown": ({"z": np.zeros(1, np.int16)}, r"tensor 'z' belongs to no parameter"),
}


@pytest.mark.parametrize("case", list(CONTRADICTIONS))
def test_contradictions_wrong(tmp_path: Path, case: str) -> None:
    changes, sentence = CONTRADICTIONS[case]
    _tamper(tmp_path / "c.safetensors", checkpoint(), changes)
    with pytest.raises(DataError, match=rf"^Checkpoint .*c.safetensors contradicts itself \({sentence}\): train again "
                                        rf"or use a copy$"):
        Checkpoint.load(tmp_path / "c.safetensors")


def test_nan_weights_wrong(tmp_path: Path) -> None:
    _tamper(tmp_path / "c.safetensors", checkpoint(Update.FLOAT), {"f.w": np.full((3, 4), np.nan, np.float32)})
    with pytest.raises(DataError, match=r"contradicts itself \(tensor 'f.w' holds NaN or infinite numbers\)"):
        Checkpoint.load(tmp_path / "c.safetensors")


def test_other_version_wrong(tmp_path: Path) -> None:
    _tamper(tmp_path / "c.safetensors", checkpoint(), {}, version=2)
    with pytest.raises(DataError, match=r"contradicts itself \(it has version 2 and this program reads 1\)"):
        Checkpoint.load(tmp_path / "c.safetensors")


def test_damaged_graph_wrong(tmp_path: Path) -> None:
    _tamper(tmp_path / "c.safetensors", checkpoint(), {}, graph="graph")
    with pytest.raises(DataError, match=r"contradicts itself \(Line 1: "):
        Checkpoint.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize("header", ["[]", "3", '"text"', "{", "{}"])
def test_a_header_that_is_no_object_wrong(tmp_path: Path, header: str) -> None:
    save_file({"a": np.zeros(3)}, tmp_path / "c.safetensors", metadata={"espalier": header})
    with pytest.raises(DataError, match=r"^Checkpoint .*c.safetensors contradicts itself \([^\n]*\): train again or "):
        Checkpoint.load(tmp_path / "c.safetensors")


def _tamper(path: Path, saved: Checkpoint, changes: dict[str, np.ndarray | None], **header: object) -> None:
    """A file that says other than ``saved``, without a digest."""
    saved.save(path)
    with safe_open(path, framework="numpy") as file:
        fields = {**json.loads(file.metadata()["espalier"]), **header}
        del fields["sha256"]
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    changed = {name: array for name, array in {**tensors, **changes}.items() if array is not None}
    save_file(changed, path, metadata={"espalier": json.dumps(fields)})
