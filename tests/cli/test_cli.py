"""The command line: what it prints and its exit status. What can go wrong is in ``test_bad_input.py``."""

import json
import subprocess
import sys
from math import prod

import pytest
from bench.builds import config
from bench.commands import run

from espalier.compress.erdos_renyi import erdos_renyi_densities
from espalier.ir.view import conv_shape
from espalier.train.checkpoint import Checkpoint

SHORT = ["--epochs", "2", "--batch", "16"]


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
    assert status == 0 and (found["epochs"], found["seed"], found["prune"]["method"]["rows"]) == (3, 7, 2)
    assert not (tmp_path / "out").exists()
    status, out, _ = run(capsys, "train", "--config", tmp_path / "recipe.yaml", "--method", "lamp", "--density", "0.25",
                         "--dry-run", "--json", "--output-dir", tmp_path / "out")
    method = json.loads(out)["record"]["config"]["prune"]["method"]
    assert status == 0 and method == {"density": 0.25, "rows": 2, "kind": "lamp"}


def test_densities_by_the_shapes_of_layers(capsys, made, tmp_path):
    config(made).save(tmp_path / "recipe.yaml")
    status, out, _ = run(capsys, "train", "--config", tmp_path / "recipe.yaml", "--density", "0.3", "--block", "1",
                         "--scope", "erdos_renyi", "--json", "--output-dir", tmp_path / "out")
    checkpoint = Checkpoint.load(tmp_path / "out" / "checkpoint.safetensors")
    shapes = {layer.w.name: conv_shape(checkpoint.graph, layer) for layer in checkpoint.graph.layers()}
    densities, live = erdos_renyi_densities(shapes, 0.3), json.loads(out)["record"]["live"]
    assert status == 0 and len({*densities.values()}) > 1
    assert all(abs(live[name] - densities[name] * prod(shape)) <= 1 for name, shape in shapes.items())


def test_a_dry_run_of_compile_writes_nothing(capsys, made, tmp_path):
    status, out, _ = run(capsys, "compile", made / "train", "--dry-run", "--output-dir", tmp_path / "build")
    assert status == 0 and "(dry run: nothing was written)" in out and list(tmp_path.iterdir()) == []


def test_compile_says_what_is_in_external_memory(capsys, made, tmp_path):
    arguments = ["compile", made / "train", "--dry-run", "--output-dir", tmp_path / "build"]
    lattice, told = ["--rows", "2", "--lanes", "2"], "in external memory: "
    status, out, err = run(capsys, *arguments, *lattice)
    assert status == 0 and told not in out + err
    status, out, err = run(capsys, *arguments, *lattice, "--port-bits", "32", "--stream-weights")
    assert status == 0 and f"{told}nothing, all fits on chip" in (out + err).splitlines()
    _, out, _ = run(capsys, *arguments, *lattice, "--port-bits", "32", "--json")
    shallow = json.loads(out)["record"]["machine"] | {"activation_depth": 128}
    (tmp_path / "machine.json").write_text(json.dumps(shallow))
    status, out, err = run(capsys, *arguments, "--machine", tmp_path / "machine.json")
    assert status == 0 and f"{told}1 of 3 activations, weights of 0 of 2 layers" in (out + err).splitlines()


def test_a_training_that_is_done_already_says_so_and_writes_nothing(capsys, made, tmp_path):
    config(made).save(tmp_path / "recipe.yaml")
    arguments = ["train", "--config", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "train"]
    status, first, _ = run(capsys, *arguments)
    assert status == 0 and "done already" not in first and first.count("wrote ") == 3
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()}
    status, out, _ = run(capsys, *arguments)
    accuracy = first.splitlines()[0]
    assert (status, out.splitlines()) == (0, [
        accuracy, f"done already: {tmp_path / 'train'} holds this very training, so nothing was trained or written"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "train").iterdir()} == times
    found = json.loads(run(capsys, *arguments, "--json")[1])
    assert found["written"] == [] and found["record"]["test_accuracy"] > 0
