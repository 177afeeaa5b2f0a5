"""The opencl commands: kernels written, run, compared and timed; what can be wrong with them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
import torch
from bench.commands import fails, run, tree

from espalier.errors import ToolError
from espalier.opencl import runtime
from espalier.opencl.bundle import KERNELS, MANIFEST, WEIGHTS


@pytest.fixture(scope="module")
def kernels(made: Path) -> Path:
    """Of the trained network of ``made``."""
    from espalier.cli import main

    assert main(["opencl", "compile", str(made / "train"), "--output-dir", str(made / "kernels")]) == 0
    return made / "kernels"


def test_kernels_equal_their_source(kernels: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "opencl", "run", kernels, "--images", 5, "--against", made / "train", "--json")
    assert status == 0
    figures = {figure["name"]: figure["value"] for figure in json.loads(out)["record"]["figures"]}
    assert figures["images"] == 5 and figures["words that differ from the interpreter's"] == 0
    assert figures["accuracy"] in (0, 20, 40, 60, 80, 100)


def test_without_optimisations_they_do_too(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    assert run(capsys, "opencl", "compile", made / "train", "--output-dir", base, "--without", "all")[0] == 0
    status, out, _ = run(capsys, "opencl", "run", base, "--images", 3, "--against", made / "train")
    assert status == 0 and "words that differ from the interpreter's: 0 words" in out
    assert re.search(r"^accuracy: [\d.]+ % of the images \(measured\)$", out, re.MULTILINE)


def test_times(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "opencl", "time", kernels, "--runs", 2, "--json")
    content = json.loads(out)
    assert status == 0 and content["record"]["runs"] == 2
    assert [figure["name"] for figure in content["record"]["figures"]] == ["an image", "its kernels"]
    assert json.loads((kernels / "times.json").read_text()) == content["record"]


def test_estimates(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "opencl", "estimate", kernels, "--clock-mhz", 100, "--bandwidth", 10, "--json")
    content = json.loads(out)["record"]
    assert status == 0 and content["part"]["clock"] == 1e8 and content["part"]["bandwidth"] == 1e10
    assert {figure["provenance"] for figure in content["figures"]} == {"estimated"}
    assert len(content["kernels"]) == len(json.loads((kernels / MANIFEST).read_text())["launches"])
    for value in ("-1", "0", "inf", "nan", "1e300", "1e-300"):
        fails(capsys, rf"^The clock of an FPGA is from 1e-06 to 1e\+06 MHz, not {re.escape(f'{float(value):g}')}$",
              "opencl", "estimate", kernels, "--clock-mhz", value)
    fails(capsys, r"^The bandwidth of an FPGA is from 1e-06 to 1e\+06 GB/s, not inf$", "opencl", "estimate", kernels,
          "--bandwidth", "inf")
    fails(capsys, r"^There is no estimate for part 'z80': choose of .*$", "opencl", "estimate", kernels, "--part",
          "z80")


def test_estimates_of_both_styles(kernels: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                  ) -> None:
    assert run(capsys, "opencl", "compile", made / "train", "--output-dir", tmp_path / "k", "--style", "pipelined"
               )[0] == 0
    folded, pipelined = (run(capsys, "opencl", "estimate", folder)[1] for folder in (kernels, tmp_path / "k"))
    assert "an image, kernel after kernel: " in folded and "another" not in folded and "\nsums on chip: " in folded
    assert "an image, every kernel on another: " in pipelined and "after" not in pipelined
    assert "maps, channels and sums on chip: " in pipelined and "measured" not in folded + pipelined


def test_tuning_goes_on_where_it_ended(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tune(*more: object) -> dict[str, Any]:
        status, out, _ = run(capsys, "opencl", "tune", made / "train", "--output-dir", tmp_path / "k", "--json",
                             "--journal", tmp_path / "journal.jsonl", *more)
        assert status == 0
        found: dict[str, Any] = json.loads(out)["record"]
        return found

    first = tune("--trials", 2)
    assert first["rounds"] >= 2 and first["kernels"]
    assert tune("--trials", 2)["rounds"] == 0  # all is known
    assert tune("--trials", 9, "--seconds", 0)["rounds"] == 0
    assert json.loads((tmp_path / "k" / "tuning.json").read_text())["kernels"] == first["kernels"]
    assert run(capsys, "opencl", "run", tmp_path / "k", "--images", 3, "--against", made / "train")[0] == 0


def test_journals_that_are_none(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text("a diary\nof two lines\n")
    fails(capsys, r"^.*journal.jsonl is no journal of a search \(.*\): name another file, or remove it$", "opencl",
          "tune", made / "train", "--output-dir", tmp_path / "k", "--journal", journal)
    fails(capsys, r"^A search has no fewer than 0 trials and seconds, not -1 and None$", "opencl", "tune",
          made / "train", "--output-dir", tmp_path / "k", "--trials", -1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl"]


def test_dry_run_writes_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "opencl", "compile", made / "train", "--output-dir", tmp_path / "k", "--dry-run")
    assert status == 0 and "nothing was written" in out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sentence", "arguments"), [
    (r"^There is no optimisation 'speed': choose of fusion, .*, or all$", ["--without", "speed"]),
    (r"^There is no style 'baroque': choose of folded, pipelined$", ["--style", "baroque"]),
    (r"^A vector has 2, 4, 8 or 16 elements, not 5$", ["--vector", 5])])
def test_options_that_are_none(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sentence: str,
                               arguments: list[object]) -> None:
    fails(capsys, sentence, "opencl", "compile", made / "train", "--output-dir", tmp_path / "k", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sentence", "arguments"), [
    (r"^Kernels run on at least one image, not 0$", ["--images", 0]),
    (r"^Kernels run on at least one thread, not 0$", ["--threads", 0]),
    (r"^No OpenCL device is called 'abacus': name one of '.*' with --device, or a part of its name$",
     ["--device", "abacus"])])
def test_runs_that_cannot_be(kernels: Path, capsys: pytest.CaptureFixture[str], sentence: str,
                             arguments: list[object]) -> None:
    before = tree(kernels)
    fails(capsys, sentence, "opencl", "run", kernels, *arguments)
    assert tree(kernels) == before


def test_data_of_another_kind(kernels: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.zeros((20, 1, 5, 5), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "small.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    sentence = (r"^Network '.*' takes images of shape .*, and those of '.*' have \(1, 5, 5\): give the data set that "
                r"it was trained on$")
    fails(capsys, sentence, "opencl", "run", kernels, "--data", tmp_path / "small.npz")
    for command in ("compile", "tune"):
        fails(capsys, sentence, "opencl", command, made / "train", "--data", tmp_path / "small.npz", "--output-dir",
              tmp_path / "k")
    assert not (tmp_path / "k").exists()


def test_a_program_of_torch_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    torch.export.save(torch.export.export(module, (torch.zeros(1, 1, 8, 8),)), tmp_path / "net.pt2")
    assert run(capsys, "opencl", "compile", tmp_path / "net.pt2", "--output-dir", tmp_path / "k", "--data", "digits"
               )[0] == 0
    status, out, _ = run(capsys, "opencl", "run", tmp_path / "k", "--images", 4, "--against", tmp_path / "net.pt2")
    assert status == 0 and "largest difference from the interpreter: " in out
    (tmp_path / "bad.pt2").write_bytes(b"weights")
    fails(capsys, r"bad.pt2' is damaged, or no program of torch.export that this version of torch reads: write it by ",
          "opencl", "compile", tmp_path / "bad.pt2", "--output-dir", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_folders_that_hold_no_kernels(kernels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, r"holds no OpenCL kernels \(there is no kernels.cl in it\): make them with espalier opencl compile$",
          "opencl", "run", tmp_path)
    for name, content in ((MANIFEST, b"{"), (MANIFEST, b'{"format": "other"}'), (WEIGHTS, b"no tensors")):
        broken = tmp_path / "broken"
        shutil.copytree(kernels, broken)
        (broken / name).write_bytes(content)
        fails(capsys, r"broken holds no kernels of this version \(.*\): compile the network again$", "opencl", "run",
              broken)
        shutil.rmtree(broken)


def test_kernels_that_do_not_build(kernels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(kernels, broken)
    (broken / KERNELS).write_text("__kernel void k0(__global int* x) { x[0] = unknown; }\n")
    fails(capsys, r"^Device '.*' cannot build the kernels of '.*': kernel k0: .*undeclared identifier 'unknown': "
                  r"compile the network again, or name another device with --device; the whole log:$", "opencl", "time",
          broken)
    (broken / KERNELS).write_text("")
    fails(capsys, r"^Device '.*' finds no kernel '.*' of \d+ such arguments in the source of '.*' \(.*\): compile the "
                  r"network again$", "opencl", "time", broken)


def test_other_weights_are_found_out(kernels: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                     ) -> None:
    from safetensors.numpy import load, save

    other = tmp_path / "other"
    shutil.copytree(kernels, other)
    weights = load((other / WEIGHTS).read_bytes())
    (other / WEIGHTS).write_bytes(save({name: np.zeros_like(array) for name, array in weights.items()}))
    fails(capsys, r"^\d+ of \d+ words differ from the interpreter's: the kernels are of other weights than ",
          "opencl", "run", other, "--images", 4, "--against", made / "train")


def test_no_device(kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> list[cl.Platform]:
        return []

    monkeypatch.setattr(runtime.cl, "get_platforms", nothing)
    for name in runtime.HIDING:
        monkeypatch.delenv(name, raising=False)
    fails(capsys, r"^There is no OpenCL device on this machine: install one: pip install pocl-binary-distribution ",
          "opencl", "time", kernels)


def test_a_hidden_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PoCL is installed, and the environment hides it, there is nothing to install."""
    monkeypatch.setattr(runtime.cl, "get_platforms", list)
    monkeypatch.setattr(runtime, "POCL", "numpy")  # which is installed
    monkeypatch.delenv("OCL_ICD_VENDORS", raising=False)
    monkeypatch.setenv("POCL_DEVICES", "cuda")
    with pytest.raises(ToolError, match=r"^There is no OpenCL device on this machine: PoCL is installed, and "
                                        r"POCL_DEVICES=cuda in the environment hides it: unset that$"):
        runtime.devices()
    monkeypatch.setattr(runtime, "POCL", "no_such_package")
    with pytest.raises(ToolError, match=r": install one: "):
        runtime.devices()


