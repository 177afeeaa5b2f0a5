"""The build directory: complete, reproducible, and all or nothing."""

import errno
import json
import os
from dataclasses import replace
from io import StringIO

import numpy as np
import onnx
import pytest
from rich.console import Console

from espalier import zoo
from espalier.arch.machine import Machine
from espalier.data import Dataset, Split, load
from espalier.errors import DataError, FitError, FormatError, UnsupportedError
from espalier.flow import CompileRequest, Steps, compile_network
from espalier.flow.compilation import PASSES
from espalier.flow.design import load_design
from espalier.flow.images import hex_array, program_images
from espalier.flow.manifest import load_manifest
from espalier.flow.network import load_network
from espalier.frontend.onnx_export import to_onnx
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import Quantise
from espalier.train.optimise import Update

SMALL = CompileRequest(rows=1, lanes=2)
FILES = {"manifest.json", "machine.json", "graph.txt", "network.safetensors", "espalier.v", "program.hex", "table.hex",
         "index.hex", "weights.hex", "masters.hex", "momenta.hex"}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_has_all_its_files_and_nothing_beside_it(made):
    assert set(content(made / "build")) == FILES
    assert not [path for path in made.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("given", "message"), [
    ({"stream_weights": True}, "^Weights stream through a port to external memory: give its port bits$"),
    ({"stream_weights": True, "port_bits": 32, "lanes": 2, "batch": 4}, "^Weights that stream are updated after each"),
    ({"stream_weights": True, "machine": "machine.json"}, "^A given machine has its stream weights already")])
def test_weights_that_cannot_stream(given, message):
    with pytest.raises(DataError, match=message):
        CompileRequest(**given)


def test_equal_input_gives_equal_bytes(made, tmp_path):
    for name in ("one", "two"):
        compile_network(made / "train", tmp_path / name, SMALL)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_no_date_and_no_place_in_the_manifest(made, tmp_path):
    compile_network(made / "train", tmp_path / "build", SMALL)
    manifest = load_manifest(tmp_path / "build").to_json()
    manifest.pop("recipe")  # what the user typed
    assert str(tmp_path) not in json.dumps(manifest)
    assert all(used["used"] <= used["available"] for used in manifest["depths"].values() if used)
    assert manifest["index_bytes"] > 0


def test_a_build_reloads_without_its_checkpoint(made, build):
    design, trained = load_design(build), Checkpoint.load(made / "train" / "checkpoint.safetensors")
    assert design.graph == trained.graph
    assert all(np.array_equal(words, trained.state[name]) for name, words in design.state.items())
    images = program_images(design.network().program, design.state)
    assert all((build / name).read_bytes() == image for name, image in images.items())


