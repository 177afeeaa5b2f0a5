"""Weights of each layer's own width: formats that the engine takes, and words that disturb the results least."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier import zoo
from espalier.compress.equalise import ChannelStatistics
from espalier.errors import FormatError
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate
from espalier.ir.interpret import interpret
from espalier.ir.verify import verify
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import narrow
from espalier.train.calibrate import calibrate, with_weight_formats
from espalier.train.channels import channel_statistics, layer_inputs
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.weight_widths import fitting_format, narrowed, weight_bits

NAMES = ("conv1.weight", "conv2.weight", "fc1.weight")


@cache
def made() -> tuple[Checkpoint, dict[str, np.ndarray], np.ndarray, dict[str, ChannelStatistics]]:
    """The digits' network in 16 bits, its real weights, images, and what they show of its channels."""
    graph, parameters = from_torch(zoo.build("digits"), zoo.input_shape("digits"), "digits")
    images = np.random.default_rng(1).uniform(-1, 1, (8, *zoo.input_shape("digits"))).astype(np.float32)
    found = calibrate(graph, parameters, images, np.arange(8), batch=4)
    checkpoint = Checkpoint(found.graph, found.gradient_formats, found.state, TrainConfig())
    seen = channel_statistics(found.graph, checkpoint.weights, images, layer_inputs(found.graph))
    return checkpoint, {name: array.astype(np.float64) for name, array in parameters.items()}, images, seen


def fixed(value: object) -> Fixed:
    assert isinstance(value, Fixed)
    return value


@settings(deadline=None, max_examples=15, derandomize=True)
@given(widths=st.tuples(*3 * (st.integers(2, 16),)), bias_bits=st.sampled_from([None, 16]))
def test_the_checkpoint_keeps_every_rule(tmp_path_factory, widths, bias_bits):
    checkpoint, real, _, seen = made()
    found = narrowed(checkpoint, real, dict(zip(NAMES, widths, strict=True)), seen, bias_bits)
    verify(differentiate(found.graph, "softmax_cross_entropy", found.gradient_formats))
    assert weight_bits(found) == dict(zip(NAMES, widths, strict=True))
    for layer in found.graph.layers():
        weight, bias = fixed(layer.w.format), fixed(layer.b.format)
        assert bias.frac == weight.frac and bias.width in (weight.width, bias_bits)
        assert fixed(layer.out.format).frac <= fixed(layer.x.format).frac + weight.frac
        assert np.array_equal(narrow(found.state[f"{layer.w.name}.master"], weight), found.state[layer.w.name])
    path = tmp_path_factory.mktemp("narrow") / "checkpoint.safetensors"
    found.save(path)
    assert Checkpoint.load(path).graph == found.graph


def test_a_layer_that_has_its_width_keeps_its_words():
    checkpoint, real, _, seen = made()
    found = narrowed(checkpoint, real, dict(zip(NAMES, (16, 5, 16), strict=True)), seen)
    for name in checkpoint.state:
        assert np.array_equal(found.state[name], checkpoint.state[name]) == (
            not name.startswith("conv2") or name.endswith((".live", ".momentum")))


def test_narrower_weights_disturb_the_logits_more_and_the_mean_stays():
    checkpoint, real, images, seen = made()

    def logits(state: Checkpoint) -> np.ndarray:
        graph = state.graph
        words = fixed(graph.inputs[0].format).quantise(images)
        out = graph.outputs[0]
        return fixed(out.format).values(interpret(graph, {graph.inputs[0].name: words, **state.weights})[out.name])

    exact = logits(checkpoint)
    errors = [logits(narrowed(checkpoint, real, dict.fromkeys(NAMES, width), seen, 16)) - exact
              for width in (12, 8, 5, 3)]
    spreads = [float(np.square(error).mean()) for error in errors]
    assert spreads == sorted(spreads) and spreads[0] < 1e-4 * np.square(exact).mean()


def test_formats_saturate_what_is_rare_and_weigh_what_is_read():
    checkpoint, _, _, _ = made()
    layer = checkpoint.graph.layers()[1]
    weight = np.full(layer.w.shape, 3 / 32)
    weight.reshape(-1)[0] = 1.0
    bias = np.zeros(layer.b.shape)
    real = {layer.w.name: weight, layer.b.name: bias}
    channels = np.ones(layer.x.shape[0])
    assert fitting_format(layer, real, 4, 16, channels) == Fixed.of(4, 5)  # 1.0 saturates to 7 / 32
    first = channels * 0
    first[0] = 1e3
    few = weight[:, :1] * 0 + [[[1.0]]]
    outlying = weight.copy()
    outlying[:, :1] = few
    assert fitting_format(layer, {**real, layer.w.name: outlying}, 4, 16, first) == Fixed.of(4, 2)
    assert fitting_format(layer, {**real, layer.b.name: bias + 3.0}, 4, 4, channels) == Fixed.of(4, 1)


def test_results_get_coarser_with_what_they_are_made_of():
    checkpoint, _, _, _ = made()
    layer = checkpoint.graph.layers()[1]
    coarse = Fixed.of(4, 1 - fixed(layer.x.format).frac)
    graph, gradients = with_weight_formats(checkpoint.graph, checkpoint.gradient_formats,
                                           {layer.w.name: coarse, layer.b.name: coarse})
    verify(differentiate(graph, "softmax_cross_entropy", gradients))
    found = next(op for op in graph.layers() if op.w.name == layer.w.name)
    assert fixed(found.out.format) == Fixed.of(16, 1)
    rectified, = graph.users(found.out)
    assert rectified.out.format == found.out.format


def test_weights_so_coarse_that_nothing_is_left_wrong():
    checkpoint, _, _, _ = made()
    layer = checkpoint.graph.layers()[-1]
    coarse = Fixed.of(2, -30)
    with pytest.raises(FormatError, match=r"^'fc1' must have at least 0 fraction bits, and with weights this coarse it "
                                          r"has -[0-9]+: use wider weights$"):
        with_weight_formats(checkpoint.graph, checkpoint.gradient_formats, {layer.w.name: coarse, layer.b.name: coarse})


@pytest.mark.parametrize("chunk_images", [1, 3, 8])
def test_statistics_of_channels_are_those_of_all_images(monkeypatch, chunk_images):
    checkpoint, _, images, seen = made()
    graph = checkpoint.graph
    size = 8 * sum(int(np.prod(value.shape)) for value in graph.values())
    monkeypatch.setattr("espalier.train.channels.CHUNK_BYTES", chunk_images * size)
    chunked = channel_statistics(graph, checkpoint.weights, images, layer_inputs(graph))
    words = fixed(graph.inputs[0].format).quantise(images)
    values = interpret(graph, {graph.inputs[0].name: words, **checkpoint.weights})
    for value in layer_inputs(graph):
        real = np.moveaxis(fixed(value.format).values(values[value.name]), 1, 0).reshape(value.shape[0], -1)
        for each in (seen[value.name], chunked[value.name]):
            assert np.array_equal(each.largest, np.abs(real).max(axis=1))
            assert np.allclose(each.mean, real.mean(axis=1)) and np.allclose(each.variance, real.var(axis=1))
