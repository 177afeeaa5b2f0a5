"""The geometry of the charts: numbers to places on a drawing. The template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from espalier.report.cycles import Cycles, Phase
from espalier.report.model import Epoch, Network

_LINE_WIDTH, _LINE_HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34
_BAR_WIDTH, _LABEL, _VALUE = 760, 150, 130
_BAR, _GAP = 13, 10


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, in pixels, and what it says."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    """A data point, with the text that a reader gets by pointing at it."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of points. ``style`` is its class in the style sheet."""

    label: str
    style: str
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        """The points as the value of an SVG ``points`` attribute."""
        return " ".join(f"{point.x:g},{point.y:g}" for point in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Lines over epochs."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    reference: Tick | None = None
    width: int = _LINE_WIDTH
    height: int = _LINE_HEIGHT
    left: int = _LEFT
    right: int = _LINE_WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = _LINE_HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of ``length`` pixels before a paler one of ``outline`` pixels, with what it says at its end."""

    y: float
    length: float
    outline: float
    style: str
    value: str
    title: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Horizontal bars, some with a paler one behind."""

    title: str
    bars: tuple[Bar, ...]
    height: float
    left: int = _LABEL
    width: int = _BAR_WIDTH
    thickness: int = _BAR


def round_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """About ``count`` round numbers that span ``low``..``high``, which must differ; ends included."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next((step * magnitude for step in (1, 2, 5) if step * magnitude >= raw * (1 - 1e-9)), 10 * magnitude)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{index * step:.15g}") for index in range(first, last + 1))


def accuracy_chart(epochs: Sequence[Epoch], baseline: float | None) -> LineChart | None:
    """Accuracy on training and test images over the epochs, in percent."""
    return _line_chart("Accuracy (%)", epochs, (
        ("training images", "train", lambda epoch: _percent(epoch.train_accuracy)),
        ("test images", "test", lambda epoch: _percent(epoch.test_accuracy))), _percent(baseline), ceiling=100.0)


def loss_chart(epochs: Sequence[Epoch]) -> LineChart | None:
    """Training loss over the epochs."""
    return _line_chart("Loss", epochs, (("training loss", "loss", lambda epoch: epoch.loss),), None, ceiling=math.inf)


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * ratio


Series = tuple[str, str, Callable[[Epoch], float | None]]


def _line_chart(title: str, epochs: Sequence[Epoch], series: Sequence[Series], reference: float | None, *,
                ceiling: float) -> LineChart | None:
    """None where no epoch has a finite value: there is nothing to draw."""
    values = {label: [(epoch.epoch, value) for epoch in epochs
                      if (value := get(epoch)) is not None and math.isfinite(value)] for label, _, get in series}
    heights = [value for points in values.values() for _, value in points]
    if not heights:
        return None
    if reference is not None:
        heights.append(reference)
    high = max(heights)
    spread = max(high - min(heights), 0.01 * abs(high), 1e-6)  # a flat line is drawn too
    y_ticks = tuple(tick for tick in round_ticks(high - spread, high, 5) if tick <= ceiling)
    places = [place for points in values.values() for place, _ in points]
    x_low, x_high = min(places), max(places)
    y_low, y_high = y_ticks[0], max(y_ticks[-1], high)

    def x(place: float) -> float:
        inside = (place - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(_LEFT + inside * (_LINE_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_LINE_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low)
                     * (_LINE_HEIGHT - _TOP - _BOTTOM), 1)

    lines = tuple(Line(label, style, tuple(Point(x(at), y(value), f"epoch {at}, {label}: {value:.4g}")
                                           for at, value in values[label]))
                  for label, style, _ in series if values[label])
    return LineChart(title=title, lines=lines, x_ticks=tuple(Tick(x(at), str(at)) for at in _whole(x_low, x_high)),
                     y_ticks=tuple(Tick(y(tick), f"{tick:g}") for tick in y_ticks),
                     reference=None if reference is None else Tick(y(reference), f"{reference:.2f}"))


def _whole(low: int, high: int) -> tuple[int, ...]:
    """Round whole numbers between the ends, or the one number if they are equal."""
    if low == high:
        return (low,)
    return tuple(sorted({int(tick) for tick in round_ticks(low, high, 8) if tick == int(tick) and low <= tick <= high}))


def live_chart(network: Network) -> BarChart | None:
    """Live weights of each layer before all of its weights."""
    layers = [layer for layer in network.layers if layer.weights]
    if not layers:
        return None
    scale = _room() / max(layer.weights for layer in layers)
    bars = tuple(Bar(y=_GAP + at * (_BAR + _GAP), length=_length(layer.live, scale),
                     outline=_length(layer.weights, scale), style="live", label=layer.name,
                     value=f"{layer.live:,} of {layer.weights:,}",
                     title=f"{layer.name}: {layer.live:,} of {layer.weights:,} weights live")
                 for at, layer in enumerate(layers))
    return BarChart(title="Live weights of each layer, before all of its weights", bars=bars,
                    height=_GAP + len(bars) * (_BAR + _GAP))


def cycle_chart(cycles: Cycles) -> BarChart | None:
    """Cycles of each layer and phase, before those of the dense network."""
    longest = max((max(row.cycles, row.dense_cycles or 0) for row in cycles.layers), default=0)
    if not longest:
        return None
    bars, y = [], float(_GAP)
    for layer in cycles.layer_names:
        rows = [row for phase in Phase if (row := cycles.of(layer, phase))]
        for at, row in enumerate(rows):
            faster = f" ({row.speedup:.1f}×)" if row.speedup else ""
            dense = "" if row.dense_cycles is None else f", dense {row.dense_cycles:,}"
            bars.append(Bar(y=y, length=_length(row.cycles, _room() / longest),
                            outline=_length(row.dense_cycles or 0, _room() / longest), style=row.phase.value.lower(),
                            label="" if at else layer, value=f"{row.cycles:,}{faster}",
                            title=f"{layer} {row.phase.value}: {row.cycles:,} cycles{dense}"))
            y += _BAR + 2
        y += _GAP
    return BarChart(title="Cycles of one step by layer and phase, before those of the dense network",
                    bars=tuple(bars), height=y)


def _room() -> int:
    return _BAR_WIDTH - _LABEL - _VALUE


def _length(value: int, scale: float) -> float:
    """Pixels; at least a hair for what is not zero."""
    return max(round(value * scale, 1), 1.0) if value else 0.0
