"""Everything that can be wrong with what a command is given: one sentence, its status, and all earlier results intact.

The tests go in the order of the list: data, labels, checkpoints, builds, layers, shapes, weights, formats, machines,
interrupts, full disks.
"""

import errno
import json
import os
import shutil
import signal

import numpy as np
import onnx
import pytest
from bench.builds import config, write_data, write_network
from bench.commands import fails, run, tree

from espalier.engines.rtl import RtlEngine
from espalier.errors import ToolError
from espalier.flow import SimulateRequest, SynthRequest, VerifyRequest, simulate, synth, verify, write_report
from espalier.synth import yosys
from espalier.synth.yosys import Synthesis
from espalier.train.checkpoint import Checkpoint
from espalier.train.step import TrainingStep

SHORT = ["--epochs", "2", "--batch", "16"]
PROBE_STEPS = 4  #: of the recipe of ``bench.builds``


def quick_synthesis(verilog, top, output, *, architecture, timeout_seconds):
    """Yosys that answers at once."""
    output.mkdir(exist_ok=True)
    return Synthesis(architecture, top, "yosys 0.70", (("DP16KD", 27), ("LUT4", 6715), ("MULT18X18D", 21)))


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """A training and a build with the results of every command."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("train", "build"):
        shutil.copytree(made / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("espalier.flow.synthesis.synthesise", quick_synthesis)
        synth(folder / "build", SynthRequest(route=False))
    verify(folder / "build", VerifyRequest())
    simulate(folder / "build", SimulateRequest(steps=1, dense=False, test_images=0))
    write_report([folder / "train", folder / "build"], folder / "build" / "report.html")
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of ``finished`` of the test's own, with a Yosys that answers at once."""
    monkeypatch.setattr("espalier.flow.synthesis.synthesise", quick_synthesis)
    return shutil.copytree(finished, tmp_path / "place")


@pytest.fixture
def command(made, place, tmp_path):
    """The words of each command by name, such that it would replace its results in ``place``."""
    config(made).save(tmp_path / "recipe.yaml")
    train, build = place / "train", place / "build"
    return {"train": ["train", "--config", tmp_path / "recipe.yaml", "--no-resume", "--output-dir", train],
            "compile": ["compile", train, "--machine", build / "machine.json", "--output-dir", build],
            "simulate": ["simulate", build, "--steps", "1", "--no-dense", "--test-images", "0"],
            "verify": ["verify", build],
            "synth": ["synth", build, "--no-route"],
            "report": ["report", train, build]}


EVERY = ["train", "compile", "simulate", "verify", "synth", "report"]
ON_DATA = ["train", "simulate", "verify"]
ON_BUILDS = ["simulate", "verify", "synth", "report"]


@pytest.fixture
def leaves_all(capsys, place):
    """Asserts that a command fails with a sentence and a status and leaves every file in ``place`` as it was."""
    def check(sentence, *arguments, status=1):
        before = tree(place)
        fails(capsys, sentence, *arguments, status=status)
        assert tree(place) == before
    return check


@pytest.mark.parametrize("name", EVERY)
def test_what_fails_below_succeeds_as_it_is(capsys, command, name):
    assert run(capsys, *command[name])[0] == 0


@pytest.mark.parametrize("name", ON_DATA)
def test_missing_data_wrong(leaves_all, command, name):
    leaves_all(r"^There is no data set 'nowhere\.npz': give one of ", *command[name], "--data", "nowhere.npz")
    leaves_all(r"^Data set 'mnist' is not in ", *command[name], "--data", "mnist", "--data-root", "nowhere")


@pytest.mark.parametrize("cut", [0, 100, 4000])
@pytest.mark.parametrize("name", ON_DATA)
def test_truncated_data_wrong(leaves_all, command, tmp_path, name, cut):
    data = write_data(tmp_path)
    data.write_bytes(data.read_bytes()[:cut])
    leaves_all(r"small\.npz is no readable \.npz file ", *command[name], "--data", data)


