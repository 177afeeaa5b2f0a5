"""Trained networks compressed without training: what is kept, what it is worth, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import bench.normed
import numpy as np
import pytest
from bench.commands import tree

from espalier.errors import DataError, FormatError, UnsupportedError
from espalier.flow import (
    CompileRequest,
    CompressRequest,
    VerifyRequest,
    compile_network,
    compress_network,
    train_network,
    verify,
)
from espalier.flow.compression import COMPRESS, Method
from espalier.ir.view import conv_shape
from espalier.numerics.fixed import Fixed
from espalier.numerics.live import expand_blocks, live_blocks
from espalier.numerics.update import narrow
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.loop import CHECKPOINT

LOW = 0.08  #: a density at which it shows how weights were chosen


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Training directories of the digits: ``fixed`` and ``float``."""
    folder = tmp_path_factory.mktemp("trained")
    fixed = {"network": "digits", "data": "digits", "epochs": 2, "batch": 32, "quantise": {"probe_steps": 10}}
    train_network(TrainConfig.from_json(fixed), folder / "fixed")
    train_network(TrainConfig.from_json({**fixed, "epochs": 1, "quantise": None}), folder / "float")
    return folder


def compress(source: Path, output: Path, **request: object) -> dict:
    content = compress_network(source, output, CompressRequest(**request))
    assert content is not None and content == json.loads((output / COMPRESS).read_text())
    return content


def figures(content: dict) -> dict[str, float]:
    assert {figure["provenance"] for figure in content["figures"]} == {"measured"}
    return {figure["name"]: figure["value"] for figure in content["figures"]}


