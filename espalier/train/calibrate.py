"""From a float network and data to number formats: one fraction length for each tensor.

The rules that the engine makes, beside those of ``ir/verify.py``:

- A rectifier, a max pool, a sum, a concatenation and a reshape have the format of their inputs, and so do their
  gradients: these values form one *family* with one format.
- What only a clipped rectifier reads needs no more range than the clipped result: saturation does the same.
  A format that holds the bound has room enough.
- A bias has the format of its layer's weight, and their gradients have one format: a bias is the weight
  of a constant one. That one must be a word, so the input of a layer with a bias has at most
  ``width - 2`` fraction bits (and at least 0).
- No result is finer than the products it sums.
- A batch norm is a product and the weight of a constant one, too, and so is the gradient through it: its input has at
  most ``width - 2`` fraction bits. What each channel has one of stays float.
- The gradient of softmax logits has ``width - 2`` fraction bits: it lies in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from espalier.errors import FormatError
from espalier.ir.differentiate import differentiate, gradient_name, slope_name
from espalier.ir.graph import Graph
from espalier.ir.interpret import fixed
from espalier.ir.ops import Add, BatchNorm, ClippedRelu, Concat, Conv2d, Linear, MaxPool, Op, Relu, Reshape
from espalier.ir.types import Format, Value
from espalier.ir.verify import verify
from espalier.ir.verify_batch_norm import scalars_of
from espalier.numerics.fixed import Fixed
from espalier.numerics.loss import LOSS_FRAC
from espalier.numerics.update import GRADIENT_BITS, master_format, narrow
from espalier.train.fraction_bits import COARSEST, FINEST, Families, holding_frac
from espalier.train.optimise import Update, state_names, update_of
from espalier.train.ranges import Ranges, check_numbers, factor_name, observe

WEIGHT_GRADIENT_HEADROOM = 6  #: bits above the largest sum over a batch that was seen
FACTOR_HEADROOM = 1           #: bits of a batch norm's factors beyond those of weights
SLOPE_HEADROOM = 2            #: bits of the slopes in its gradient beyond those of gradients


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits of a word, 2..16, of weights, activations (and images) and gradients of activations."""

    weight: int = 16
    activation: int = 16
    gradient: int = 16

    def __post_init__(self) -> None:
        for name in ("weight", "activation", "gradient"):
            if not 2 <= getattr(self, name) <= 16:
                raise FormatError(f"The width of a word must be in 2..16 bits, not {getattr(self, name)} ({name})")


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bits kept above the largest magnitude seen, because training changes it. Images need none.

    Negative headroom saturates what was seen, for finer steps.
    """

    weight: int = 1
    activation: int = 1
    gradient: int = 2


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A network in fixed point.

    Parameters
    ----------
    graph : Graph
        The inference graph, all formats fixed but for what a batch norm has one of for each channel.
    gradient_formats : dict of Format
        For ``differentiate``, by name of the gradient or slope.
    state : dict of ndarray
        Weights, masters, momenta (zero) and live masks (all live).
    """

    graph: Graph
    gradient_formats: dict[str, Format]
    state: dict[str, NDArray]


def calibrate(graph: Graph, parameters: Mapping[str, NDArray], images: NDArray, labels: NDArray[np.int64],
              widths: Widths | None = None, loss: str = "softmax_cross_entropy", *, batch: int = 64,
              headroom: Headroom | None = None, update: Update = Update.BUFFERED) -> Quantised:
    """Choose formats for the float ``graph`` from one look at data, and quantise its ``parameters``.

    ``batch`` is that of the training to come: weight gradients are sums over it.

    Raises
    ------
    DataError
        A weight is NaN or infinite.
    FormatError
        A tensor is so large that no format of its width holds it.
    """
    check_numbers(parameters)
    ranges = observe(differentiate(graph, loss), parameters, images, labels, batch)
    return quantise(graph, parameters, ranges, widths or Widths(), loss, headroom or Headroom(), update)


def quantise(graph: Graph, parameters: Mapping[str, NDArray], ranges: Ranges, widths: Widths, loss: str,
             headroom: Headroom, update: Update = Update.BUFFERED) -> Quantised:
    """Choose formats from ``ranges`` (of the values of the float training graph) and quantise the parameters."""
    check_numbers(parameters)
    wild = next((name for name, ends in ranges.items() if not all(map(math.isfinite, ends))), None)
    if wild is not None:
        raise FormatError(f"Formats are chosen from finite numbers, and {wild!r} was not finite in calibration: lower "
                          f"the learning rate or scale the images down")
    words = verify(_in_words(graph, _forward_formats(graph, ranges, widths, headroom)))
    gradients = _gradient_formats(words, ranges, widths, loss, headroom)
    return Quantised(words, gradients, initial_state(words, parameters, update))