@pytest.mark.parametrize("bits", [4, 9, 16, 32])
def test_images_are_twos_complement(bits):
    words = np.array([0, 1, -1, -(1 << bits - 1), (1 << bits - 1) - 1])
    lines = hex_array(words, bits).decode().splitlines()
    assert [int(line, 16) for line in lines] == [int(word) & (1 << bits) - 1 for word in words]
    assert {len(line) for line in lines} == {-(-bits // 4)}


@pytest.mark.parametrize("name", PASSES)
def test_stopping_after_a_pass_writes_nothing(made, tmp_path, name):
    assert compile_network(made / "train", tmp_path / "build", SMALL, stop_after=name) is None
    assert not (tmp_path / "build").exists()


def test_what_passes_made_can_be_read(made, tmp_path):
    told = StringIO()
    steps = Steps(Console(file=told))
    compile_network(made / "train", tmp_path / "build", SMALL, dump_passes=True, dry_run=True, steps=steps)
    for part in ('graph "net"', "conv: 1×8×8 -> 4×4×4", "image at activation 0", "blocks live", "FORWARD conv blocks"):
        assert part in told.getvalue()
    assert "  legalise: " in told.getvalue() and set(PASSES) <= steps.seconds.keys()
    assert not (tmp_path / "build").exists()


def test_the_learning_rate_follows_the_batch(made, tmp_path):
    design = compile_network(made / "train", tmp_path / "build", SMALL, dry_run=True)
    assert design.sgd.learning_rate == design.checkpoint.config.sgd.learning_rate * 2 / 16
    given = compile_network(made / "train", tmp_path / "build", replace(SMALL, learning_rate=0.01), dry_run=True)
    assert given.sgd.learning_rate == 0.01


def test_a_larger_batch_is_several_groups(made, tmp_path):
    design = compile_network(made / "train", tmp_path / "build", replace(SMALL, batch=6), dry_run=True)
    assert design.machine.groups and design.batch == 6


@pytest.mark.parametrize("fields", [{}, {"pairs": True}])
def test_a_machine_reads_what_it_writes_and_what_is_older(build, fields):
    described = {**json.loads((build / "machine.json").read_text()), "rows": 2, "word_bits": 8, **fields}
    machine = Machine.from_json(described)
    assert machine.to_json() == described and machine.hard_multipliers == machine.multipliers // (1 + machine.pairs)
    del described["pairs"]
    assert Machine.from_json(described) == replace(machine, pairs=False)


def test_a_given_machine_is_kept(made, build, tmp_path):
    request = CompileRequest(machine=build / "machine.json")
    assert compile_network(made / "train", tmp_path / "b", request, dry_run=True).machine == load_design(build).machine


@pytest.mark.parametrize(("given", "error", "sentence"), [
    (replace(SMALL, device="ecp6"), UnsupportedError, r"^A device must be one of .*, not 'ecp6'$"),
    (replace(SMALL, block_rams=3), FitError, r"^No machine for this network fits ecp5-85f: .* of 3 block RAMs and "),
    (replace(SMALL, rows=16), FitError, r"are not whole 16×16 blocks: "),
    (replace(SMALL, word_bits=8), FitError, r"has 16 bits and the machine's words have 8$"),
    (replace(SMALL, pairs=True), FitError, r"^A multiplier of ecp5-85f makes no two products$"),
    (replace(SMALL, device="xc7z020", pairs=True), FitError, r"^A multiplier of xc7z020 makes two products of words "),
    (replace(SMALL, device="generic", pairs=True), FitError, r"^Pairs of products are those of two rows, and the "),
    (replace(SMALL, device="generic", lanes=None), FitError, r"^generic sets no limit to multipliers"),
    (replace(SMALL, learning_rate=100.0), FormatError, r"^The learning rate 100 over a batch of 2 is too large for "),
    (replace(SMALL, batch=3), FitError, r"^A batch must be whole groups of lanes"),
])
def test_a_givenwrong(made, tmp_path, given, error, sentence):
    with pytest.raises(error, match=sentence):
        compile_network(made / "train", tmp_path / "build", given)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_is_too_small_wrong(made, build, tmp_path):
    fields = json.loads((build / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps({**fields, "weight_depth": 8}))
    with pytest.raises(FitError, match=r"^The network needs weight_depth = \d+ and the machine has 8: "):
        compile_network(made / "train", tmp_path / "b", CompileRequest(machine=tmp_path / "machine.json"))


@pytest.mark.parametrize(("change", "sentence"), [
    ({"lanes": "4"}, r"^lanes of a machine must be a whole number, not '4'$"),
    ({"lanes": 4.0}, r"^lanes of a machine must be a whole number, not 4\.0$"),
    ({"rows": True}, r"^rows of a machine must be a whole number, not True$"),
    ({"groups": 1}, r"^groups of a machine must be true or false, not 1$"),
    ({"pairs": 0}, r"^pairs of a machine must be true or false, not 0$"),
    ({"colour": 1}, r"^The machine description is not one of this version: .*'colour'$"),
])
def test_a_machine_of_other_fields_wrong(made, build, tmp_path, change, sentence):
    fields = json.loads((build / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(FitError, match=sentence):
        compile_network(made / "train", tmp_path / "b", CompileRequest(machine=tmp_path / "machine.json"))


def test_a_pass_wrong(made, tmp_path):
    with pytest.raises(UnsupportedError, match=r"^A pass is one of differentiate, .*, not 'magic'$"):
        compile_network(made / "train", tmp_path / "build", SMALL, stop_after="magic")


def test_an_update_without_the_buffer_wrong(made, tmp_path):
    found = Checkpoint.load(made / "train" / "checkpoint.safetensors")
    state = {name: words for name, words in found.state.items() if not name.endswith(".master")}
    config = replace(found.config, quantise=Quantise(update=Update.UNBUFFERED))
    replace(found, state=state, config=config).save(tmp_path / "c.safetensors")
    with pytest.raises(UnsupportedError, match=r"was trained with the update 'unbuffered': train it with 'buffered'$"):
        compile_network(tmp_path / "c.safetensors", tmp_path / "build", SMALL)


def test_a_directory_of_something_else_wrong(made, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match=r"'home' holds something that was not made here .*: choose another, or empty"):
        compile_network(made / "train", tmp_path / "home", SMALL)
    assert content(tmp_path / "home") == {"letter.txt": b"dear"}


def test_a_full_disk_leaves_the_earlier_build_whole(made, build, monkeypatch):
    before = content(build)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        compile_network(made / "train", build, SMALL)
    assert content(build) == before
    assert [path.name for path in build.parent.iterdir()] == ["build"]


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda build: (build / "weights.hex").write_bytes(b"00\n"), r"^weights\.hex in .* is damaged or was changed"),
    (lambda build: (build / "network.safetensors").unlink(), r" lacks network\.safetensors: compile"),
    (lambda build: (build / "manifest.json").unlink(), r" is no build directory \(there is no manifest\.json"),
    (lambda build: (build / "manifest.json").write_text("{"), r"manifest\.json is damaged or cannot be read"),
    (lambda build: (build / "manifest.json").write_text("[]"), r"does not hold a JSON object"),
    (lambda build: (build / "manifest.json").write_text("{}"), r"has format None and this version reads 1"),
])
def test_a_damaged_build_wrong(build, damage, sentence):
    damage(build)
    with pytest.raises(DataError, match=sentence):
        load_design(build)


def test_an_onnx_network_gets_formats_from_data(made, tmp_path):
    found = Checkpoint.load(made / "train" / "checkpoint.safetensors")
    data = str(made / "small.npz")
    graph, parameters = load_network(f"{made / 'net.py'}:make", load(data))
    (tmp_path / "net.onnx").write_bytes(to_onnx(graph, parameters).SerializeToString())
    design = compile_network(tmp_path / "net.onnx", tmp_path / "build", replace(SMALL, data=data), dry_run=True)
    assert [value.shape for value in design.graph.parameters] == [value.shape for value in found.graph.parameters]
    assert all(mask.all() for mask in design.live.values())


def test_published_weights_get_the_classes_of_the_data(tmp_path, monkeypatch):
    arrays = {name: tensor.numpy() for name, tensor in zoo.build("resnet20", 3).state_dict().items()
              if "shortcut" not in name and not name.endswith("num_batches_tracked")}
    place = tmp_path / "cifar10-weights" / "resnet20.npz"
    place.parent.mkdir()
    np.savez(place, **arrays)
    images = Dataset("colours", np.zeros((5, 3, 32, 32), np.uint8), np.arange(5), tuple("abcde"))
    split = Split(images, images)
    graph, parameters = load_network(str(place), split)
    assert graph.inputs[0].shape == (3, 32, 32) and graph.outputs[0].shape == (5,)
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path))
    for named in (load_network("pretrained:resnet20", split), load_network("pretrained:resnet20", split, 0, tmp_path)):
        assert all(np.array_equal(named[1][name], words) for name, words in parameters.items())
    with pytest.raises(DataError, match=r"^The weights .*none.npz cannot be read "):
        load_network(str(tmp_path / "none.npz"), split)
    with pytest.raises(UnsupportedError, match=r"^There is no pretrained network 'resnet': choose one of resnet20, "):
        load_network("pretrained:resnet", split)


