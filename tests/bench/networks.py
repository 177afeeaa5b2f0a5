"""Small fixed-point networks for tests: grown layer by layer, with a state, ready to compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.emit import Rules
from espalier.compiler.legalise import Layer, legalise
from espalier.compiler.lists import weight_numbers
from espalier.compiler.pipeline import compile_program
from espalier.engines.base import Network
from espalier.ir.differentiate import differentiate, gradient_name, slope_name
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    BatchNorm,
    ClippedRelu,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
)
from espalier.ir.types import FLOAT, Format, TensorType, Value
from espalier.numerics.fixed import Fixed
from espalier.numerics.live import block_grid, expand_blocks
from espalier.numerics.scalar import scalar
from espalier.numerics.update import BufferedSgd, Factor, ScalarSgd, master_format, narrow
from espalier.numerics.window import Window

ACTIVATION, WEIGHT, GRADIENT, WEIGHT_GRADIENT = Fixed.of(16, 12), Fixed.of(16, 13), Fixed.of(16, 14), Fixed.of(32, 20)
POOL = Window((2, 2), (2, 2))
SCALAR_RULE = ScalarSgd(momentum=scalar(0.9), rate=scalar(0.003), decay=scalar(1e-4))
SLOW_RULE = {"momentum": Factor.nearest(0.9), "rate": Factor.nearest(0.05), "decay": Factor.nearest(1e-3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Formats of one layer: its weights, its result, the gradient of the result and that of the weights."""

    weight: Fixed = WEIGHT
    result: Fixed = ACTIVATION
    gradient: Fixed = GRADIENT
    weight_gradient: Fixed = WEIGHT_GRADIENT


