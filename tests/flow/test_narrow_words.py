"""Compress to narrow words: widths by layer within an accuracy budget, and real-valued networks in few bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.commands import run

from espalier.errors import DataError, FormatError, UnsupportedError
from espalier.flow import (
    CompileRequest,
    CompressRequest,
    SimulateRequest,
    compile_network,
    compress_network,
    simulate,
    train_network,
)
from espalier.ir.differentiate import differentiate
from espalier.ir.verify import verify
from espalier.numerics.fixed import Fixed
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.loop import CHECKPOINT
from espalier.train.weight_widths import weight_bits


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Training directories of the digits: ``fixed`` and ``float``."""
    folder = tmp_path_factory.mktemp("trained")
    fixed = {"network": "digits", "data": "digits", "epochs": 2, "batch": 32, "quantise": {"probe_steps": 10}}
    train_network(TrainConfig.from_json(fixed), folder / "fixed")
    train_network(TrainConfig.from_json({**fixed, "quantise": None}), folder / "float")
    return folder


def compress(source: Path, output: Path, **request: object) -> tuple[dict, Checkpoint]:
    content = compress_network(source, output, CompressRequest(**request))
    assert content is not None
    return content, Checkpoint.load(output / CHECKPOINT)


def figures(content: dict) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in content["figures"]}


def check(content: dict, found: Checkpoint) -> None:
    """The record tells of the checkpoint, and its training step keeps every rule of the interpreter."""
    verify(differentiate(found.graph, found.config.loss, found.gradient_formats))
    widths = weight_bits(found)
    assert {layer["name"]: layer["weight_bits"] for layer in content["layers"]} == widths
    assert figures(content)["weight bits"] == sum(widths[name] * int(found.live[name].sum()) for name in widths)


@pytest.mark.parametrize("kind", ["fixed", "float"])
def test_each_layer_gets_the_fewest_bits_within_a_loss(trained, tmp_path, kind):
    content, found = compress(trained / kind, tmp_path / "out", bit_loss=2.0, images=300)
    check(content, found)
    numbers, images = figures(content), content["images"]
    assert content["method"] is None and content["chosen"] is None
    assert (images["calibration"], images["selection"]) == (0, 300)
    assert numbers["density"] == 1.0 and numbers["choices of widths tried"] > 5
    assert numbers["weight bits"] < 6 * numbers["live weights"] and len(set(weight_bits(found).values())) > 1
    assert numbers["test accuracy after"] > numbers["test accuracy before"] - 0.05
    looser, _ = compress(trained / kind, tmp_path / "looser", bit_loss=10.0, images=300)
    assert figures(looser)["weight bits"] < numbers["weight bits"]


def test_pruned_first_then_narrowed_in_blocks_and_the_engine_runs_it(made, tmp_path):
    content, found = compress(made / "train", tmp_path / "out", density=0.3, block=2, bit_loss=5.0)
    check(content, found)
    assert content["chosen"] == "reconstruct" and figures(content)["density"] == pytest.approx(0.3, abs=0.01)
    widths = weight_bits(found)
    assert len(set(widths.values())) > 1 and max(widths.values()) < 16
    design = compile_network(tmp_path / "out", tmp_path / "build",
                             CompileRequest(machine=made / "two-by-four.json"))
    assert design is not None
    assert simulate(tmp_path / "build", SimulateRequest(steps=2, dense=False, test_images=4))["steps"] == 2


def test_again_no_layer_gets_wider(trained, tmp_path):
    first, once = compress(trained / "fixed", tmp_path / "first", bit_loss=1.0, images=300)
    again, twice = compress(tmp_path / "first", tmp_path / "again", bit_loss=3.0, images=300)
    check(again, twice)
    assert all(weight_bits(twice)[name] <= width for name, width in weight_bits(once).items())
    assert figures(again)["test accuracy before"] == figures(first)["test accuracy after"]