@pytest.mark.parametrize("name", ON_DATA)
def test_corrupt_data_wrong(leaves_all, command, tmp_path, name):
    data = write_data(tmp_path)
    content = data.read_bytes()
    data.write_bytes(content[:600] + bytes([content[600] ^ 255]) + content[601:])
    leaves_all(r"small\.npz is no readable \.npz file .*CRC", *command[name], "--data", data)


@pytest.mark.parametrize(("label", "sentence"), [
    (-1, r"^Labels must be in 0\.\.9; label -1 of example 0 of 'small-train' is not$"),
    (10 ** 6, r"^Every label from 0 to the largest must occur, and .*small\.npz has the label 1000000 and none that is "
              r"10: number the classes anew, or store all their names under 'classes'$"),
])
@pytest.mark.parametrize("name", ON_DATA)
def test_labels_out_of_range_wrong(leaves_all, command, tmp_path, name, label, sentence):
    labels = np.arange(96) % 10
    labels[0] = label
    leaves_all(sentence, *command[name], "--data", write_data(tmp_path, y_train=labels))


@pytest.mark.parametrize(("option", "sentence"), [
    (("--memory-beat-cycles", "0"), r"^beat_cycles of a memory must be at least 1, not 0$"),
    (("--memory-latency", "-1"), r"^latency of a memory must be at least 0, not -1$")])
def test_a_memory_wrong(leaves_all, command, option, sentence):
    leaves_all(sentence, *command["simulate"], *option)


DAMAGE = [
    (lambda path: path.unlink(), r"^There is no checkpoint "),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"is damaged or truncated"),
    (lambda path: path.write_bytes(b""), r"is damaged or truncated"),
    (lambda path: path.write_bytes(os.urandom(64)), r"is damaged or truncated"),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE)
def test_a_checkpoint_wrong(leaves_all, command, place, damage, sentence):
    damage(place / "train" / "checkpoint.safetensors")
    leaves_all(sentence, *command["compile"])
    leaves_all(sentence, "report", place / "build", "--baseline", place / "train")


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE[1:])
def test_a_checkpoint_to_go_on_from_wrong(leaves_all, command, place, damage, sentence):
    damage(place / "train" / "checkpoint.safetensors")
    leaves_all(sentence, *command["train"], "--resume")
    leaves_all(sentence, *command["report"])


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda build: (build / "network.safetensors").write_bytes(b""), r"^network\.safetensors in .* is damaged or was "),
    (lambda build: (build / "machine.json").unlink(), r" lacks machine\.json: compile the network again$"),
    (lambda build: (build / "manifest.json").write_text("{"), r"manifest\.json is damaged or cannot be read"),
    (lambda build: edit(build / "manifest.json", training=None), r"manifest\.json is damaged or was changed \(tr"),
    (lambda build: edit(build / "manifest.json", files={}), r"\(it has no checksum of espalier\.v\): compile the "),
])
@pytest.mark.parametrize("name", ON_BUILDS)
def test_a_damaged_build_wrong(leaves_all, command, place, name, damage, sentence):
    damage(place / "build")
    leaves_all(sentence, *command[name])


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["verify.json", "simulate.json", "synth.json"])
def test_a_damaged_result_wrong(leaves_all, command, place, name):
    (place / "build" / name).write_text("{")
    leaves_all(rf"{name} is damaged .*: run the command that wrote it again$", *command["report"])


def test_an_onnx_file_wrong(leaves_all, place, tmp_path):
    output = ["--output-dir", place / "build"]
    leaves_all(r"^Cannot read the ONNX file nowhere\.onnx", "compile", "nowhere.onnx", *output)
    (tmp_path / "net.onnx").write_bytes(b"no network")
    leaves_all(r"net\.onnx is not a whole ONNX file ", "compile", tmp_path / "net.onnx", *output)
    write_onnx(tmp_path / "net.onnx", "MatMul", np.full((64, 10), np.nan, dtype=np.float32))
    leaves_all(r"weights must be finite, and 'fc' holds nan at \(0, 0\)", "compile", tmp_path / "net.onnx", *output)
    write_onnx(tmp_path / "net.onnx", "Det", np.zeros((64, 10), dtype=np.float32))
    leaves_all(r"^Node 'second' \(Det\)", "compile", tmp_path / "net.onnx", *output)


