"""The command line: what it prints, its exit status, and one sentence for everything that can go wrong."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from bench.builds import config, write_data, write_network

from espalier.cli import main
from espalier.engines.rtl import RtlEngine
from espalier.errors import ToolError
from espalier.synth import yosys
from espalier.train.checkpoint import Checkpoint
from espalier.train.step import TrainingStep

SHORT = ["--epochs", "2", "--batch", "16"]
PROBE_STEPS = 4  #: of the recipe of ``bench.builds``


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, sentence: str, *arguments, status: int = 1) -> None:
    """The command ends with ``status`` and one sentence, nothing on standard output and no traceback."""
    got, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("espalier: ")]
    assert (got, out, len(lines)) == (status, "", 1), err
    assert re.search(sentence, lines[0].removeprefix("espalier: ")), lines[0]
    assert "Traceback" not in err


def test_version(capsys):
    assert run(capsys, "--version") == (0, "espalier 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_wait_for_large_libraries(arguments):
    program = ("import sys; from espalier.cli import main; main(sys.argv[1:]); "
               "print(*{'amaranth', 'numpy', 'onnx', 'sklearn', 'torch'} & sys.modules.keys(), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout and done.stderr.strip() == ""


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "espalier", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "espalier 0.1.0\n"


@pytest.mark.parametrize("command", ["train", "compile", "simulate", "verify", "synth", "report"])
def test_every_command_explains_itself(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and "Usage" in out


@pytest.mark.parametrize("arguments", [["fly"], ["train"], ["verify"], ["simulate", "x", "--nonsense"],
                                       ["compile", "x", "--output-dir", "y", "--rows", "a"]])
def test_wrong_usage_is_status_2(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and "Usage" in err


def test_the_whole_way(capsys, made, build, tmp_path):
    status, out, _ = run(capsys, "train", "--network", f"{made / 'net.py'}:make", "--data", made / "small.npz", *SHORT,
                         "--density", "0.5", "--block", "2", "--output-dir", tmp_path / "train")
    assert status == 0 and f"wrote {tmp_path / 'train' / 'checkpoint.safetensors'}\n" in out
    status, out, _ = run(capsys, "compile", tmp_path / "train", "--machine", build / "machine.json", "--output-dir",
                         tmp_path / "build")
    assert status == 0 and out.startswith("net on 2 rows × 4 lanes (8 multipliers), 42-bit accumulators\n")
    status, out, _ = run(capsys, "verify", tmp_path / "build", "--json")
    found = json.loads(out)
    assert status == 0 and found["record"]["mismatch"] == "" and found["written"] == [
        str(tmp_path / "build" / "verify.json")]
    status, out, _ = run(capsys, "simulate", tmp_path / "build", "--steps", "2", "--no-dense", "--test-images", "8")
    assert status == 0 and out.startswith("2 steps of 4 images: equal to the interpreter, bit for bit\n")
    status, out, _ = run(capsys, "report", tmp_path / "train", tmp_path / "build", "--title", "Mine")
    assert status == 0 and "<title>Mine" in (tmp_path / "build" / "report.html").read_text()


def test_a_recipe_from_a_file_and_flags(capsys, made, tmp_path):
    config(made, epochs=3).save(tmp_path / "recipe.yaml")
    status, out, _ = run(capsys, "train", "--config", tmp_path / "recipe.yaml", "--seed", "7", "--dry-run", "--json",
                         "--output-dir", tmp_path / "out")
    found = json.loads(out)["record"]["config"]
    assert status == 0 and (found["epochs"], found["seed"], found["prune"]["magnitude"]["rows"]) == (3, 7, 2)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_compile_writes_nothing(capsys, made, tmp_path):
    status, out, _ = run(capsys, "compile", made / "train", "--dry-run", "--output-dir", tmp_path / "build")
    assert status == 0 and "(dry run: nothing was written)" in out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--data", "nowhere"], r"^There is no data set 'nowhere': give one of "),
    (["--data", "mnist", "--data-root", "."], r"^Data set 'mnist' is not in "),
    (["--network", "resnet"], r"^There is no reference network 'resnet': choose one of "),
    (["--network", "lenet5"], r"^Network 'lenet5' takes images of shape \(1, 28, 28\), and those of .* \(1, 8, 8\)"),
    (["--network", "nowhere.onnx"], r"^Cannot read the ONNX file nowhere\.onnx"),
    (["--network", "nowhere.py:make"], r"^There is no Python file 'nowhere\.py': "),
    (["--epochs", "0"], r"Epochs and batch are at least 1"),
    (["--density", "2"], r"density"),
    (["--block", "2"], r"^Pruning needs to know how many weights stay: give --density, such as 0\.1$"),
    (["--float32", "--weight-bits", "8"], r"^Training in float32 has neither word widths nor "),
    (["--weight-bits", "40"], r"The width of a word must be in 2\.\.16 bits, not 40"),
    (["--learning-rate", "-1"], r"The learning rate must be a number above 0"),
    (["--rate", "step"], r"^The rate 'step' falls at milestones, and none are given: name them in a recipe "),
    (["--config", "nowhere.yaml"], r"^Configuration nowhere\.yaml cannot be read"),
])
def test_train_wrong(capsys, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    fails(capsys, sentence, "train", "--output-dir", "out", *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("factory", "sentence"), [
    ("strided", r"^Layer 'conv' has groups 1, stride \(2, 2\), .*: this engine runs convolutions with all of them 1$"),
    ("sigmoid", r"squash"),
    ("not_a_number", r"'fc\.weight'"),
    ("huge", r"^Words of 16 bits with at least 0 fraction bits must hold every value, and '\w+' lies in "),
    ("number", r"^'number' of '.*net\.py' must return a torch module, not a int$"),
    ("sized", r"^'sized' of '.*net\.py' must make the network without arguments \(missing .*'width'\): give them "),
    ("nobody", r"has no function 'nobody': name a function that returns a torch module$"),
])
def test_a_network_of_ones_own_wrong(capsys, tmp_path, factory, sentence):
    network, data = write_network(tmp_path), write_data(tmp_path)
    if factory == "strided":  # trains, but the machine does not run it
        assert run(capsys, "train", "--network", f"{network}:strided", "--data", data, "--epochs", "1", "--batch", "16",
                   "--output-dir", tmp_path / "train")[0] == 0
        fails(capsys, sentence, "compile", tmp_path / "train", "--output-dir", tmp_path / "build")
        assert not (tmp_path / "build").exists()
    else:
        fails(capsys, sentence, "train", "--network", f"{network}:{factory}", "--data", data, *SHORT, "--output-dir",
              tmp_path / "train")
        assert not (tmp_path / "train").exists()


def test_a_network_file_that_does_not_run_wrong(capsys, tmp_path):
    (tmp_path / "bad.py").write_text("def make(:\n")
    fails(capsys, r"^The network file '.*bad\.py' cannot be run: ", "train", "--network", f"{tmp_path / 'bad.py'}:make",
          "--output-dir", tmp_path / "out")


def test_labels_out_of_range_wrong(capsys, tmp_path):
    data = write_data(tmp_path, y_train=np.full(96, -1, dtype=np.int64))
    fails(capsys, r"label", "train", "--data", data, "--output-dir", tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 100, 4000])
def test_truncated_data_wrong(capsys, tmp_path, cut):
    data = write_data(tmp_path)
    data.write_bytes(data.read_bytes()[:cut])
    fails(capsys, r"small\.npz", "train", "--data", data, "--output-dir", tmp_path / "out")


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda path: path.unlink(), r"^There is no checkpoint "),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"is damaged or truncated"),
    (lambda path: path.write_bytes(b""), r"is damaged or truncated"),
    (lambda path: path.write_bytes(os.urandom(64)), r"is damaged or truncated"),
])
def test_a_checkpoint_wrong(capsys, made, tmp_path, damage, sentence):
    (tmp_path / "checkpoint.safetensors").write_bytes((made / "train" / "checkpoint.safetensors").read_bytes())
    damage(tmp_path / "checkpoint.safetensors")
    fails(capsys, sentence, "compile", tmp_path, "--output-dir", tmp_path / "build")


def test_a_float_network_is_not_compiled_wrong(capsys, made, tmp_path):
    assert run(capsys, "train", "--network", f"{made / 'net.py'}:make", "--data", made / "small.npz", "--float32",
               *SHORT, "--output-dir", tmp_path / "train")[0] == 0
    fails(capsys, r"not fixed-point: quantise the network first$", "compile", tmp_path / "train", "--output-dir",
          tmp_path / "build")


def test_a_machine_that_cannot_hold_the_network_wrong(capsys, made, tmp_path):
    fails(capsys, r"^No machine for this network fits ecp5-85f: .* 17 of 156 multipliers and \d+ of 2 block RAMs; ",
          "compile", made / "train", "--block-rams", "2", "--output-dir", tmp_path / "build")


@pytest.mark.parametrize("command", ["simulate", "verify", "synth"])
def test_a_build_that_is_none_wrong(capsys, tmp_path, command):
    fails(capsys, r" is no build directory ", command, tmp_path)


@pytest.mark.parametrize("command", ["simulate", "verify"])
def test_other_data_than_the_network_takes_wrong(capsys, build, tmp_path, command):
    images = np.zeros((40, 6, 6), dtype=np.uint8)
    labels = np.arange(40) % 10
    data = write_data(tmp_path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    fails(capsys, r"^Network 'net' takes images of shape \(1, 8, 8\), and those of .* have \(1, 6, 6\): ", command,
          build, "--data", data)


def test_an_interrupted_run_is_kept_and_goes_on(capsys, made, tmp_path, monkeypatch):
    arguments = ["train", "--config", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "train"]
    config(made).save(tmp_path / "recipe.yaml")
    seen, take_step = [], TrainingStep.__call__

    def interrupted(self, *step):
        seen.append(step)
        take_step(self, *step)
        if len(seen) == PROBE_STEPS + 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingStep, "__call__", interrupted)
    fails(capsys, r"^Training was interrupted in epoch 1 and is saved in .*: run the same command again to go on$",
          *arguments, status=130)
    monkeypatch.undo()
    position = Checkpoint.load(tmp_path / "train" / "checkpoint.safetensors").position
    assert position.epoch == 0 and 0 < position.step < 6
    assert run(capsys, *arguments)[0] == 0
    ours, theirs = (Checkpoint.load(folder / "train" / "checkpoint.safetensors") for folder in (tmp_path, made))
    assert all(np.array_equal(words, theirs.state[name]) for name, words in ours.state.items())


def test_an_interrupted_compilation_leaves_nothing(capsys, made, tmp_path, monkeypatch):
    def interrupted(machine):
        raise KeyboardInterrupt

    monkeypatch.setattr("espalier.flow.compile.verilog", interrupted)
    fails(capsys, r"^Interrupted; what earlier commands wrote is intact$", "compile", made / "train", "--rows", "1",
          "--lanes", "2", "--output-dir", tmp_path / "build", status=130)
    assert list(tmp_path.iterdir()) == []


def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_wrong(capsys, made, build, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in build.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    fails(capsys, r"^A file cannot be read or written \(No space left on device\): what was there before is intact; ",
          "verify", build)
    fails(capsys, r"No space left on device", "compile", made / "train", "--rows", "1", "--lanes", "2", "--output-dir",
          build)
    fails(capsys, r"^Checkpoint .* cannot be written \(No space left on device\): what was there before is intact; ",
          "train", "--network", f"{made / 'net.py'}:make", "--data", made / "small.npz", *SHORT, "--output-dir",
          tmp_path / "train")
    assert {path.name: path.read_bytes() for path in build.iterdir()} == before


def test_a_missing_tool_wrong(capsys, build, monkeypatch):
    def missing():
        raise ToolError("yosys 0.23 or newer is needed but yosys is not installed")

    monkeypatch.setattr(yosys, "find_yosys", missing)
    fails(capsys, r"^yosys 0\.23 or newer is needed ", "synth", build)
    assert not (build / "synth.json").exists()


def test_a_mismatch_wrong(capsys, build, monkeypatch):
    traced = RtlEngine.traced_step
    monkeypatch.setattr(RtlEngine, "traced_step", lambda self, images, labels: {
        **(found := traced(self, images, labels)), "loss": found["loss"] + 1})
    fails(capsys, r"^1 of \d+ words differ; in order of execution the first is loss is .* \(rerun it with: ", "verify",
          build)
    assert (build / "mismatch" / "machine.json").is_file()


def test_an_output_that_is_a_file_is_refused_before_training_wrong(capsys, tmp_path):
    (tmp_path / "out").write_text("")
    fails(capsys, r"^The output directory .*out cannot be made, as .*out is a file: choose another$", "train",
          "--data", "nowhere", "--output-dir", tmp_path / "out")


def test_a_page_that_is_a_directory_wrong(capsys, made, tmp_path):
    (tmp_path / "page").mkdir()
    fails(capsys, rf"^{tmp_path}/page cannot be read or written \(Is a directory\): ", "report", made / "train",
          "--output", tmp_path / "page")
    assert list(tmp_path.iterdir()) == [tmp_path / "page"]