def layers(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {layer.w.name: checkpoint.live[layer.w.name].reshape(conv_shape(checkpoint.graph, layer))
            for layer in checkpoint.graph.layers()}


@pytest.mark.parametrize("kind", ["fixed", "float"])
@pytest.mark.parametrize("method", [method.value for method in Method])
def test_the_result_is_a_checkpoint_with_the_density_asked_for_and_zeros_where_dead(trained, tmp_path, kind, method):
    content = compress(trained / kind, tmp_path / "out", method=method, density=0.3, images=200)
    found, before = Checkpoint.load(tmp_path / "out" / CHECKPOINT), Checkpoint.load(trained / kind / CHECKPOINT)
    assert (found.graph, found.config, found.log) == (before.graph, before.config, before.log)
    masks = layers(found)
    assert figures(content)["density"] == pytest.approx(0.3, abs=0.001)
    assert content["layers"] == [{"name": name, "weights": mask.size, "live_weights": int(mask.sum()),
                                  "weight_bits": 16 if kind == "fixed" else None} for name, mask in masks.items()]
    for name in masks:
        dead = ~found.live[name]
        for role in ("", ".momentum", ".master") if kind == "fixed" else ("", ".momentum"):
            array = found.state[f"{name}{role}"]
            assert not array[dead].any()
            if method != "reconstruct":
                assert np.array_equal(array[~dead], before.state[f"{name}{role}"][~dead])
            elif role == ".momentum":
                assert not array.any()
    assert content["chosen"] in [tried.value for tried in Method(method).tried]


@pytest.fixture(scope="module")
def normed(tmp_path_factory) -> Path:
    """A training of a residual network whose batch norms are trained in fixed point."""
    folder = tmp_path_factory.mktemp("normed")
    train_network(TrainConfig.from_json({
        "network": f"{bench.normed.__file__}:residual", "data": "digits", "epochs": 3, "batch": 32,
        "quantise": {"probe_steps": 10, "batch_norm": "trained"}}), folder)
    return folder


@pytest.mark.parametrize("asked", [
    {"method": "lamp", "density": 0.4}, {"density": 0.4}, {"density": 0.4, "bit_loss": 5.0}], ids=str)
def test_batch_norms_trained_in_fixed_point_stay_as_they_are(normed, tmp_path, asked):
    content = figures(compress(normed, tmp_path / "out", **asked))
    found, before = Checkpoint.load(tmp_path / "out" / CHECKPOINT), Checkpoint.load(normed / CHECKPOINT)
    assert content["density"] == pytest.approx(0.4, abs=0.001)
    assert content["test accuracy after"] > content["test accuracy before"] - 0.15
    scalars = {value.name for value in before.graph.parameters if not isinstance(value.format, Fixed)}
    assert len(scalars) == 16 and all(np.array_equal(found.state[name], before.state[name]) for name in scalars)
    if "bit_loss" in asked:
        assert content["weight bits"] < 12 * content["live weights"]
        compile_network(tmp_path / "out", tmp_path / "build", CompileRequest(rows=1, lanes=2))
        assert verify(tmp_path / "build", VerifyRequest(steps=1)).differing == 0


def test_rebuilt_weights_are_their_masters_rounded(trained, tmp_path):
    compress(trained / "fixed", tmp_path / "out", density=0.2)
    found = Checkpoint.load(tmp_path / "out" / CHECKPOINT)
    for value in found.graph.parameters:
        assert np.array_equal(narrow(found.state[f"{value.name}.master"], value.format), found.state[value.name])


@pytest.mark.parametrize("kind", ["fixed", "float"])
def test_reconstruction_beats_lamp_at_equal_low_density(trained, tmp_path, kind):
    rebuilt = figures(compress(trained / kind, tmp_path / "rebuilt", density=LOW))
    lamp = figures(compress(trained / kind, tmp_path / "lamp", density=LOW, method="lamp"))
    assert rebuilt["density"] == pytest.approx(lamp["density"], abs=0.001)
    assert rebuilt["test accuracy before"] == lamp["test accuracy before"]
    assert rebuilt["test accuracy after"] > lamp["test accuracy after"] + 0.1


@pytest.mark.parametrize("method", ["rules", "lamp", "magnitude", "reconstruct"])
def test_blocks_stay_whole_and_the_compiler_takes_them(trained, tmp_path, method):
    compress(trained / "fixed", tmp_path / "out", density=0.4, block=4, method=method)
    for mask in layers(Checkpoint.load(tmp_path / "out" / CHECKPOINT)).values():
        assert np.array_equal(mask, expand_blocks(live_blocks(mask, 4), 4, mask.shape))
    design = compile_network(tmp_path / "out", tmp_path / "build", CompileRequest(rows=4, lanes=4), dry_run=True)
    assert design is not None and not (tmp_path / "build").exists()


@pytest.mark.parametrize("method", ["rules", "lamp", "reconstruct"])
def test_the_sparsest_network_within_a_loss(trained, tmp_path, method):
    content = compress(trained / "fixed", tmp_path / "out", loss=3.0, method=method, images=400)
    chosen, images = figures(content), content["images"]
    assert images["selection"] == (200 if method == "reconstruct" else 400)
    assert images["calibration"] == (200 if method == "reconstruct" else 0)
    assert chosen["density"] < 0.6
    tighter = compress(trained / "fixed", tmp_path / "tight", loss=0.5, method=method, images=400)
    assert chosen["density"] < figures(tighter)["density"]
    assert images["selection_accuracy"] >= tighter["images"]["selection_accuracy"] - 0.03


def test_rules_are_no_worse_than_each_of_them(trained, tmp_path):
    best = compress(trained / "fixed", tmp_path / "rules", loss=2.0, method="rules")
    each = {rule: figures(compress(trained / "fixed", tmp_path / rule, loss=2.0, method=rule))["density"]
            for rule in ("flat", "triangular", "relative")}
    assert figures(best)["density"] == min(each.values()) == each[best["chosen"]]


def test_the_same_request_gives_the_same_files(trained, tmp_path):
    source = shutil.copytree(trained / "fixed", tmp_path / "in")
    compress(source, tmp_path / "out", density=0.2, images=100)
    first = tree(tmp_path / "out")
    compress(source / CHECKPOINT, tmp_path / "out", density=0.2, images=100)
    assert tree(tmp_path / "out")[CHECKPOINT] == first[CHECKPOINT]
    compress(source, tmp_path / "out", density=0.2, images=100)
    assert tree(tmp_path / "out") == first
    compress(source, tmp_path / "out", density=0.2, images=100, seed=1)
    assert tree(tmp_path / "out")[CHECKPOINT] != first[CHECKPOINT]


def test_compressed_again_the_dead_stay_dead(trained, tmp_path):
    compress(trained / "fixed", tmp_path / "first", density=0.5, method="lamp")
    once = layers(Checkpoint.load(tmp_path / "first" / CHECKPOINT))
    for method in Method:
        compress(tmp_path / "first", tmp_path / method.value, density=0.2, method=method.value, images=100)
        again = layers(Checkpoint.load(tmp_path / method.value / CHECKPOINT))
        assert not any((again[name] & ~once[name]).any() for name in once)
    with pytest.raises(UnsupportedError, match=r"^Of the network's weights 50\.00% live, and dead ones stay dead: give "
                                               r"a density of at most 0\.5, not 0\.8$"):
        compress_network(tmp_path / "first", tmp_path / "more", CompressRequest(density=0.8))


def test_the_command_of_the_record_asks_for_the_same(trained, tmp_path):
    request = CompressRequest(method="lamp", density=0.25, block=2, images=50, data="digits", seed=3)
    assert request.command(Path("in put"), Path("out")) == (
        "espalier compress 'in put' --output-dir out --method lamp --density 0.25 --block 2 --images 50 --data digits "
        "--seed 3")


def test_a_dry_run_checks_and_writes_nothing(trained, tmp_path):
    assert compress_network(trained / "fixed", tmp_path / "out", CompressRequest(density=0.2), dry_run=True) is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"^The images to look at are 1\.\.1438 of the training set 'digits-train', "
                                        r"not 1439$"):
        compress_network(trained / "fixed", tmp_path / "out", CompressRequest(density=0.2, images=1439), dry_run=True)


