"""A network in fixed point with narrower weights: each layer its own width, activations as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from numpy.typing import NDArray

from espalier.compress.equalise import ChannelStatistics, Layer, bias_shift, by_group, groups_of
from espalier.numerics.fixed import Fixed
from espalier.train.calibrate import initial_state, with_weight_formats
from espalier.train.checkpoint import Checkpoint
from espalier.train.fraction_bits import holding_frac

FINER = 3  #: fraction bits beyond those that hold every weight which are tried: the largest weights saturate


def narrowed(checkpoint: Checkpoint, real: Mapping[str, NDArray], widths: Mapping[str, int],
             seen: Mapping[str, ChannelStatistics], bias_bits: int | None = None) -> Checkpoint:
    """The network with the weights of each layer in words of its width; biases make up for the mean of what that costs.

    A layer that has its width already keeps its words. Momenta start from zero.

    Parameters
    ----------
    real : mapping of ndarray
        Every weight and bias in real values.
    widths : mapping of int
        Bits of a weight, 2..16, by the weight's name, of every layer.
    seen : mapping of ChannelStatistics
        Of what each layer reads, by that value's name.
    bias_bits : int or None
        Bits of a bias. None is as many as the layer's weight gets, or as the bias has where it is wider than the
        weight already.

    Raises
    ------
    FormatError
        A value would have fewer fraction bits than the engine takes.
    """
    values, formats = dict(real), {}
    kept = {layer.w.name for layer in checkpoint.graph.layers() if _width(layer) == widths[layer.w.name]}
    for layer in checkpoint.graph.layers():
        name = layer.w.name
        if name in kept:
            continue
        wide = _bias_width(layer, widths[name], bias_bits)
        format_ = fitting_format(layer, real, widths[name], wide, seen[layer.x.name].variance)
        formats[name] = format_
        if layer.b is not None:
            formats[layer.b.name] = Fixed.of(wide, format_.frac)
            change = format_.values(format_.quantise(real[name])) - real[name]
            values[layer.b.name] = real[layer.b.name] + bias_shift(layer, change, seen[layer.x.name].mean)
    graph, gradients = with_weight_formats(checkpoint.graph, checkpoint.gradient_formats, formats)
    state = initial_state(graph, values, checkpoint.update)
    same = {name: array for name, array in checkpoint.state.items()
            if name.endswith(".live") or _parameter(name) not in formats}
    return replace(checkpoint, graph=graph, gradient_formats=gradients, state={**state, **same})


def fitting_format(layer: Layer, real: Mapping[str, NDArray], width: int, bias_width: int, variance: NDArray) -> Fixed:
    """The format of that width with which rounding the weights of ``layer`` disturbs its results least.

    That is, the sum of the squares of what it adds to each weight, times the variance of what the weight reads: a
    bias makes up for the mean. It holds every bias in ``bias_width`` bits at the same fraction length.

    Parameters
    ----------
    real : mapping of ndarray
        Weights and biases by name.
    variance : ndarray
        Of the input's channels (I,).
    """
    weight = real[layer.w.name]
    coarsest = holding_frac(float(weight.min()), float(weight.max()), width)
    most = coarsest + FINER
    if layer.b is not None:
        bias = real[layer.b.name]
        most = min(most, holding_frac(float(bias.min()), float(bias.max()), bias_width))
    formats = [Fixed.of(width, frac) for frac in range(min(coarsest, most), most + 1)]
    return min(formats, key=lambda format_: _disturbance(layer, weight, format_, variance))


def _disturbance(layer: Layer, weight: NDArray, format_: Fixed, variance: NDArray) -> float:
    squares = by_group((format_.values(format_.quantise(weight)) - weight) ** 2, layer).sum(axis=(1, 3))
    return float((squares * variance.reshape(groups_of(layer), -1)).sum())


def _width(layer: Layer) -> int:
    assert isinstance(layer.w.format, Fixed), f"{layer.w} is not in fixed point"
    return layer.w.format.width


def _bias_width(layer: Layer, width: int, bias_bits: int | None) -> int:
    if bias_bits is not None or layer.b is None:
        return width if bias_bits is None else bias_bits
    assert isinstance(layer.b.format, Fixed), f"{layer.b} is not in fixed point"
    return layer.b.format.width if layer.b.format.width > _width(layer) else width


def weight_bits(checkpoint: Checkpoint) -> dict[str, int]:
    """Bits of a weight of each layer in fixed point, by the weight's name; none of a float network."""
    return {layer.w.name: layer.w.format.width for layer in checkpoint.graph.layers()
            if isinstance(layer.w.format, Fixed)}


def _parameter(name: str) -> str:
    """The parameter that a tensor of the state belongs to."""
    for role in (".live", ".momentum", ".master"):
        name = name.removesuffix(role)
    return name