def test_a_platform_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver is broken; the devices of others are there."""
    class Broken:
        def get_devices(self) -> list[cl.Device]:
            raise cl.RuntimeError("clGetDeviceIDs failed: OUT_OF_HOST_MEMORY")

    every, platforms = runtime.devices(), cl.get_platforms()
    monkeypatch.setattr(runtime.cl, "get_platforms", lambda: [Broken(), *platforms])
    assert runtime.devices() == every


@dataclass
class Small:
    """A device with hardly any memory."""

    name: str = "small"
    global_mem_size: int = 10
    max_mem_alloc_size: int = 5
    available: bool = True
    compiler_available: bool = True
    profile: str = "FULL_PROFILE"
    extensions: str = "cl_khr_fp64"


def test_a_device_that_is_too_small(kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
                                    ) -> None:
    monkeypatch.setattr(runtime, "find_device", lambda name="": Small())
    fails(capsys, r"^Network '.*' needs [\d,]+ bytes and a buffer of [\d,]+ \(.*\); device 'small' has 10 and allows "
                  r"5: take a smaller network, or name another device with --device$", "opencl", "time", kernels)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"available": False}, r"is not available at present: try again, or name another device with --device"),
    ({"compiler_available": False}, r"comes without a compiler of OpenCL C, which kernels need: install its driver's, "
                                    r"or name another device with --device"),
    ({"profile": "EMBEDDED_PROFILE"}, r"has no 64-bit integers \(cles_khr_int64\), which kernels need: name another "
                                      r"device with --device")])
def test_a_device_that_lacks_something(kernels: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
                                       ) -> None:
    monkeypatch.setattr(runtime, "find_device", lambda name="": Small(**changes))
    fails(capsys, rf"^Device 'small' {sentence}$", "opencl", "time", kernels)