def with_weight_formats(graph: Graph, gradients: Mapping[str, Format], formats: Mapping[str, Fixed]
                        ) -> tuple[Graph, dict[str, Format]]:
    """A fixed-point ``graph`` and its gradient formats with other ``formats`` of weights and biases, by name.

    A weight and its bias have one fraction length; the bias may be wider. Where a product has fewer fraction bits now
    than a result that it is summed to, the result loses fraction bits, and so do those that share its format.

    Raises
    ------
    FormatError
        A value would have fewer fraction bits than the engine takes.
    """
    forward = _joined(graph)
    for value in _words(graph):
        forward.at_most(value.name, formats[value.name].frac if value.name in formats else _frac(value))
    for op in graph.layers():
        forward.at_most_sum(op.out.name, op.x.name, op.w.name)
    for norm in _norms(graph):
        forward.at_most(factor_name(norm.out.name), fixed(norm.factor).frac)
        forward.at_most_sum(norm.out.name, norm.x.name, factor_name(norm.out.name))
    forward.settle()
    _check_fine(graph, forward)
    words = graph.with_formats({value.name: Fixed.of(formats.get(value.name, value.format).width,
                                                     forward.frac(value.name))
                                for value in graph.values() if isinstance(value.format, Fixed)})
    backward = _joined_gradients(graph)
    for name, format_ in gradients.items():
        backward.at_most(name, fixed(format_).frac)
    for op in words.layers():
        _limit_layer(backward, op, words)
    for norm in _norms(words):
        _limit_norm(backward, norm, words, slope_name(norm.out.name) in gradients)
    backward.settle()
    return words, {name: Fixed.of(fixed(format_).width, backward.frac(name)) for name, format_ in gradients.items()}


def _in_words(graph: Graph, formats: Mapping[str, Fixed]) -> Graph:
    """The float graph with formats of values by name, and of factors by :func:`factor_name`."""
    def rule(op: Op) -> Op:
        return replace(op, factor=formats[factor_name(op.out.name)]) if isinstance(op, BatchNorm) else op

    words = graph.with_formats({value.name: formats[value.name] for value in graph.values() if value.name in formats})
    return replace(words, ops=tuple(map(rule, words.ops)))


def initial_state(graph: Graph, parameters: Mapping[str, NDArray], update: Update) -> dict[str, NDArray]:
    """The state of a network before its first step, from real-valued parameters."""
    state: dict[str, NDArray] = {value.name: np.asarray(parameters[value.name]).astype(np.float32)
                                 for value in graph.statistics()}
    for value in graph.learned():
        names = state_names(value.name, update_of(value, update))
        state |= weight_words(value, np.asarray(parameters[value.name]), update)
        state[names["momentum"]] = np.zeros_like(state[names["weight"]])
        state[names["live"]] = np.ones(value.shape, dtype=np.bool_)
    return state


def weight_words(value: Value, real: NDArray, update: Update) -> dict[str, NDArray]:
    """A parameter's weight, and its master where it has one, from real values."""
    names = state_names(value.name, update_of(value, update))
    match value.format:
        case Fixed() as format_ if update is Update.BUFFERED:
            master = master_format(format_).quantise(real)
            return {names["master"]: master, names["weight"]: narrow(master, format_)}
        case Fixed() as format_:
            return {names["weight"]: format_.quantise(real)}
        case _:
            return {names["weight"]: real.astype(np.float32)}


def _norms(graph: Graph) -> list[BatchNorm]:
    return [op for op in graph.ops if isinstance(op, BatchNorm)]


def _words(graph: Graph) -> list[Value]:
    """The values that become words: all but the scalars of batch norms."""
    scalars = {value for op in _norms(graph) for value in scalars_of(op)}
    return [value for value in graph.values() if value not in scalars]


def _beside_one(graph: Graph) -> set[Value]:
    """What is read together with a constant one: by layers with a bias, and by batch norms."""
    return {op.x for op in graph.layers() if op.b is not None} | {op.x for op in _norms(graph)}


def _keeps_words(op: Op) -> bool:
    """Whether the words of the result are words of the inputs, or nearer to zero."""
    return isinstance(op, Relu | ClippedRelu | MaxPool | Concat | Reshape)


def _shares_format(op: Op) -> bool:
    return isinstance(op, Add) or _keeps_words(op)