def test_a_limit_to_what_is_tried(trained, tmp_path):
    content, _ = compress(trained / "fixed", tmp_path / "out", bit_loss=1.0, images=300, evaluations=3)
    assert figures(content)["choices of widths tried"] == 3 and "--evaluations 3" in content["command"]


def test_biases_of_their_own_width_have_the_fraction_length_of_their_weights(trained, tmp_path):
    _, found = compress(trained / "float", tmp_path / "out", bits=6, bias_bits=12)
    for layer in found.graph.layers():
        assert isinstance(layer.w.format, Fixed) and isinstance(layer.b.format, Fixed)
        assert (layer.w.format.width, layer.b.format.width, layer.out.format.width) == (6, 12, 6)
        assert layer.b.format.frac == layer.w.format.frac
    with pytest.raises(UnsupportedError, match=r"^The bias of 'conv1' must have the formats of its weight "):
        compile_network(tmp_path / "out", tmp_path / "build", CompileRequest(rows=1, lanes=4), dry_run=True)


def test_a_float_checkpoint_in_words_keeps_masks_and_log(trained, tmp_path):
    _, pruned = compress(trained / "float", tmp_path / "pruned", method="lamp", density=0.4)
    content, found = compress(tmp_path / "pruned", tmp_path / "out", bits=8)
    check(content, found)
    assert found.log == pruned.log and found.config.quantise is not None
    assert all(np.array_equal(found.live[name], pruned.live[name]) for name in found.live)
    assert all(value.format.width == 8 for value in found.graph.values())
    assert compile_network(tmp_path / "out", tmp_path / "build", CompileRequest(rows=1, lanes=4), dry_run=True)
    numbers = figures(content)
    assert numbers["test accuracy after"] > numbers["test accuracy before"] - 0.03


@pytest.mark.parametrize(("request_", "pairs"), [
    (CompileRequest(device="xc7z020", rows=4), True), (CompileRequest(device="xc7z020", rows=4, pairs=False), False),
    (CompileRequest(device="ecp5-85f", rows=4), False)])
def test_bytes_get_two_products_by_a_multiplier_where_the_part_makes_them(trained, tmp_path, request_, pairs):
    compress(trained / "float", tmp_path / "out", bits=8)
    design = compile_network(tmp_path / "out", tmp_path / "build", request_, dry_run=True)
    assert design is not None
    assert (design.machine.pairs, design.machine.word_bits) == (pairs, 8)


NORMED = '''
from collections import OrderedDict

from torch import nn


def make():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 8, 3, bias=False), norm=nn.BatchNorm2d(8), relu=nn.ReLU(),
                                     flatten=nn.Flatten(), fc=nn.Linear(288, 10)))
'''


def test_batch_norms_of_a_float_checkpoint_are_folded(tmp_path):
    (tmp_path / "net.py").write_text(NORMED)
    train_network(TrainConfig.from_json({"network": f"{tmp_path / 'net.py'}:make", "data": "digits", "epochs": 1,
                                         "batch": 32, "quantise": None}), tmp_path / "train")
    for options in ({"density": 0.5}, {"bits": 8}):
        content, found = compress(tmp_path / "train", tmp_path / "out", **options)
        assert {type(op).__name__ for op in found.graph.ops} == {"Conv2d", "Relu", "Reshape", "Linear"}
        assert figures(content)["test accuracy after"] > figures(content)["test accuracy before"] - 0.05


def test_a_network_whose_values_are_too_large_inside_is_scaled_down(trained, tmp_path):
    source = Checkpoint.load(trained / "float" / CHECKPOINT)
    larger = {name: source.state[name] * np.float32(1000) for name in ("conv1.weight", "conv1.bias", "conv2.bias")}
    larger["fc1.weight"] = source.state["fc1.weight"] / np.float32(1000)
    replace(source, state={**source.state, **larger}).save(tmp_path / "large.safetensors")
    for name in ("large", "float"):
        given = tmp_path / "large.safetensors" if name == "large" else trained / "float"
        content, found = compress(given, tmp_path / name, bits=8, equalise=False)
        check(content, found)
        assert figures(content)["test accuracy after"] > figures(content)["test accuracy before"] - 0.03