def write_onnx(path, operator, weight):
    """A fully connected layer on 1×8×8 images, and ``operator`` in the place of what follows."""
    tensor, number = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["flat"]),
             onnx.helper.make_node("MatMul", ["flat", "fc"], ["logits"], name="first")]
    if operator != "MatMul":
        nodes.append(onnx.helper.make_node(operator, ["logits"], ["y"], name="second"))
    graph = onnx.helper.make_graph(nodes, "net", [tensor("x", number, ["n", 1, 8, 8])],
                                   [tensor(nodes[-1].output[0], number, ["n", 10])],
                                   [onnx.numpy_helper.from_array(weight, "fc")])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_learning_rate_that_no_word_holds_wrong(leaves_all, command):
    leaves_all(r"^The learning rate 1000 over a batch of 4 is too large for the formats of ", *command["compile"],
               "--learning-rate", "1000")


@pytest.mark.parametrize(("change", "sentence"), [
    ({"weight_depth": 8}, r"^The network needs weight_depth = \d+ and the machine has 8: enlarge it, prune more, or "),
    ({"acc_bits": 32}, r"^Sums of this network need accumulators of \d+ bits and the machine has 32$"),
    ({"word_bits": 8}, r" has 16 bits and the machine's words have 8$"),
    ({"lanes": 2.5}, r"^lanes of a machine must be a whole number, not 2\.5$"),
])
def test_a_given_machine_that_cannot_hold_the_network_wrong(leaves_all, place, change, sentence):
    edit(place / "build" / "machine.json", **change)
    leaves_all(sentence, "compile", place / "train", "--machine", place / "build" / "machine.json", "--output-dir",
               place / "build")


@pytest.mark.parametrize("name", EVERY)
def test_an_interrupt_when_results_are_put_in_their_place(leaves_all, command, monkeypatch, name):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    leaves_all(r"^Interrupted; what earlier commands wrote is intact$", *command[name], status=130)


@pytest.mark.parametrize(("name", "at"), [
    ("compile", "espalier.flow.compilation.verilog"), ("simulate", "espalier.flow.simulation.step_cycles"),
    ("verify", "espalier.flow.verification.compare"), ("synth", "espalier.flow.synthesis.synthesise"),
    ("report", "espalier.flow.reporting.render")])
def test_an_interrupt_half_way(leaves_all, command, monkeypatch, name, at):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(at, interrupted)
    leaves_all(r"^Interrupted; what earlier commands wrote is intact$", *command[name], status=130)


@pytest.mark.parametrize(("name", "files"), [*((name, 0) for name in EVERY), ("train", 1), ("train", 2),
                                             ("compile", 2)])
def test_a_full_disk_wrong(leaves_all, command, monkeypatch, name, files):
    """There is still room for ``files`` files."""
    monkeypatch.setattr(os, "fsync", room_for(files))
    leaves_all(r"No space left on device.* intact; make room", *command[name])


def room_for(files):
    """An ``os.fsync`` that fails after so many files."""
    left = iter(range(files))

    def fsync(handle):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return fsync


def test_a_full_disk_when_a_mismatch_is_bundled_wrong(capsys, command, place, monkeypatch):
    disagree(monkeypatch)
    fails(capsys, r"\(rerun it with: ", *command["verify"])
    before = tree(place)
    monkeypatch.setattr(os, "fsync", room_for(2))
    fails(capsys, r"No space left on device", *command["verify"])
    assert tree(place) == before