class Chain:
    """A network while it grows at its end."""

    def __init__(self, shape: tuple[int, ...], image: Fixed = ACTIVATION) -> None:
        self.image = Value("image", TensorType(shape, image))
        self.x = self.image
        self.parameters: list[Value] = []
        self.ops: list[Op] = []
        self.gradient_formats: dict[str, Format] = {}

    def value(self, name: str, shape: tuple[int, ...], format_: Format, gradient: Format) -> Value:
        """A new value; its gradient's format is noted."""
        self.gradient_formats[gradient_name(name)] = gradient
        return Value(name, TensorType(shape, format_))

    def append(self, op: Op) -> Chain:
        self.ops.append(op)
        self.x = op.out
        return self

    def _parameters(self, name: str, shape: tuple[int, ...], bias: bool, formats: Formats
                    ) -> tuple[Value, Value | None]:
        weight = self.value(f"{name}.weight", shape, formats.weight, formats.weight_gradient)
        self.parameters.append(weight)
        if not bias:
            return weight, None
        self.parameters.append(self.value(f"{name}.bias", shape[:1], formats.weight, formats.weight_gradient))
        return weight, self.parameters[-1]

    def conv(self, out: int, kernel: tuple[int, int], pad: tuple[int, int, int, int] = (0, 0, 0, 0), *,
             bias: bool = True, formats: Formats | None = None, window: Window | None = None, groups: int = 1) -> Chain:
        formats = formats or Formats()
        name = f"conv{len(self.ops)}"
        weight, b = self._parameters(name, (out, self.x.shape[0] // groups, *kernel), bias, formats)
        window = window or Window(kernel, (1, 1), pad)
        shape = (out, *window.out_size(*self.x.shape[1:]))
        result = self.value(name, shape, formats.result, formats.gradient)
        return self.append(Conv2d(result, self.x, weight, b, window, groups))

    def norm(self, formats: Formats | None = None, slope: Fixed | None = None, epsilon: float = 1e-5) -> Chain:
        """A trained batch norm; ``formats.weight`` is that of its factor."""
        formats = formats or Formats()
        name, channels = f"norm{len(self.ops)}", self.x.shape[:1]
        values = [self.value(f"{name}.{part}", channels, FLOAT, FLOAT)
                  for part in ("weight", "bias", "mean", "variance")]
        self.parameters += values
        self.gradient_formats[slope_name(name)] = slope or formats.weight
        result = self.value(name, self.x.shape, formats.result, formats.gradient)
        return self.append(BatchNorm(result, self.x, *values, epsilon, formats.weight))

    def linear(self, out: int, *, bias: bool = True, formats: Formats | None = None) -> Chain:
        formats = formats or Formats()
        if len(self.x.shape) > 1:
            unwanted = Fixed.of(16, formats.gradient.frac + formats.weight.frac)  # a flattened image has a gradient
            self.gradient_formats.setdefault(gradient_name(self.x.name), unwanted)
            self.flatten()
        name = f"linear{len(self.ops)}"
        weight, b = self._parameters(name, (out, self.x.shape[0]), bias, formats)
        return self.append(Linear(self.value(name, (out,), formats.result, formats.gradient), self.x, weight, b))

    def _same(self, kind: str, shape: tuple[int, ...]) -> Value:
        gradient = self.gradient_formats.get(gradient_name(self.x.name), Fixed.of(16, 0))
        return self.value(f"{self.x.name}.{kind}", shape, self.x.format, gradient)

    def flatten(self) -> Chain:
        return self.append(Reshape(self._same("flat", (int(np.prod(self.x.shape)),)), self.x))

    def relu(self) -> Chain:
        return self.append(Relu(self._same("relu", self.x.shape), self.x))

    def clip(self, bound: int) -> Chain:
        return self.append(ClippedRelu(self._same("clip", self.x.shape), self.x, bound))

    def pool(self, window: Window = POOL) -> Chain:
        shape = (self.x.shape[0], *window.out_size(*self.x.shape[1:]))
        return self.append(MaxPool(self._same("pool", shape), self.x, window))

    def add(self, other: Value) -> Chain:
        """The sum of the end and of an earlier value, in the end's formats."""
        return self.append(Add(self._same("sum", self.x.shape), self.x, other))

    def average(self, window: Window | None = None, formats: Formats | None = None) -> Chain:
        """The mean under ``window``, or of the whole map."""
        formats = formats or Formats()
        size = (1, 1) if window is None else window.out_size(*self.x.shape[1:])
        result = self.value(f"mean{len(self.ops)}", (self.x.shape[0], *size), formats.result, formats.gradient)
        return self.append(GlobalAveragePool(result, self.x) if window is None else
                           AveragePool(result, self.x, window))

    def graph(self, name: str = "net") -> Graph:
        return Graph(name, (self.image,), tuple(self.parameters), tuple(self.ops), (self.x,))

    def training_graph(self, loss: str = "softmax_cross_entropy") -> Graph:
        return differentiate(self.graph(), loss, self.gradient_formats)

    def layers(self) -> tuple[Layer, ...]:
        return legalise(self.training_graph())[0]


def all_live(chain: Chain) -> dict[str, NDArray[np.bool_]]:
    """Every element of every parameter lives."""
    return {value.name: np.ones(value.shape, dtype=bool) for value in chain.parameters}


def random_live(rng: np.random.Generator, chain: Chain, rows: int, densities: Mapping[str, float] | float
                ) -> dict[str, NDArray[np.bool_]]:
    """Random live blocks of ``rows × rows`` at a density, which may be given by layer; biases all live."""
    live = all_live(chain)
    for layer in chain.layers():
        if layer.weight is None or layer.norm is not None:
            continue
        density = densities if isinstance(densities, float) else densities[layer.name]
        blocks = rng.random(block_grid(layer.weight_shape, rows)) < density
        weights, numbers = expand_blocks(blocks, rows, layer.weight_shape), weight_numbers(layer)
        live[layer.weight].reshape(-1)[numbers[numbers >= 0]] = weights[numbers >= 0]
    return live


def random_state(rng: np.random.Generator, chain: Chain, live: Mapping[str, NDArray[np.bool_]], scale: float = 0.15
                 ) -> dict[str, NDArray[np.int64]]:
    """Normal masters and momenta of standard deviation ``scale`` of their range, zero where dead."""
    state: dict[str, NDArray[np.int64]] = {}
    for parameter in chain.parameters:
        if not isinstance(parameter.format, Fixed):
            state |= random_scalars(rng, parameter.name, parameter.shape)
            continue
        wide = master_format(parameter.format)
        for kind, size in (("master", scale), ("momentum", scale / 16)):
            words = wide.limit(np.rint(rng.normal(0, size * wide.high, parameter.shape)).astype(np.int64))
            state[f"{parameter.name}.{kind}"] = np.where(live[parameter.name], words, 0)
        state[parameter.name] = narrow(state[f"{parameter.name}.master"], parameter.format)
    return state


def random_scalars(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> dict[str, NDArray]:
    """What a batch norm has of the name: a positive variance, any mean; scale or shift, with momentum."""
    kind = name.rsplit(".", 1)[1]
    if kind in ("mean", "variance"):
        return {name: rng.uniform(0.1, 1.0, shape).astype(np.float32)}
    return {name: rng.normal(1 if kind == "weight" else 0, 0.5, shape).astype(np.float32),
            f"{name}.momentum": rng.normal(0, 0.01, shape).astype(np.float32)}


def random_words(rng: np.random.Generator, format_: Fixed, shape: tuple[int, ...], scale: float) -> NDArray[np.int64]:
    """Normal words of standard deviation ``scale`` of the format's range; a large scale saturates them."""
    return format_.limit(np.rint(rng.normal(0, scale * format_.high, shape)).astype(np.int64))


def rules_of(chain: Chain, factors: Mapping[str, Mapping[str, Factor]] | None = None
             ) -> dict[str, BufferedSgd | ScalarSgd]:
    """Update rules; ``factors`` by name of a layer's weight, which its bias shares."""
    statistics = chain.graph().statistics()
    return {value.name: BufferedSgd(weight=value.format, **(factors or {}).get(value.name.rsplit(".", 1)[0], SLOW_RULE))
            if isinstance(value.format, Fixed) else SCALAR_RULE
            for value in chain.parameters if value not in statistics}


def compiled(chain: Chain, machine: Machine, *, live: Mapping[str, NDArray[np.bool_]] | None = None,
             rules: Rules | None = None, loss: str = "softmax_cross_entropy") -> Network:
    """The network compiled for a machine."""
    live, rules = live or all_live(chain), rules or rules_of(chain)
    program = compile_program(chain.graph(), loss=loss, gradient_formats=chain.gradient_formats, live=live,
                              rules=rules, machine=machine)
    return Network(graph=chain.training_graph(loss), program=program, rules=rules, live=live)