def test_a_published_network_in_few_bits(mobile, tmp_path):
    content, found = compress(mobile / "mobile.npz", tmp_path / "out", bits=10, data=str(mobile), test_images=4)
    check(content, found)
    assert content["images"]["test"] == 4 and "--test-images 4" in content["command"]
    assert {layer.b.format.width for layer in found.graph.layers()} == {16}
    content, found = compress(mobile / "mobile.npz", tmp_path / "auto", bit_loss=0.0, data=str(mobile), equalise=True)
    check(content, found)
    assert content["equalised"] and content["command"].endswith("--bit-loss 0.0 --equalise")
    assert all(value.format.width == 16 for value in found.graph.values() if value not in found.graph.parameters)


@pytest.mark.parametrize("equalise", [True, False])
def test_channels_are_equalised_or_not_as_asked(trained, tmp_path, equalise):
    content, found = compress(trained / "float", tmp_path / "out", bits=8, equalise=equalise)
    assert content["equalised"] is equalise and content["images"]["selection"] == 0
    kept, _ = compress(trained / "float", tmp_path / "either", bits=8)
    assert kept["images"]["selection"] == 1000
    assert figures(content)["test accuracy after"] > figures(content)["test accuracy before"] - 0.03
    check(content, found)


def test_a_budget_that_cannot_be_tried_wrong(trained, tmp_path):
    for options, option in (({"bits": 8}, "--bits"), ({"bit_loss": 1.0, "equalise": True}, "--equalise")):
        sentence = rf"^The checkpoint .*fixed has its number formats already: leave {option} out$"
        with pytest.raises(DataError, match=sentence):
            compress_network(trained / "fixed", tmp_path / "out", CompressRequest(**options))
    with pytest.raises(DataError, match=r"^Channels are equalised for words: give --bits or --bit-loss, or leave "
                                        r"--equalise out$"):
        compress_network(trained / "float", tmp_path / "out", CompressRequest(density=0.5, equalise=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("request_", "kind", "sentence"), [
    ({"bit_loss": 101.0}, DataError, r"^The loss allowed by narrower weights is in 0\.\.100 accuracy points, not 101$"),
    ({"bits": 8, "bias_bits": 17}, FormatError, r"^The width of a word must be in 2\.\.16 bits, not 17 "),
    ({"bit_loss": 1.0, "evaluations": 0}, DataError, r"^Choices of widths to try are at least 1, not 0$"),
    ({"bits": 8, "test_images": 0}, DataError, r"^Test images are at least 1, not 0$"),
    ({"density": 0.5, "evaluations": 5}, DataError, r"^A limit to the widths that are tried limits a search for "
     r"widths: give --bit-loss, such as 1, or leave --evaluations out$"),
    ({"density": 0.5, "bias_bits": 8}, DataError, r"^Biases have another width where weights get one: give --bits or "
                                                  r"--bit-loss, or leave --bias-bits out$"),
])
def test_a_request_wrong(request_, kind, sentence):
    with pytest.raises(kind, match=sentence):
        CompressRequest(**request_)


def test_what_is_printed_for_people(capsys, made, tmp_path):
    status, out, err = run(capsys, "compress", made / "train", "--output-dir", tmp_path / "out", "--bit-loss", "20")
    lines = out.splitlines()
    content = json.loads((tmp_path / "out" / "compress.json").read_text())
    assert status == 0 and lines[0].startswith("all that lived: ") and "weight bits (" in lines[1]
    assert all(f"{layer['name']} {layer['weight_bits']}" in lines[1] for layer in content["layers"])
    assert "widths as they are: " in err and " weight bits: " in err