def _clipped(graph: Graph, ranges: Ranges) -> Ranges:
    """``ranges``, with that of the result in place of that of a value which only a clipped rectifier reads."""
    found = dict(ranges)
    for op in graph.ops:
        if isinstance(op, ClippedRelu) and graph.users(op.x) == (op,) and op.x not in graph.outputs:
            found[op.x.name] = ranges.get(op.out.name, (0.0, 0.0))
    return found


def _bounds(graph: Graph) -> dict[str, int]:
    """What a value cannot exceed (or need not, where a clipped rectifier alone reads it), by its name."""
    found: dict[str, int] = {}
    for op in graph.ops:
        if isinstance(op, ClippedRelu):
            found[op.out.name] = op.bound
            if graph.users(op.x) == (op,) and op.x not in graph.outputs:
                found[op.x.name] = op.bound
        elif _keeps_words(op) and all(value.name in found for value in op.inputs):
            found[op.out.name] = max(found[value.name] for value in op.inputs)
    return found


def _gradient_range(ranges: Ranges, name: str) -> tuple[float, float]:
    """The range of a gradient and of the parts that it is the sum of."""
    found = [ends for key, ends in ranges.items() if key == name or key.startswith(f"{name}.")]
    return min((low for low, _ in found), default=0.0), max((high for _, high in found), default=0.0)


def _joined(graph: Graph) -> Families:
    """The values of an inference graph that share a fraction length."""
    families = Families()
    for op in graph.ops:
        for value in op.inputs if _shares_format(op) else ():
            families.join(value.name, op.out.name)
        if isinstance(op, Conv2d | Linear) and op.b is not None:
            families.join(op.w.name, op.b.name)
    return families


def _joined_gradients(graph: Graph) -> Families:
    families = Families()
    for op in graph.ops:
        for value in op.inputs if _shares_format(op) else ():
            families.join(gradient_name(op.out.name), gradient_name(value.name))
        if isinstance(op, Conv2d | Linear) and op.b is not None:
            families.join(gradient_name(op.w.name), gradient_name(op.b.name))
    return families


def _forward_formats(graph: Graph, ranges: Ranges, widths: Widths, headroom: Headroom) -> dict[str, Fixed]:
    families, ranges, bounds = _joined(graph), _clipped(graph, ranges), _bounds(graph)
    for value in _words(graph):
        width, bits = ((widths.weight, headroom.weight) if value in graph.parameters else
                       (widths.activation, 0 if value in graph.inputs else headroom.activation))
        ends = ranges.get(value.name, (0.0, 0.0))
        least = min(0, holding_frac(*ends, width))  # headroom alone never takes the last fraction bit
        if value.name in bounds:
            least = max(least, _coarsest(bounds[value.name]), holding_frac(0.0, bounds[value.name], width))
        families.at_most(value.name, max(least, holding_frac(*ends, width, bits)))
    weights = {op.w.name: families.frac(op.w.name) for op in graph.layers()}
    for name, frac in weights.items():  # one that is zero throughout has room for what others hold
        if frac == FINEST:
            families.at_most(name, min(weights.values()))
    for op in graph.layers():
        families.at_most_sum(op.out.name, op.x.name, op.w.name)
    for value in _beside_one(graph):
        families.at_most(value.name, widths.activation - 2)
    _limit_factors(graph, families, ranges, widths, headroom)
    logits = graph.outputs[0].name
    families.at_most(logits, LOSS_FRAC)
    families.settle()
    _check_held(graph, families, ranges, widths, bounds)
    factors = {name: Fixed.of(widths.weight, families.frac(name))
               for name in (factor_name(op.out.name) for op in _norms(graph))}
    return factors | {value.name: Fixed.of(widths.weight if value in graph.parameters else widths.activation,
                                           families.frac(value.name)) for value in _words(graph)}


def _limit_factors(graph: Graph, families: Families, ranges: Ranges, widths: Widths, headroom: Headroom) -> None:
    """Factors and offsets are held; those that are zero throughout have room for what others hold, and for one."""
    names = [factor_name(op.out.name) for op in _norms(graph)]
    fracs = [holding_frac(*ranges[name], widths.weight, headroom.weight + FACTOR_HEADROOM) for name in names]
    others = min((frac for frac in fracs if frac < FINEST), default=widths.weight - 2)
    for op, name, frac in zip(_norms(graph), names, fracs, strict=True):
        families.at_most(name, frac if frac < FINEST else others)
        families.at_most_sum(op.out.name, op.x.name, name)


def _coarsest(bound: int) -> int:
    """The fewest fraction bits with which ``bound`` is a whole number of units."""
    return 1 - (bound & -bound).bit_length()


