"""Hypothesis strategies for small networks that the engine runs, with everything about them at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from bench.networks import Chain, Formats, compiled, random_live, random_state, random_words, rules_of
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.tiling import WHOLE, Grid
from espalier.cost.cycles import predict
from espalier.engines.base import Network
from espalier.engines.interpreter import InterpreterEngine
from espalier.engines.rtl import RtlEngine
from espalier.engines.verify import verify_step
from espalier.errors import FitError, GraphError, UnsupportedError
from espalier.ir.differentiate import gradient_name
from espalier.ir.text import dump
from espalier.numerics.activation import AVERAGE_FRAC
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import scalar
from espalier.numerics.update import GRADIENT_BITS, Factor, ScalarSgd
from espalier.numerics.window import Window

MAX_LOGIT_FRAC = 16
FEW = settings(deadline=None, max_examples=7, derandomize=True, phases=[Phase.explicit, Phase.generate],
               suppress_health_check=list(HealthCheck))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Example:
    """A compiled network with a state, and a source of images for it."""

    network: Network
    state: dict[str, NDArray[np.int64]]
    image_scale: float
    rng: np.random.Generator

    def __repr__(self) -> str:
        live = ", ".join(f"{name} {int(mask.sum())}/{mask.size}" for name, mask in self.network.live.items())
        return f"live: {live}\n{dump(self.network.graph)}"

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would print every array

    def images(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Words of ``count`` images, and labels."""
        program = self.network.program
        classes = self.network.graph.outputs[1].shape[0]
        shape = self.network.graph.inputs[0].shape
        words = random_words(self.rng, program.image_format, (count, *shape), self.image_scale)
        return words, self.rng.integers(0, classes, count)


def widths(word_bits: int) -> st.SearchStrategy[int]:
    """Widths of a word, the machine's own as often as all others."""
    return st.sampled_from([word_bits] * word_bits + list(range(2, word_bits + 1)))


@st.composite
def activation_formats(draw, word_bits: int, *, finest: int = 62, biased: bool) -> Fixed:
    """A format of an activation; one that is multiplied with a bias can hold the one."""
    width = draw(widths(word_bits))
    top = min(finest, width - 2 if biased else width + 2)
    low = min(0 if biased else -2, top)
    return Fixed.of(width, top - draw(st.integers(0, min(7, top - low))))


@st.composite
def layer_formats(draw, word_bits: int, x: Fixed, *, next_biased: bool, last: bool, hinge: bool,
                  source_gradient: Fixed | None) -> Formats:
    """Formats of a layer that reads ``x``, whose gradient has the format ``source_gradient`` (None: an image)."""
    width = draw(widths(word_bits))
    least = -x.frac if next_biased or last else -x.frac - 1
    if source_gradient is not None:
        least = max(least, source_gradient.frac - (word_bits + 2))
    weight = Fixed.of(width, max(least, draw(st.integers(width - 4, width + 1))))
    finest = min(x.frac + weight.frac, MAX_LOGIT_FRAC) if last else x.frac + weight.frac
    result = draw(activation_formats(word_bits, finest=finest, biased=next_biased or last))
    gradient_width = draw(widths(word_bits))
    low = 0 if source_gradient is None else source_gradient.frac - weight.frac
    high = min(result.frac, gradient_width + 2) if last and hinge else gradient_width + 2
    gradient_frac = max(low, 0 if last else -2, high - draw(st.integers(0, 7)))
    if last:
        assume(gradient_frac <= (result.frac if hinge else 31))
    weight_gradient = Fixed.of(GRADIENT_BITS, x.frac + gradient_frac - draw(st.integers(0, 12)))
    return Formats(weight=weight, result=result, gradient=Fixed.of(gradient_width, gradient_frac),
                   weight_gradient=weight_gradient)


@st.composite
def factors(draw) -> dict[str, Factor]:
    """Learning rate, momentum below one, and decay."""
    shift = draw(st.integers(0, 16))
    return {"momentum": Factor(draw(st.integers(0, (1 << shift) - 1)), shift),
            "rate": Factor(draw(st.integers(0, 0xffff)), draw(st.integers(8, 47))),
            "decay": Factor(draw(st.integers(0, 0xffff)), draw(st.integers(14, 47)))}


