"""Formats that calibration chooses obey every rule of the engine and hold what was seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from espalier import zoo
from espalier.errors import DataError, FormatError
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.types import Fixed, Format
from espalier.ir.verify import verify
from espalier.numerics.update import narrow
from espalier.train.calibrate import Headroom, Quantised, Widths, calibrate
from espalier.train.fraction_bits import holding_frac
from espalier.train.optimise import Update

LOSSES = ("softmax_cross_entropy", "square_hinge")


def images(count: int, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    return np.random.RandomState(5).uniform(-1, 127 / 128, (count, *shape)).astype(np.float32) * np.float32(scale)


@cache
def imported(network: str) -> tuple[Graph, dict[str, np.ndarray]]:
    return from_torch(zoo.build(network), zoo.input_shape(network), network)


def calibrated(network: str, widths: Widths, loss: str, scale: float = 1.0) -> Quantised:
    shape = zoo.input_shape(network)
    graph, parameters = imported(network)
    return calibrate(graph, parameters, images(8, shape, scale), np.arange(8), widths, loss, batch=4)


def fixed(format_: Format) -> Fixed:
    assert isinstance(format_, Fixed)
    return format_


def check_engine_rules(graph: Graph, gradients: dict[str, Format], loss: str) -> None:
    def gradient(name: str) -> Fixed:
        return fixed(gradients[f"{name}.grad"])
    for op in graph.ops:
        if type(op).__name__ in ("Relu", "ClippedRelu", "MaxPool", "Add", "Concat", "Reshape"):
            assert op.out.format == op.inputs[0].format
            assert gradient(op.out.name) == gradient(op.inputs[0].name)
            assert len({value.format for value in op.inputs}) == 1
    for layer in graph.layers():
        x, w, y = fixed(layer.x.format), fixed(layer.w.format), fixed(layer.out.format)
        weight_gradient = gradient(layer.w.name)
        assert y.frac <= x.frac + w.frac
        assert weight_gradient.width == 32 and weight_gradient.frac <= x.frac + gradient(layer.out.name).frac
        if layer.b is not None:
            assert layer.b.format == w and gradient(layer.b.name) == weight_gradient
            assert 0 <= x.frac <= x.width - 2
    logits = graph.outputs[0]
    assert 0 <= fixed(logits.format).frac <= 16
    if loss == "softmax_cross_entropy":
        assert gradient(logits.name).frac == gradient(logits.name).width - 2


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["digits", "lenet5", "cnn1x"])
def test_formats_obey_the_engine(network: str, loss: str) -> None:
    for widths in (Widths(), Widths(8, 8, 16), Widths(4, 6, 8)):
        found = calibrated(network, widths, loss)
        check_engine_rules(found.graph, found.gradient_formats, loss)
        verify(differentiate(found.graph, loss, found.gradient_formats))


class Branches(nn.Module):
    """A clipped rectifier, and a concatenation of what it reads with something much larger."""

    def __init__(self) -> None:
        super().__init__()
        self.clipped, self.large, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(4, 3)
        with torch.no_grad():
            self.clipped.weight.mul_(90)
            self.large.weight.mul_(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.clipped(x))
        return self.last(torch.cat([x, self.large(x)], 1).mean((2, 3)))


@pytest.mark.parametrize("loss", LOSSES)
def test_clipped_rectifiers_and_concatenations(loss: str) -> None:
    torch.manual_seed(0)
    graph, parameters = from_torch(Branches(), (1, 6, 6), "branches")
    for widths in (Widths(), Widths(8, 8, 8)):
        found = calibrate(graph, parameters, images(8, (1, 6, 6)), np.arange(8) % 3, widths, loss, batch=4)
        check_engine_rules(found.graph, found.gradient_formats, loss)
        verify(differentiate(found.graph, loss, found.gradient_formats))


def test_what_is_clipped_needs_no_more_range_than_the_bound() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(32, 3))
    with torch.no_grad():
        network[0].weight.mul_(90)
    graph, parameters = from_torch(network, (1, 6, 6), "clipped")
    found = calibrate(graph, parameters, images(8, (1, 6, 6)), np.arange(8) % 3, batch=4).graph
    assert [fixed(op.out.format).frac for op in found.ops[:2]] == [12, 12]  # 6 · 2^12 is a word of 16 bits


def test_a_bound_that_no_word_holds_wrong() -> None:
    """Sums that are read elsewhere, too, must be held, and then the bound is no whole number of units."""
    def forward(x: torch.Tensor) -> torch.Tensor:
        return functional.hardtanh(x, 0.0, 3.0).flatten(1) + x.flatten(1)
    module = nn.Sequential(Expression(forward), nn.Linear(4, 3))
    graph, parameters = from_torch(module, (1, 2, 2), "held")
    with pytest.raises(FormatError, match=r"^Words of 4 bits with at least 0 fraction bits must hold every value"):
        calibrate(graph, parameters, images(8, (1, 2, 2), 99.0), np.arange(8) % 3, Widths(4, 4, 8), batch=4)


class Expression(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


def test_nothing_saturates_on_the_calibration_data() -> None:
    found = calibrated("digits", Widths(), "softmax_cross_entropy")
    step = differentiate(found.graph, "softmax_cross_entropy", found.gradient_formats)
    image = fixed(found.graph.inputs[0].format)
    values = interpret(step, {**{value.name: found.state[value.name] for value in found.graph.parameters},
                              step.inputs[0].name: image.quantise(images(8, (1, 8, 8))), "labels": np.arange(8)})
    for value in step.values():
        if isinstance(value.format, Fixed):
            array = values[value.name]
            assert ((array > value.format.low) & (array < value.format.high)).all() or value in step.inputs, value


def test_state_is_the_quantised_network() -> None:
    shape = zoo.input_shape("digits")
    graph, parameters = imported("digits")
    found = calibrate(graph, parameters, images(8, shape), np.arange(8), batch=4)
    for value in found.graph.parameters:
        format_ = fixed(value.format)
        master = found.state[f"{value.name}.master"]
        unit = 2.0 ** (-format_.frac - 16)
        assert np.abs(master * unit - parameters[value.name]).max() <= unit / 2
        assert np.array_equal(found.state[value.name], narrow(master, format_))
        assert not found.state[f"{value.name}.momentum"].any() and found.state[f"{value.name}.live"].all()
    plain = calibrate(graph, parameters, images(8, shape), np.arange(8), batch=4, update=Update.UNBUFFERED)
    assert not any(name.endswith(".master") for name in plain.state)


def test_what_is_zero_throughout_has_a_format_to_be_trained_in() -> None:
    """A residual block that starts as its shortcut: weights of zero, and gradients of zero before them."""
    graph, parameters = imported("resnet20")
    quantised = calibrated("resnet20", Widths(), LOSSES[0])
    still = [layer for layer in graph.layers() if not parameters[layer.w.name].any()]
    assert len(still) == 9  # the last convolution of each block
    fracs = {layer.w.name: fixed(layer.w.format).frac for layer in quantised.graph.layers()}
    others = [frac for name, frac in fracs.items() if name not in {layer.w.name for layer in still}]
    assert all(fracs[layer.w.name] <= min(others) for layer in still)
    gradients = [fixed(quantised.gradient_formats[f"{name}.grad"]).frac for name in fracs]
    assert max(gradients) - min(gradients) < 16


def test_headroom_is_kept() -> None:
    shape = zoo.input_shape("digits")
    graph, parameters = imported("digits")
    tight = calibrate(graph, parameters, images(8, shape), np.arange(8), batch=4, headroom=Headroom(0, 0, 0))
    loose = calibrate(graph, parameters, images(8, shape), np.arange(8), batch=4, headroom=Headroom(2, 3, 0))
    for layer, wider in zip(tight.graph.layers(), loose.graph.layers(), strict=True):
        assert fixed(layer.w.format).frac - 2 == fixed(wider.w.format).frac
    assert fixed(tight.graph.outputs[0].format).frac - 3 == fixed(loose.graph.outputs[0].format).frac


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.floats(1e-6, 1e6), st.booleans(), st.integers(2, 16))
def test_holding_frac_holds_and_is_tight(magnitude: float, negative: bool, width: int) -> None:
    ends = (-magnitude, 0.0) if negative else (0.0, magnitude)
    frac = holding_frac(*ends, width)
    value = ends[0] if negative else ends[1]
    format_ = Fixed.of(width, frac)
    assert abs(format_.quantise(value) * format_.resolution - value) <= format_.resolution / 2
    if frac < 40:
        finer = Fixed.of(width, frac + 1)
        assert abs(finer.quantise(value) * finer.resolution - value) >= finer.resolution / 2


def test_images_in_their_range_use_every_bit() -> None:
    assert holding_frac(-1.0, 127 / 128, 16) == 15
    assert holding_frac(-1.0, 1.0, 16) == 14


def test_nan_weights_wrong() -> None:
    graph, parameters = imported("digits")
    bad = parameters["conv1.weight"].copy()
    bad[0, 0, 0, :2] = np.nan
    with pytest.raises(DataError, match=r"^Weights must be finite numbers, and 2 of the 72 in 'conv1.weight' are "
                                        r"not: train the network again, or with a lower learning rate$"):
        calibrate(graph, {**parameters, "conv1.weight": bad}, images(8, (1, 8, 8)), np.arange(8))


def test_data_too_large_wrong() -> None:
    with pytest.raises(FormatError, match=r"^Words of 16 bits with at least 0 fraction bits must hold every value, "
                                          r"and '\w+' lies in -9.\d+e\+05..9.\d+e\+05: scale the images or the weights "
                                          r"down, or use wider words$"):
        calibrated("digits", Widths(), "softmax_cross_entropy", 1e6)


def test_width_wrong() -> None:
    with pytest.raises(FormatError, match=r"^The width of a word must be in 2..16 bits, not 17 \(gradient\)$"):
        Widths(16, 16, 17)
