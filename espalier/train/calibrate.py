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
- The gradient of softmax logits has ``width - 2`` fraction bits: it lies in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import FormatError
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.ops import Add, ClippedRelu, Concat, Conv2d, Linear, MaxPool, Op, Relu, Reshape
from espalier.ir.types import Format, Value
from espalier.ir.verify import verify
from espalier.numerics.fixed import Fixed
from espalier.numerics.loss import LOSS_FRAC
from espalier.numerics.update import GRADIENT_BITS, master_format, narrow
from espalier.train.optimise import Update, state_names
from espalier.train.ranges import Ranges, check_numbers, observe

WEIGHT_GRADIENT_HEADROOM = 6  #: bits above the largest sum over a batch that was seen
COARSEST, FINEST = -32, 40    #: fraction bits that are ever chosen


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
        The inference graph, all formats fixed.
    gradient_formats : dict of Format
        For ``differentiate``, by name of the gradient.
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
    fixed = verify(graph.with_formats(_forward_formats(graph, ranges, widths, headroom)))
    gradients = _gradient_formats(fixed, ranges, widths, loss, headroom)
    return Quantised(fixed, gradients, initial_state(fixed, parameters, update))


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
    for value in graph.values():
        forward.at_most(value.name, formats[value.name].frac if value.name in formats else _frac(value))
    for op in graph.layers():
        forward.at_most_sum(op.out.name, op.x.name, op.w.name)
    forward.settle()
    _check_fine(graph, forward)
    fixed = graph.with_formats({value.name: Fixed.of(formats.get(value.name, value.format).width,
                                                     forward.frac(value.name))
                                for value in graph.values() if isinstance(value.format, Fixed)})
    backward = _joined_gradients(graph)
    for name, format_ in gradients.items():
        backward.at_most(name, _fixed(format_).frac)
    for op in fixed.layers():
        _limit_layer(backward, op, fixed)
    backward.settle()
    return fixed, {name: Fixed.of(_fixed(format_).width, backward.frac(name)) for name, format_ in gradients.items()}


def initial_state(graph: Graph, parameters: Mapping[str, NDArray], update: Update) -> dict[str, NDArray]:
    """The state of a network before its first step, from real-valued parameters."""
    state: dict[str, NDArray] = {value.name: np.asarray(parameters[value.name]).astype(np.float32)
                                 for value in graph.statistics()}
    for value in graph.learned():
        names = state_names(value.name, update)
        state |= weight_words(value, np.asarray(parameters[value.name]), update)
        state[names["momentum"]] = np.zeros_like(state[names["weight"]])
        state[names["live"]] = np.ones(value.shape, dtype=np.bool_)
    return state


def weight_words(value: Value, real: NDArray, update: Update) -> dict[str, NDArray]:
    """A parameter's weight, and its master where it has one, from real values."""
    names = state_names(value.name, update)
    match value.format:
        case Fixed() as format_ if update is Update.BUFFERED:
            master = master_format(format_).quantise(real)
            return {names["master"]: master, names["weight"]: narrow(master, format_)}
        case Fixed() as format_:
            return {names["weight"]: format_.quantise(real)}
        case _:
            return {names["weight"]: real.astype(np.float32)}


