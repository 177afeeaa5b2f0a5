"""A training of several processes: that of one, bit for bit, and an end in one sentence when one is gone."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
import pytest
from bench.training import tiny

from espalier.compress.magnitude import Magnitude
from espalier.compress.schedule import CubicSchedule
from espalier.data import load
from espalier.errors import DataError, EspalierError
from espalier.flow import TrainFlags, recipe, training
from espalier.flow.training import train_network
from espalier.train import loop, processes
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Prune, Quantise, TrainConfig
from espalier.train.crew import Crew, WorkerError, joined
from espalier.train.loop import CHECKPOINT, TIMELINE, TrainingInterrupted, train
from espalier.train.pipelining import Pipeline, Scheme
from espalier.train.processes import in_processes

CONFIG = TrainConfig(epochs=2, batch=32, quantise=Quantise(probe_steps=3),
                     pipeline=Pipeline(2, ("flatten",), stretch=20),
                     prune=Prune(Magnitude(density=0.5), CubicSchedule(0.2, 1.2, 3)))


@pytest.mark.parametrize("patience", [0.0, -1.0, float("nan"), float("inf")])
def test_a_patience_that_is_none(tmp_path: Path, patience: float) -> None:
    with pytest.raises(DataError, match="^Parts wait for each other for seconds above 0, not "):
        train_network(TrainConfig(), tmp_path, patience=patience)


@pytest.mark.parametrize("scheme", [Scheme.COMPENSATED, Scheme.SYNCHRONOUS])
def test_processes_train_as_one(tmp_path: Path, scheme: Scheme) -> None:
    assert CONFIG.pipeline is not None
    config = replace(CONFIG, pipeline=replace(CONFIG.pipeline, scheme=scheme))
    found = train_network(config, tmp_path / "two", processes=True)
    alone = train_network(config, tmp_path / "one")
    assert found is not None and alone is not None
    assert found.log == alone.log
    for name, array in alone.state.items():
        assert np.array_equal(found.state[name], array), name
    told = json.loads((tmp_path / "two" / TIMELINE).read_text())
    kinds = {"forward", "backward", "update", "wait", "copy", "load"}
    assert {event["name"] for event in told["traceEvents"]} >= kinds
    assert set(told["otherData"]) == {"part 0", "part 1"}
    for part in told["otherData"].values():
        assert set(part) == {"epoch 1", "epoch 2"}, "the last one, too"
        assert all(set(spent) == kinds and min(spent.values()) > 0 for spent in part.values())
    assert not (tmp_path / "one" / TIMELINE).exists()


def signalled(folder: Path, number: int, which: int) -> None:
    """Give process ``which`` of the pipeline signal ``number`` once the first epoch is saved."""
    while not (folder / CHECKPOINT).exists():
        time.sleep(0.05)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    for worker in sorted(workers) if which < 0 else [sorted(workers)[which]]:
        os.kill(worker, number)


@pytest.mark.parametrize(("number", "which", "kind", "sentence"), [
    (signal.SIGKILL, 1, WorkerError, r"^(Part 1|Another part) of the pipeline is gone or does not answer; what was "
                                     r"trained before is saved in .*: run the same command again to go on$"),
    (signal.SIGSTOP, 0, WorkerError, r"^(Part 0|Another part) of the pipeline is gone or does not answer; what was "),
    (signal.SIGINT, -1, TrainingInterrupted, r"^Training was interrupted in epoch \d+ and is saved in ")])
def test_a_process_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, which: int,
                              kind: type[EspalierError], sentence: str) -> None:
    monkeypatch.setattr(processes, "GRACE", 1.0)
    config = replace(CONFIG, epochs=400)
    threading.Thread(target=signalled, args=(tmp_path, number, which), daemon=True).start()
    with pytest.raises(kind, match=sentence):
        train_network(config, tmp_path, processes=True, patience=10)
    left = Checkpoint.load(tmp_path / CHECKPOINT)
    assert 1 <= left.position.epoch < 400
    less = replace(config, epochs=left.position.epoch + 1)
    replace(left, config=less).save(tmp_path / CHECKPOINT)
    found, whole = train_network(less, tmp_path, processes=True), train_network(less, tmp_path / "whole")
    assert found is not None and whole is not None
    assert found.log == whole.log


def running(pids: list[int]) -> list[int]:
    """Those that are there and no zombies."""
    found = []
    for pid in pids:
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.append(pid)
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130),
                                                (signal.SIGINT, 130)])
def test_processes_do_not_outlive_the_one_that_started_them(tmp_path: Path, number: int, status: int) -> None:
    """They save where they are, and end."""
    command = [sys.executable, "-m", "espalier", "train", "--epochs", "400", "--batch", "32", "--cut", "flatten",
               "--output-dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as parent:
        while not (tmp_path / CHECKPOINT).exists():
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        assert len(workers) == 2
        parent.send_signal(number)
        assert parent.wait() == status
    for _ in range(600):
        if not running(workers):
            break
        time.sleep(0.1)
    assert not running(workers)
    position = Checkpoint.load(tmp_path / CHECKPOINT).position
    assert (position.epoch, position.step) >= (1, 0) and position.epoch < 400


def _is_told_before_it_begins() -> None:
    raise AssertionError("it is not to begin")


def test_control_c_before_the_processes_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    start = SpawnProcess.start

    def started(process: SpawnProcess) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SpawnProcess, "start", started)
    with pytest.raises(TrainingInterrupted, match=r"^Training was interrupted: run the same command again"):
        in_processes(2, _is_told_before_it_begins)


def test_another_number_of_parts_than_before(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, prune=None)
    train_network(config, tmp_path)
    config = replace(config, pipeline=Pipeline(3, stretch=20))
    with pytest.raises(DataError, match=r"is of a run with pipeline = .*'parts': 2.*, not .*'parts': 3.*: choose "
                                        r"another folder, or do not resume$"):
        train_network(config, tmp_path)


def _train_apart(config: TrainConfig, folder: Path, shared: bool, loses_the_first: bool) -> None:
    """In one folder or in one each; the first part may die in the first epoch, after three stretches, before anything
    is saved.
    """
    split, stretches, any_ = load("digits"), itertools.count(), Crew.any
    graph, parameters = tiny()

    def dies(crew: Crew, flag: bool) -> bool:
        if next(stretches) == 3:
            os._exit(5)
        return any_(crew, flag)

    with joined(2, "cpu", 20) as crew, patch.object(Crew, "any", dies if loses_the_first and not crew.rank else any_):
        train(config, split, graph, parameters, folder if shared else folder / str(crew.rank), crew=crew)


APART = replace(CONFIG, epochs=1, pipeline=Pipeline(2, ("pool",), stretch=10), prune=None, batch=4)
GOES_ON = r"what was trained before is saved in .*: run the same command again to go on$"


def test_what_is_left_is_saved_where_the_first_is_gone(tmp_path: Path) -> None:
    config = replace(APART, epochs=400)
    with pytest.raises(WorkerError, match=GOES_ON):
        in_processes(2, partial(_train_apart, config, tmp_path, True, True))
    assert Checkpoint.load(tmp_path / CHECKPOINT).position.epoch < 400


def test_machines_that_share_no_folder_go_on_from_what_any_of_them_saved(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=GOES_ON):
        in_processes(2, partial(_train_apart, APART, tmp_path, False, True))
    saved = Checkpoint.load(tmp_path / "1" / CHECKPOINT)
    assert saved.position.step == 30 and not list(tmp_path.glob(f"0/{CHECKPOINT}"))
    for _ in range(2):  # the second time all is done already
        in_processes(2, partial(_train_apart, APART, tmp_path, False, False))
    found, alone = Checkpoint.load(tmp_path / "0" / CHECKPOINT), train(APART, load("digits"), *tiny())
    assert found.log == alone.log and found.position == alone.position
    assert all(np.array_equal(found.state[name], alone.state[name]) for name in alone.state)


def test_a_part_goes_between_two_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all look at the test set, and after an epoch was saved: nothing is done twice, nothing is missing."""
    whole, asked = train_network(CONFIG, tmp_path / "whole"), []

    def gone(*_: object, **__: object) -> float:
        raise WorkerError("Part 1 of the pipeline is gone or does not answer")

    def any_(crew: Crew, flag: bool) -> bool:
        asked.append(flag)
        if len(asked) == len(stretches) + 1:
            gone()
        return flag

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accuracy", gone)
        with pytest.raises(WorkerError, match="what was trained before is saved in"):
            train_network(CONFIG, tmp_path / "one")
    left = Checkpoint.load(tmp_path / "one" / CHECKPOINT).position
    stretches = range(-(-left.step // 20))  # of an epoch
    assert left.epoch == 0 and left.step == 1437 // 32
    with monkeypatch.context() as patch:
        patch.setattr(Crew, "any", any_)
        with pytest.raises(WorkerError, match="what was trained before is saved in"):
            train_network(CONFIG, tmp_path / "one")
    found = train_network(CONFIG, tmp_path / "one")
    assert found is not None and whole is not None
    assert found.log == whole.log
    for name, array in whole.state.items():
        assert np.array_equal(found.state[name], array), name


def _refuses() -> None:
    with joined(3, "cpu", 20):
        pass


def test_processes_work_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (pytest.raises(DataError, match=r"^Several processes train a pipeline on CPUs, not on cuda: train on the cpu, "
                                         r"or in one process$"), joined(2, "cuda", 1)):
        pass


def _has_its_own(folder: Path) -> None:
    """Data that differ by one pixel."""
    split = load("digits")
    split.train.images[0, 0, 0, 0] += int(os.environ["RANK"])
    graph, parameters = tiny()
    with joined(2, "cpu", 20) as crew:
        train(replace(CONFIG, pipeline=Pipeline(2, ("pool",))), split, graph, parameters, folder, crew=crew)


def _vanishes() -> None:
    os._exit(5)


def test_as_many_processes_as_parts() -> None:
    with pytest.raises(EspalierError, match=r"^A pipeline of 3 parts has one process or 3, not 2$"):
        in_processes(2, _refuses)


def test_all_have_the_same_data(tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match=r"^Process 1 of the pipeline has other data than the first: give all the "
                                            r"same files and the same command$"):
        in_processes(2, partial(_has_its_own, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listens", [True, False])
def test_they_cannot_meet(monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    """Something else listens on the port, or the other process is missing."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if listens:
            other.listen()
        else:
            other.close()
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with (pytest.raises(DataError, match=rf"^The 2 processes of the pipeline cannot meet at 127.0.0.1:{port} \(.*"
                                             rf"\): is the port in use, or a process missing\?$"),
              joined(2, "cpu", 1)):
            pass


class _Process:
    """One that hangs until it is killed or, where it has failed, whose end shows only the second time we look."""

    def __init__(self, failed: bool) -> None:
        self.looks = 2 if failed else sys.maxsize
        self.sentinel, other = os.pipe()
        if failed:
            os.close(other)

    @property
    def exitcode(self) -> int | None:
        return None if self.looks > 0 else 1

    def is_alive(self) -> bool:
        self.looks -= 1
        return self.exitcode is None

    def kill(self) -> None:
        self.looks = 0


def test_a_process_whose_end_shows_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are closed, and the sentinel is ready, before the system has its status."""
    monkeypatch.setattr(processes, "GRACE", 0.1)
    failed, hung = _Process(True), _Process(False)
    processes._wait_for(cast(list[SpawnProcess], [failed, hung]))
    assert hung.exitcode == 1


def test_a_process_that_ends_without_a_word() -> None:
    with pytest.raises(WorkerError, match=r"^The process of part 0 ended with status 5: run the same command again, "
                                          r"and it goes on from the last checkpoint$"):
        in_processes(1, _vanishes)


def test_what_every_process_finds_wrong_is_said_once(tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(tmp_path / "none.npz"))
    with pytest.raises(EspalierError, match="none.npz"):
        train_network(config, tmp_path / "out", processes=True)
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "out").glob("*"))


def test_parts_that_the_network_has_not_are_not_started(tmp_path: Path) -> None:
    config = replace(CONFIG, pipeline=Pipeline(99))
    with (patch.object(training, "in_processes", side_effect=AssertionError),
          pytest.raises(EspalierError, match="99")):
        train_network(config, tmp_path / "out", processes=True)


def test_torchrun_starts_them_too(tmp_path: Path) -> None:
    """One result is told, by the first process; the weights are those of one."""
    told = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "espalier", "train",
         "--epochs", "1", "--batch", "32", "--cut", "flatten", "--output-dir", str(tmp_path / "two")],
        check=True, capture_output=True, text=True)
    assert told.stdout.count("test accuracy") == 1
    assert TIMELINE in told.stdout
    alone = train_network(recipe(None, TrainFlags(epochs=1, batch=32, cut=("flatten",))), tmp_path / "one")
    assert alone is not None
    assert Checkpoint.load(tmp_path / "two" / CHECKPOINT).log == alone.log