def disagree(monkeypatch):
    """Let the RTL have another loss than the definition."""
    traced = RtlEngine.traced_step
    monkeypatch.setattr(RtlEngine, "traced_step", lambda self, images, labels: {
        **(found := traced(self, images, labels)), "loss": found["loss"] + 1})


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
    (["--float32", "--batch-norm", "trained"], r"^Training in float32 .*, and trains batch norms: leave out "),
    (["--batch-norm", "kept"], r"'quantise\.batch_norm' must be 'folded' or 'trained', not 'kept'$"),
    (["--weight-bits", "40"], r"The width of a word must be in 2\.\.16 bits, not 40"),
    (["--learning-rate", "-1"], r"The learning rate must be a number above 0"),
    (["--rate", "step"], r"^The rate 'step' falls at milestones, and none are given: name them in a recipe "),
    (["--config", "nowhere.yaml"], r"^Configuration nowhere\.yaml cannot be read"),
])
def test_train_wrong(capsys, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    fails(capsys, sentence, "train", "--output-dir", "out", *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("exceptions", "flags", "sentence"), [
    ({"nowhere": 1.0}, [], r"^There is no layer 'nowhere' to give a density of its own: the weights are conv\.w"),
    ({"fc.bias": 1.0}, [], r"^There is no layer 'fc\.bias' to give a density of its own: "),
    ({"fc.weight": 1.0}, ["--freeze", "fc.weight"], r"^There is no layer 'fc\.weight' to give a density of its own: "),
    ({"fc.weight": 1.0}, ["--density", "0.1"], r"^The layers with a density of their own hold 94\.7% of "),
])
def test_densities_of_layers_are_checked_before_training_wrong(capsys, made, tmp_path, exceptions, flags, sentence):
    config(made, prune={"method": {"kind": "magnitude", "density": 0.5, "exceptions": exceptions},
                        "schedule": {"start": 0, "end": 1}}).save(tmp_path / "recipe.yaml")
    fails(capsys, sentence, "train", "--config", tmp_path / "recipe.yaml", *flags, "--output-dir", tmp_path / "out",
          "--dry-run")


@pytest.mark.parametrize(("factory", "sentence"), [
    ("strided", r"^Layer 'conv' has a stride of \(3, 3\) on a \(8, 8\) map: this engine takes strides that "),
    ("sigmoid", r"squash"),
    ("not_a_number", r"'fc\.weight'"),
    ("imaginary", r"^Layer 'fc' \(Linear\) has the complex weight 'fc\.weight', and weights must be real: give its "),
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


def test_a_float_network_is_not_compiled_wrong(capsys, made, tmp_path):
    assert run(capsys, "train", "--network", f"{made / 'net.py'}:make", "--data", made / "small.npz", "--float32",
               *SHORT, "--output-dir", tmp_path / "train")[0] == 0
    fails(capsys, r"not fixed-point: quantise the network first$", "compile", tmp_path / "train", "--output-dir",
          tmp_path / "build")


def test_a_machine_that_cannot_hold_the_network_wrong(capsys, made, tmp_path):
    fails(capsys, r"^No machine for this network fits ecp5-85f: .* 17 of 156 multipliers, \d+ of 2 block RAMs and ",
          "compile", made / "train", "--block-rams", "2", "--output-dir", tmp_path / "build")


@pytest.mark.parametrize(("grid", "sentence"), [
    ("4", r"^A grid is tiles down and across, such as 4x4, not '4'$"),
    ("0x2", r"^A grid is tiles down and across, such as 4x4, not '0x2'$"),
    ("3x1", r"^Layer .conv. has a map of 8 × 8, which 3 × 1 tiles do not divide into powers of two: take another "),
    ("4x1", r"^Lanes must be whole grids of 4 tiles, not 6$"),
])
def test_a_grid_that_divides_nothing_wrong(capsys, made, tmp_path, grid, sentence):
    fails(capsys, sentence, "compile", made / "train", "--rows", "1", "--lanes", "6", "--grid", grid, "--output-dir",
          tmp_path / "build")


@pytest.mark.parametrize(("given", "sentence"), [
    (("--elements", "3"), r"^Processing elements must be a power of two up to 16, not 3$"),
])
def test_processing_elements_that_cannot_be_wrong(capsys, made, tmp_path, given, sentence):
    fails(capsys, sentence, "compile", made / "train", *given, "--output-dir", tmp_path / "build")


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


def test_a_missing_tool_wrong(capsys, build, monkeypatch):
    def missing():
        raise ToolError("yosys 0.23 or newer is needed but yosys is not installed")

    monkeypatch.setattr(yosys, "find_yosys", missing)
    fails(capsys, r"^yosys 0\.23 or newer is needed ", "synth", build)
    assert not (build / "synth.json").exists()


def test_a_mismatch_wrong(capsys, build, monkeypatch):
    disagree(monkeypatch)
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