def divides(size: int, tiles: int, step: int) -> bool:
    """Whether a map of ``size`` becomes one ``step`` times as small that tiles can hold."""
    return size % step == 0 and (size // step >= tiles or size <= tiles)


def in_halves(chain: Chain, grid: Grid) -> bool:
    """Whether tiles can hold the end pooled."""
    return all(divides(size, tiles, 2) for size, tiles in zip(chain.x.shape[1:], grid, strict=True))


@st.composite
def tile_windows(draw, size: tuple[int, ...], grid: Grid, dilations: tuple[int, ...]) -> Window:
    """A window that makes of a map of ``size`` one that tiles can hold."""
    steps = [[step for step in (1, 1, 2, 4) if divides(length, tiles, step)]
             for length, tiles in zip(size, grid, strict=True)]
    kernel, dilation = (tuple(draw(st.sampled_from(values)) for _ in size)
                        for values in ((1, 2, 3, 3, 4, 5), dilations))
    stride = tuple(draw(st.sampled_from(values)) for values in steps)
    taps = [(kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    pads = [draw(st.integers(max(0, taps[axis] - stride[axis]), taps[axis] - 1)) for axis in (0, 1)]
    before = [draw(st.integers(0, pad)) for pad in pads]
    return Window(kernel, stride, (*before, *(pad - first for pad, first in zip(pads, before, strict=True))), dilation)


@st.composite
def windows(draw, size: tuple[int, ...], dilations: tuple[int, ...] = (1, 1, 1, 2), grid: Grid = WHOLE
            ) -> Window:
    """A window that fits a map of ``size``."""
    if grid != WHOLE:
        return draw(tile_windows(size, grid, dilations))
    kernel, stride, dilation = (tuple(draw(st.sampled_from(values)) for _ in size)
                                for values in ((1, 2, 3, 3, 4, 5), (1, 1, 1, 2, 2, 4), dilations))
    taps = [(kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    pad = tuple(draw(st.integers(0, taps[axis % 2] - 1)) for axis in range(4))
    for axis, length in enumerate(size):
        room = length + pad[axis] + pad[axis + 2] - taps[axis]
        assume(room >= 0 and (stride[axis] <= length or room < stride[axis]))
    return Window(kernel, stride, pad, dilation)


@st.composite
def rectified(draw, chain: Chain, clips: bool) -> None:
    """Append a rectifier, one with an upper end or not."""
    format_ = chain.x.format
    if clips and draw(st.booleans()):
        unit = 1 << max(0, -format_.frac)  # the least whole number that is a word
        chain.clip(draw(st.integers(unit, max(unit, format_.high << max(0, -format_.frac) >> max(0, format_.frac)))))
    else:
        chain.relu()


@st.composite
def normed(draw, chain: Chain, word_bits: int, before: Formats, **wanted: bool) -> Formats:
    """Append a batch norm to a layer with the formats ``before``; the formats of the end."""
    formats = draw(layer_formats(word_bits, chain.x.format, last=False, source_gradient=before.gradient, **wanted))
    width = draw(widths(word_bits))
    chain.norm(formats, Fixed.of(width, max(before.gradient.frac - chain.x.format.frac,
                                            width + draw(st.integers(-4, 6)))))
    return formats


@st.composite
def scalar_rules(draw) -> ScalarSgd:
    """Learning rate, momentum below one, and decay, of scalars."""
    return ScalarSgd(momentum=scalar(draw(st.floats(0, 0.99))), rate=scalar(draw(st.floats(0, 2))),
                     decay=scalar(draw(st.sampled_from([0.0, 1e-3, 0.1]))))


@st.composite
def convolved(draw, chain: Chain, rows: int, bias: bool, formats: Formats, clips: bool, norm: bool = False,
              word_bits: int = 0, next_biased: bool = False, grid: Grid = WHOLE) -> Formats:
    """Append a convolution, with a batch norm or not, rectified and pooled or not; the formats of the end."""
    channels = chain.x.shape[0]
    groups = draw(st.sampled_from([1, 1, 1, channels, 2]))
    if groups == 2:
        assume(channels % (2 * rows) == 0)
    outs = channels if groups == channels > 1 else groups * (rows if groups == 2 else draw(st.integers(1, 9)))
    window = draw(windows(chain.x.shape[1:], grid=grid))
    if in_halves(chain, grid) and draw(st.booleans()):  # the result can be pooled
        taps = draw(st.sampled_from([1, 3, 5]))
        window = Window((taps, taps), pad=(taps // 2,) * 4)
    chain.conv(outs, window.kernel, bias=bias, formats=formats, window=window, groups=groups)
    if norm:
        before = [lambda: draw(rectified(chain, clips))] if draw(st.sampled_from([False, False, True])) else []
        for step in before:
            step()
        formats = draw(normed(chain, word_bits, formats, next_biased=next_biased, hinge=False))
    steps = [lambda: draw(rectified(chain, clips))] if draw(st.booleans()) else []
    if in_halves(chain, grid) and draw(st.booleans()):
        steps.insert(draw(st.integers(0, len(steps))), chain.pool)
    for step in steps:
        step()
    return formats


@st.composite
def added(draw, chain: Chain, word_bits: int, clips: bool, grid: Grid = WHOLE) -> None:
    """Append a sum of the end and of one or two layers on it, with a projection or without."""
    start, gradient = chain.x, chain.gradient_formats[gradient_name(chain.x.name)]
    width = draw(widths(word_bits))
    formats = Formats(weight=Fixed.of(width, draw(st.integers(max(0, width - 4), width + 1))), result=start.format,
                      gradient=gradient, weight_gradient=Fixed.of(GRADIENT_BITS, start.format.frac + gradient.frac - 2))
    halves = in_halves(chain, grid) if grid != WHOLE else min(start.shape[1:]) > 1
    stride = draw(st.sampled_from([1, 2])) if halves else 1
    channels = start.shape[0] if stride == 1 else draw(st.integers(1, 9))

    def convolution(kernel: int, step: int, made: int) -> None:
        pad = kernel // 2
        chain.conv(made, (kernel, kernel), bias=False, formats=formats,
                   window=Window((kernel, kernel), (step, step), (pad,) * 4))

    if draw(st.booleans()):
        convolution(3, 1, draw(st.integers(1, 5)))
        if draw(st.booleans()):
            draw(rectified(chain, clips))
    convolution(draw(st.sampled_from([1, 3])), stride, channels)
    inner = chain.x
    if stride > 1 or draw(st.booleans()):
        chain.x = start
        convolution(1, stride, channels)
        chain.add(inner)
    else:
        chain.add(start)
    if draw(st.booleans()):
        draw(rectified(chain, clips))


@st.composite
def averaged(draw, chain: Chain, formats: Formats, source_gradient: Fixed, grid: Grid = WHOLE) -> None:
    """Append an average pool, of a window or of the whole map, that gives no more fraction bits than it has."""
    assume(formats.result.frac <= chain.x.format.frac + AVERAGE_FRAC)
    assume(source_gradient.frac <= formats.gradient.frac + AVERAGE_FRAC)
    chain.average(None if draw(st.booleans()) else draw(windows(chain.x.shape[1:], (1,), grid)), formats)


@st.composite
def chains(draw, word_bits: int, rows: int, hinge: bool, clips: bool = True, norms: bool = False,
           grid: Grid = WHOLE) -> Chain:
    """Up to two convolutions, with sums behind them or without, a mean or none, then up to two linear layers.

    The last may be a convolution that leaves one pixel. With ``norms`` there may be batch norms. Maps are such as a
    ``grid`` of lanes can hold in tiles.
    """
    convolutions, linears = draw(st.sampled_from([2, 1, 0, 1, 2])), draw(st.integers(1, 2))
    means = int(convolutions > 0 and draw(st.booleans()))
    biases = [draw(st.booleans()) for _ in range(convolutions + means + linears)]
    image = draw(activation_formats(word_bits, biased=biases[0]))
    size = [tiles * draw(st.sampled_from([1, 2, 4])) for tiles in grid] if grid != WHOLE else [
        draw(st.integers(1, 8)), draw(st.integers(1, 8))]
    chain = Chain((draw(st.integers(1, 5)), *size), image)
    source_gradient: Fixed | None = None
    for k, bias in enumerate(biases):
        last = k + 1 == len(biases)
        next_biased = not last and biases[k + 1]
        normable = k < convolutions or (grid == WHOLE and k >= convolutions + means)
        norm = norms and not last and normable and draw(st.booleans())
        formats = draw(layer_formats(word_bits, chain.x.format, next_biased=next_biased or norm, last=last,
                                     hinge=hinge, source_gradient=source_gradient))
        if k < convolutions:
            formats = draw(convolved(chain, rows, bias, formats, clips, norm, word_bits, next_biased, grid))
            if draw(st.booleans()):
                draw(added(chain, word_bits, clips, grid))
        elif k < convolutions + means:
            assert source_gradient is not None, "a convolution came first"
            draw(averaged(chain, formats, source_gradient, grid))
        elif last and len(chain.x.shape) > 1 and draw(st.booleans()):  # the same as a convolution
            chain.conv(draw(st.integers(2, 12)), chain.x.shape[1:], bias=bias, formats=formats).flatten()
        else:
            chain.linear(draw(st.integers(2, 12)), bias=bias, formats=formats)
            if norm:
                formats = draw(normed(chain, word_bits, formats, next_biased=next_biased, hinge=hinge))
            if not last and draw(st.booleans()):
                draw(rectified(chain, clips))
        source_gradient = formats.gradient
    return chain


@st.composite
def examples(draw, machine: Machine) -> Example:
    """A random network compiled for ``machine``; networks that the machine cannot hold are not drawn."""
    loss = draw(st.sampled_from(["softmax_cross_entropy", "square_hinge"]))
    chain = draw(chains(machine.word_bits, machine.rows, loss == "square_hinge", machine.clips,
                        machine.norm_depth > 0, machine.grid))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers = chain.layers()
    choices = draw(st.sampled_from([(1.0,), (1.0, 0.8, 0.6), (1.0, 0.9, 0.5, 0.2, 0.0)]))  # dead layers kill gradients
    densities = {layer.name: draw(st.sampled_from(choices)) for layer in layers}
    live = random_live(rng, chain, machine.rows, densities)
    rules = rules_of(chain, {layer.name: draw(factors()) for layer in layers if layer.weight is not None})
    frozen = {layer.name for layer in layers if not layer.norm and draw(st.sampled_from([False] * 7 + [True]))}
    rules = {name: rule for name, rule in rules.items() if name.rsplit(".", 1)[0] not in frozen}
    for layer in layers:
        if layer.norm:
            rules |= dict.fromkeys((layer.weight, layer.bias), draw(scalar_rules()))
    state = random_state(rng, chain, live, draw(st.sampled_from([0.3, 0.05, 2.0])))
    try:
        network = compiled(chain, machine, live=live, rules=rules, loss=loss)
    except (FitError, GraphError):
        assume(False)
        raise
    except UnsupportedError:
        assume(machine.tiles == 1 or not machine.norm_depth)  # no batch norm of a map smaller than the grid
        raise
    return Example(network=network, state=state, image_scale=draw(st.sampled_from([0.1, 0.5, 5.0])), rng=rng)


def check_engine(example: Example) -> None:
    """Two steps, a batch and inference equal the interpreter, and take the cycles that are predicted."""
    network, state, count = example.network, example.state, example.network.program.machine.images
    rtl, reference = RtlEngine(network), InterpreterEngine(network)
    for _ in range(2):
        verify_step(network, state, *example.images(count), reference=reference, candidate=rtl).check()
        state = reference.state()
    expected, step = predict(network.program), network.program.entries_at["infer"]
    rtl.clear_cycles()
    batch = example.images(count)
    assert rtl.train(*batch, count) == reference.train(*batch, count)
    assert rtl.phase_cycles()[:step] == expected[:step]
    rtl.clear_cycles()
    batch = example.images(2 * count)
    assert rtl.infer(*batch) == reference.infer(*batch)
    once = [phase.cycles for phase in expected[step:]]
    assert [phase.cycles for phase in rtl.phase_cycles()[step:]] == [2 * cycles for cycles in once]
    rtl.close()