def test_where_writing_fails_the_earlier_result_stays(trained, tmp_path, monkeypatch):
    compress(trained / "fixed", tmp_path / "out", density=0.2, method="lamp")
    before = tree(tmp_path)

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("espalier.flow.compression.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        compress_network(trained / "fixed", tmp_path / "out", CompressRequest(density=0.1, method="lamp"))
    assert tree(tmp_path) == before


def test_a_loss_that_cannot_be_met_wrong(trained, tmp_path):
    """Where blocks are whole layers but for the taps, or one weight of each layer lives, none is to spare."""
    compress(trained / "fixed", tmp_path / "least", density=1e-6, method="lamp")
    assert sum(int(mask.sum()) for mask in layers(Checkpoint.load(tmp_path / "least" / CHECKPOINT)).values()) == 3
    for source, block in ((trained / "fixed", 64), (tmp_path / "least", 1)):
        with pytest.raises(UnsupportedError, match=r"^No sparser network was found within 0 accuracy points of the "
                                                   r"[0-9.]*% of 300 training images that the whole one reaches: "
                                                   r"allow a larger loss, or give a density$"):
            compress_network(source, tmp_path / "out", CompressRequest(loss=0.0, images=300, method="relative",
                                                                       block=block))
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_the_input_wrong(trained, tmp_path):
    source = shutil.copytree(trained / "fixed", tmp_path / "in")
    sentence = r"^The output directory .*in holds the network to compress: choose another, so that both are kept$"
    for given in (source, source / CHECKPOINT):
        with pytest.raises(DataError, match=sentence):
            compress_network(given, source, CompressRequest(density=0.2))
    compress(source, tmp_path / "again", density=0.5, method="lamp")
    with pytest.raises(DataError, match=r"^The output directory .*again holds the network to compress"):
        compress_network(tmp_path / "again", tmp_path / "again", CompressRequest(density=0.2))


@pytest.mark.parametrize("method", ["reconstruct", "rules", "lamp"])
def test_published_weights(mobile, tmp_path, method):
    content = compress(mobile / "mobile.npz", tmp_path / "out", method=method, density=0.5, data=str(mobile))
    found = Checkpoint.load(tmp_path / "out" / CHECKPOINT)
    assert {type(op).__name__ for op in found.graph.ops} == {"Conv2d", "ClippedRelu", "Add", "Relu", "AveragePool",
                                                             "Reshape"}
    assert found.graph.inputs[0].shape == (3, 8, 8) and found.graph.outputs[0].shape == (2,)
    assert all(value.format.width == 16 for value in found.graph.values())
    assert figures(content)["density"] == pytest.approx(0.5, abs=0.02) and content["images"]["test"] == 10
    again = compress(tmp_path / "out", tmp_path / "again", method=method, density=0.3)  # the same data, scaled again
    assert figures(again)["test accuracy before"] == figures(content)["test accuracy after"]


def test_top_two_of_two_classes_are_always_right(mobile, tmp_path):
    content = compress(mobile / "mobile.npz", tmp_path / "out", method="magnitude", loss=0.0, data=str(mobile), top=2)
    assert content["top"] == 2 and "--top 2" in content["command"]
    assert figures(content)["test accuracy before"] == figures(content)["test accuracy after"] == 1.0


def test_words_of_other_widths(mobile, trained, tmp_path):
    compress(mobile / "mobile.npz", tmp_path / "out", method="lamp", density=0.5, data=str(mobile), bits=9)
    found = Checkpoint.load(tmp_path / "out" / CHECKPOINT)
    biases = {layer.b for layer in found.graph.layers()}
    assert all(value.format.width == (16 if value in biases else 9) for value in found.graph.values())
    with pytest.raises(DataError, match=r"^The checkpoint .*fixed has its number formats already: leave --bits out$"):
        compress(trained / "fixed", tmp_path / "again", density=0.5, bits=9)


def test_an_unknown_pretrained_network_wrong(tmp_path):
    with pytest.raises(UnsupportedError, match=r"^There is no pretrained network 'none': choose one of resnet20, "):
        compress_network(Path("pretrained:none"), tmp_path / "out", CompressRequest(density=0.5))


@pytest.mark.parametrize(("request_", "kind", "sentence"), [
    ({"density": 0.5, "top": 0}, DataError, r"^An image is recognised by at least 1 of the largest logits, not 0$"),
    ({"density": 0.5, "bits": 17}, FormatError, r"^The width of a word must be in 2\.\.16 bits, not 17 \(weight\)$"),
    ({}, DataError, r"^How far to compress is told by a density or by the accuracy points that may be lost: give "
                    r"--density, such as 0\.1, or --loss, such as 1, or for narrower weights --bit-loss, such as 1$"),
    ({"density": 0.5, "loss": 1.0}, DataError, r"^How far .* may be lost: leave one of --density and --loss out$"),
    ({"density": 0.5, "method": "magic"}, UnsupportedError, r"^A method of compression without training is one of "
     r"rules, flat, triangular, relative, magnitude, erdos_renyi, lamp, reconstruct, not 'magic'$"),
    ({"density": 1.5}, UnsupportedError, r"^A density is above 0 and at most 1, and that of the network is 1\.5$"),
    ({"density": float("nan")}, UnsupportedError, r"^A density is above 0 and at most 1, .* is nan$"),
    ({"loss": -1.0}, DataError, r"^The loss allowed is in 0\.\.100 accuracy points, not -1$"),
    ({"density": 0.5, "block": 0}, UnsupportedError, r"^The edge of a block is at least 1, not 0$"),
])
def test_a_request_wrong(request_, kind, sentence):
    with pytest.raises(kind, match=sentence):
        CompressRequest(**request_)


def test_narrow_updates_have_no_masters(trained, tmp_path):
    source = Checkpoint.load(trained / "fixed" / CHECKPOINT)
    assert source.config.quantise is not None
    quantise = replace(source.config.quantise, update=type(source.config.update)("unbuffered"))
    state = {name: array for name, array in source.state.items() if not name.endswith(".master")}
    replace(source, config=replace(source.config, quantise=quantise), state=state).save(tmp_path / "narrow.safetensors")
    content = compress(tmp_path / "narrow.safetensors", tmp_path / "out", density=0.2)
    assert figures(content)["test accuracy after"] > 0.5