def _check_held(graph: Graph, families: Families, ranges: Ranges, widths: Widths, bounds: Mapping[str, int]) -> None:
    """Raise FormatError where a fraction length is below what the engine takes."""
    layer_inputs = _beside_one(graph)
    for value in _words(graph):
        frac, low, high = families.frac(value.name), *ranges.get(value.name, (0.0, 0.0))
        lowest = 0 if value in layer_inputs or value in graph.outputs else COARSEST + 1
        if value.name in bounds:
            lowest = max(lowest, _coarsest(bounds[value.name]))
        if frac < lowest:
            width = widths.weight if value in graph.parameters else widths.activation
            raise FormatError(f"Words of {width} bits with at least {lowest} fraction bits must hold every value, and "
                              f"{value.name!r} lies in {low:.4g}..{high:.4g}: scale the images or the weights down, or "
                              f"use wider words")


def _check_fine(graph: Graph, families: Families) -> None:
    """Raise FormatError where coarser weights leave a value fewer fraction bits than the engine takes."""
    bounds = _bounds(graph)
    whole = {*graph.outputs, *_beside_one(graph)}
    for value in _words(graph):
        lowest = max(0 if value in whole else COARSEST + 1,
                     _coarsest(bounds[value.name]) if value.name in bounds else COARSEST)
        if families.frac(value.name) < lowest:
            raise FormatError(f"{value.name!r} must have at least {lowest} fraction bits, and with weights this coarse "
                              f"it has {families.frac(value.name)}: use wider weights")


def _gradient_formats(graph: Graph, ranges: Ranges, widths: Widths, loss: str, headroom: Headroom
                      ) -> dict[str, Format]:
    families, activations = _joined_gradients(graph), [op.out for op in graph.ops]
    parameters = [value for value in graph.parameters if isinstance(value.format, Fixed)]
    slopes = [slope_name(op.out.name) for op in _norms(graph) if slope_name(op.out.name) in ranges]
    for names, width, bits in ((_gradients(activations), widths.gradient, headroom.gradient),
                               (_gradients(parameters), GRADIENT_BITS, WEIGHT_GRADIENT_HEADROOM),
                               (slopes, widths.gradient, headroom.gradient + SLOPE_HEADROOM)):
        fracs = {name: holding_frac(*_gradient_range(ranges, name), width, bits) for name in names}
        finest = max((frac for frac in fracs.values() if frac < FINEST), default=FINEST)
        for name, frac in fracs.items():  # one that was zero throughout is as fine as any that was not
            families.at_most(name, min(frac, finest))
    _limit_logits(families, graph.outputs[0], widths, loss)
    for layer in graph.layers():
        _limit_layer(families, layer, graph)
    for op in _norms(graph):
        _limit_norm(families, op, graph, slope_name(op.out.name) in slopes)
    families.settle()
    return {**_formats(families, _gradients(activations) + slopes, widths.gradient),
            **_formats(families, _gradients(parameters), GRADIENT_BITS)}


def _gradients(values: Iterable[Value]) -> list[str]:
    return [gradient_name(value.name) for value in values]


def _formats(families: Families, names: Iterable[str], width: int) -> dict[str, Format]:
    return {name: Fixed.of(width, families.frac(name)) for name in names}


def _limit_logits(families: Families, logits: Value, widths: Widths, loss: str) -> None:
    name = gradient_name(logits.name)
    if loss == "softmax_cross_entropy":
        families.limit[families.root(name)] = widths.gradient - 2
    else:
        families.at_most(name, _frac(logits))


def _limit_layer(families: Families, op: Conv2d | Linear, graph: Graph) -> None:
    """No gradient is finer than the products it sums; that of a bias no finer than the gradients it sums."""
    out, weight = gradient_name(op.out.name), gradient_name(op.w.name)
    families.at_most_sum(weight, out, plus=_frac(op.x) if op.b is None else min(0, _frac(op.x)))
    if op.x not in graph.inputs:
        families.at_most_sum(gradient_name(op.x.name), out, plus=_frac(op.w))


def _limit_norm(families: Families, op: BatchNorm, graph: Graph, has_slope: bool) -> None:
    """The gradient of the input is no finer than the products of either sum; one frozen has no ``slope``."""
    if op.x in graph.inputs:
        return
    name = gradient_name(op.x.name)
    families.at_most_sum(name, gradient_name(op.out.name), plus=fixed(op.factor).frac)
    if has_slope:
        families.at_most_sum(name, slope_name(op.out.name), plus=_frac(op.x))


def _frac(value: Value) -> int:
    return fixed(value.format).frac