class _Families:
    """Sets of names that share a fraction length, and upper limits on it."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.limit: dict[str, int] = {}
        self.sums: list[tuple[str, tuple[str, ...], int]] = []

    def root(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """``a`` and ``b`` have one fraction length; to be called before any limit."""
        self.parent[self.root(b)] = self.root(a)

    def at_most(self, name: str, frac: int) -> None:
        root = self.root(name)
        self.limit[root] = min(frac, self.limit.get(root, FINEST))

    def at_most_sum(self, name: str, *parts: str, plus: int = 0) -> None:
        """``name`` is no finer than a product of ``parts`` (and of a value of ``plus`` fraction bits)."""
        self.sums.append((name, parts, plus))

    def frac(self, name: str) -> int:
        return self.limit[self.root(name)]

    def settle(self) -> None:
        """Lower fraction lengths until every limit holds."""
        changed = True
        while changed:
            changed = False
            for name, parts, plus in self.sums:
                most = plus + sum(self.frac(part) for part in parts)
                if self.frac(name) > most >= COARSEST:
                    self.limit[self.root(name)] = most
                    changed = True


def holding_frac(low: float, high: float, width: int, headroom: int = 0) -> int:
    """The most fraction bits with which ``width`` bits hold ``low..high`` after ``headroom`` doublings.

    "Hold" means without more than half a unit of saturation.
    """
    format_ = Fixed.of(width, 0)
    largest = max(-low / (0.5 - format_.low), high / (format_.high + 0.5))
    if largest <= 0:
        return FINEST
    return max(COARSEST, min(FINEST, math.floor(-math.log2(largest)) - headroom))


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


def _joined(graph: Graph) -> _Families:
    """The values of an inference graph that share a fraction length."""
    families = _Families()
    for op in graph.ops:
        for value in op.inputs if _shares_format(op) else ():
            families.join(value.name, op.out.name)
        if isinstance(op, Conv2d | Linear) and op.b is not None:
            families.join(op.w.name, op.b.name)
    return families


def _joined_gradients(graph: Graph) -> _Families:
    families = _Families()
    for op in graph.ops:
        for value in op.inputs if _shares_format(op) else ():
            families.join(gradient_name(op.out.name), gradient_name(value.name))
        if isinstance(op, Conv2d | Linear) and op.b is not None:
            families.join(gradient_name(op.w.name), gradient_name(op.b.name))
    return families


def _forward_formats(graph: Graph, ranges: Ranges, widths: Widths, headroom: Headroom) -> dict[str, Format]:
    families, ranges, bounds = _joined(graph), _clipped(graph, ranges), _bounds(graph)
    for value in graph.values():
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
        if op.b is not None:
            families.at_most(op.x.name, widths.activation - 2)
    logits = graph.outputs[0].name
    families.at_most(logits, LOSS_FRAC)
    families.settle()
    _check_held(graph, families, ranges, widths, bounds)
    return {value.name: Fixed.of(widths.weight if value in graph.parameters else widths.activation,
                                 families.frac(value.name)) for value in graph.values()}


def _coarsest(bound: int) -> int:
    """The fewest fraction bits with which ``bound`` is a whole number of units."""
    return 1 - (bound & -bound).bit_length()


def _check_held(graph: Graph, families: _Families, ranges: Ranges, widths: Widths, bounds: Mapping[str, int]) -> None:
    """Raise FormatError where a fraction length is below what the engine takes."""
    layer_inputs = {op.x for op in graph.layers() if op.b is not None}
    for value in graph.values():
        frac, low, high = families.frac(value.name), *ranges.get(value.name, (0.0, 0.0))
        lowest = 0 if value in layer_inputs or value in graph.outputs else COARSEST + 1
        if value.name in bounds:
            lowest = max(lowest, _coarsest(bounds[value.name]))
        if frac < lowest:
            width = widths.weight if value in graph.parameters else widths.activation
            raise FormatError(f"Words of {width} bits with at least {lowest} fraction bits must hold every value, and "
                              f"{value.name!r} lies in {low:.4g}..{high:.4g}: scale the images or the weights down, or "
                              f"use wider words")


def _check_fine(graph: Graph, families: _Families) -> None:
    """Raise FormatError where coarser weights leave a value fewer fraction bits than the engine takes."""
    bounds = _bounds(graph)
    whole = {*graph.outputs, *(op.x for op in graph.layers() if op.b is not None)}
    for value in graph.values():
        lowest = max(0 if value in whole else COARSEST + 1,
                     _coarsest(bounds[value.name]) if value.name in bounds else COARSEST)
        if families.frac(value.name) < lowest:
            raise FormatError(f"{value.name!r} must have at least {lowest} fraction bits, and with weights this coarse "
                              f"it has {families.frac(value.name)}: use wider weights")


def _gradient_formats(graph: Graph, ranges: Ranges, widths: Widths, loss: str, headroom: Headroom
                      ) -> dict[str, Format]:
    families, activations = _joined_gradients(graph), [op.out for op in graph.ops]
    for values, width, bits in ((activations, widths.gradient, headroom.gradient),
                                (graph.parameters, GRADIENT_BITS, WEIGHT_GRADIENT_HEADROOM)):
        names = [gradient_name(value.name) for value in values]
        fracs = {name: holding_frac(*_gradient_range(ranges, name), width, bits) for name in names}
        finest = max((frac for frac in fracs.values() if frac < FINEST), default=FINEST)
        for name, frac in fracs.items():  # one that was zero throughout is as fine as any that was not
            families.at_most(name, min(frac, finest))
    _limit_logits(families, graph.outputs[0], widths, loss)
    for layer in graph.layers():
        _limit_layer(families, layer, graph)
    families.settle()
    return {**_formats(families, activations, widths.gradient), **_formats(families, graph.parameters, GRADIENT_BITS)}


def _formats(families: _Families, values: Iterable[Value], width: int) -> dict[str, Format]:
    names = [gradient_name(value.name) for value in values]
    return {name: Fixed.of(width, families.frac(name)) for name in names}


def _limit_logits(families: _Families, logits: Value, widths: Widths, loss: str) -> None:
    name = gradient_name(logits.name)
    if loss == "softmax_cross_entropy":
        families.limit[families.root(name)] = widths.gradient - 2
    else:
        families.at_most(name, _frac(logits))


def _limit_layer(families: _Families, op: Conv2d | Linear, graph: Graph) -> None:
    """No gradient is finer than the products it sums; that of a bias no finer than the gradients it sums."""
    out, weight = gradient_name(op.out.name), gradient_name(op.w.name)
    families.at_most_sum(weight, out, plus=_frac(op.x) if op.b is None else min(0, _frac(op.x)))
    if op.x not in graph.inputs:
        families.at_most_sum(gradient_name(op.x.name), out, plus=_frac(op.w))


def _frac(value: Value) -> int:
    return _fixed(value.format).frac


def _fixed(format_: Format) -> Fixed:
    assert isinstance(format_, Fixed), f"{format_} is not fixed point"
    return format_