def test_a_build_behind_a_symbolic_link_is_replaced_in_place(made, build, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(build, target_is_directory=True)
    compile_network(made / "train", link, SMALL)
    assert link.is_symlink() and load_design(build).machine.lanes == 2


@pytest.mark.parametrize("flag", ["rows", "lanes", "trees", "pairs", "word_bits", "multipliers", "block_rams"])
def test_a_machine_given_twice_wrong(build, flag):
    with pytest.raises(DataError, match=rf"^A given machine has its {flag.replace('_', ' ')} already: leave out that "):
        CompileRequest(machine=build / "machine.json", **{flag: 4})


def test_a_place_is_refused_before_anything_is_read_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^The output directory .* cannot be made, as .*file is a file: "):
        compile_network(tmp_path / "nowhere", tmp_path / "file" / "build", SMALL)
    with pytest.raises(DataError, match=r"^The output directory .* holds something that was not made here "):
        compile_network(tmp_path / "nowhere", tmp_path, SMALL)


@pytest.mark.parametrize(("changes", "found"), [
    ({"inputs": 2}, "2, 1 and 1"), ({"outputs": 2}, "1, 2 and 1"), ({"weights": False}, "1, 1 and 0")])
def test_an_onnx_network_that_is_no_classifier_wrong(tmp_path, changes, found):
    write_onnx(tmp_path / "net.onnx", **changes)
    with pytest.raises(UnsupportedError, match=rf"^Network 'net' must have one input, .* not {found}: export the "):
        load_network(str(tmp_path / "net.onnx"), load("digits"))


def write_onnx(path, inputs=1, outputs=1, weights=True):
    """A sum of ``inputs`` vectors of ten, and a fully connected layer where there are ``weights``."""
    names = ["x", "z"][:inputs]
    nodes = [onnx.helper.make_node("Add", [names[0], names[-1]], ["sum"])]
    if weights:
        nodes.append(onnx.helper.make_node("MatMul", ["sum", "fc.weight"], ["logits"]))
    results = ["logits" if weights else "sum", "sum"][:outputs]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "net", [tensor(name, onnx.TensorProto.FLOAT, ["n", 10]) for name in names],
                                   [tensor(name, onnx.TensorProto.FLOAT, ["n", 10]) for name in results],
                                   [onnx.numpy_helper.from_array(np.eye(10, dtype=np.float32), "fc.weight")] * weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
