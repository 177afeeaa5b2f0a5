"""Trainings side by side: the records of ``compare``, its table, and its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from espalier.errors import DataError
from espalier.records import Figure, Provenance
from espalier.report.charts import Tick, round_ticks
from espalier.report.model import Fact
from espalier.report.render import MEANINGS, count, number, percent
from espalier.report.serial import encode

FORMAT = 1  #: of the JSON
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 12, 40
_LABEL_WIDTH, _LABEL_HEIGHT = 14, 11


class Column(Enum):
    """What is compared; the value is the heading, and the name of the figure in the JSON."""

    ACCURACY = "Test accuracy"
    LIVE = "Live weights"
    FP = "FP MACs"
    BP = "BP MACs"
    WU = "WU MACs"
    TRAINING = "Training MACs"
    INDEX = "Index bytes"
    CYCLES = "Cycles a step"
    OWN_CYCLES = "Cycles an image, own rows"

    @property
    def unit(self) -> str:
        """Of its figures; an accuracy has none."""
        return _ABOUT[self][0]

    @property
    def provenance(self) -> Provenance:
        """Of its figures."""
        return _ABOUT[self][1]

    @property
    def meaning(self) -> str:
        """What it says, in one sentence."""
        return _ABOUT[self][2]

    def figure(self, value: float | int) -> Figure:
        """A figure of this column."""
        return Figure(self.value, value, self.unit, self.provenance)


_PHASE = "of one image, with a live weight and a tap inside the image"
_ABOUT: dict[Column, tuple[str, Provenance, str]] = {
    Column.ACCURACY: ("", Provenance.MEASURED, "After the last epoch; the mean over the seeds, then the lowest and "
                                               "the highest."),
    Column.LIVE: ("weights", Provenance.MEASURED, "After the last epoch, without biases."),
    Column.FP: ("MAC/image", Provenance.ESTIMATED, f"Multiplications of the forward pass {_PHASE}."),
    Column.BP: ("MAC/image", Provenance.ESTIMATED, f"Multiplications of the backward pass {_PHASE}; none for layers "
                                                   f"that read the image."),
    Column.WU: ("MAC/image", Provenance.ESTIMATED, f"Multiplications of the weight update {_PHASE}."),
    Column.TRAINING: ("MAC", Provenance.ESTIMATED, "FP, BP and WU of all steps of the run, from the live weights of "
                                                   "each epoch, and the dense gradients of exchanges; without the "
                                                   "steps that only choose formats."),
    Column.INDEX: ("bytes", Provenance.ESTIMATED, "Index lists and segment pointers of the Program whose rows are the "
                                                  "recipe's blocks (of the dense network, the machine's rows)."),
    Column.CYCLES: ("cycles", Provenance.ESTIMATED, "Of a training step of the recipe's batch on the machine, without "
                                                    "pipeline fills and barriers."),
    Column.OWN_CYCLES: ("cycles/image", Provenance.ESTIMATED, "The same for each image, with as many multipliers in "
                                                              "rows of the recipe's blocks, in steps of as many images "
                                                              "as there are lanes."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recipe with one seed.

    Parameters
    ----------
    seed : int
    folder : str
        Name of the training directory beside the comparison.
    figures : tuple of Figure
        One for each :class:`Column` that could be had.
    missing : tuple of Fact
        For each of the others, why.
    lattice : str
        The lattice of :attr:`Column.INDEX` and :attr:`Column.OWN_CYCLES`, such as ``4×32``; empty without one.
    """

    seed: int
    folder: str
    figures: tuple[Figure, ...]
    missing: tuple[Fact, ...] = ()
    lattice: str = ""

    def value(self, column: Column) -> float | int | None:
        """The figure of a column; None where it could not be had."""
        return next((figure.value for figure in self.figures if figure.name == column.value), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A recipe: its settings, and at least one run."""

    name: str
    settings: tuple[Fact, ...]
    runs: tuple[Run, ...]

    def values(self, column: Column) -> tuple[float | int, ...]:
        """The figures of the runs that have one."""
        found = (run.value(column) for run in self.runs)
        return tuple(value for value in found if value is not None)

    def mean(self, column: Column) -> float | None:
        """Over the seeds; None where no run has the figure."""
        values = self.values(column)
        return sum(values) / len(values) if values else None

    def reason(self, column: Column) -> str:
        """Why a figure is missing; empty where none is."""
        return next((fact.value for run in self.runs for fact in run.missing if fact.name == column.value), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Recipes side by side; cycles are counted on a lattice of ``machine_rows × machine_lanes``."""

    machine_rows: int
    machine_lanes: int
    rows: tuple[Row, ...]
    format: int = FORMAT

    @property
    def machine(self) -> str:
        """``8×16``"""
        return f"{self.machine_rows}×{self.machine_lanes}"

    def heading(self, column: Column) -> str:
        """The column's name, with the machine where it is of one."""
        return f"{column.value}, {self.machine}" if column is Column.CYCLES else column.value

    def table(self) -> list[str]:
        """The lines of the table as text, and below it why figures are missing."""
        found = (row.reason(column) for row in self.rows for column in Column)
        reasons = list(dict.fromkeys(reason for reason in found if reason))
        lines = [["Recipe", *map(self.heading, Column)]]
        for row in self.rows:
            marks = [f" [{reasons.index(reason) + 1}]" if (reason := row.reason(column)) else "" for column in Column]
            lines.append([row.name, *(cell(row, column) + mark for column, mark in zip(Column, marks, strict=True))])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(item.rjust(width) if at else item.ljust(width)
                          for at, (item, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
        return [*text, *(f"[{at}] {reason}" for at, reason in enumerate(reasons, 1))]

    def to_json(self) -> dict[str, Any]:
        """Plain data, every figure with its unit and provenance."""
        fields: dict[str, Any] = encode(self)
        return fields


def cell(row: Row, column: Column) -> str:
    """What the table says: the mean over the seeds, and of an accuracy the lowest and highest; a dash for none."""
    mean, values = row.mean(column), row.values(column)
    if mean is None:
        return "–"
    match column:
        case Column.ACCURACY:
            spread = f" ({100 * min(values):.2f}–{100 * max(values):.2f})" if len(values) > 1 else ""
            return percent(mean, 2) + spread
        case Column.TRAINING:
            return scaled(mean)
        case Column.OWN_CYCLES:
            return f"{count(round(mean))} ({row.runs[0].lattice})"
        case _:
            return count(round(mean))


def scaled(value: float) -> str:
    """Three places and a prefix: ``1.23 G``."""
    power = min(max(int(math.log10(max(value, 1)) // 3), 0), 6)
    return f"{value / 1000 ** power:.3g}\u00a0{['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}".strip()


@dataclass(frozen=True, slots=True)
class Mark:
    """A recipe in a chart: its place, the ends of its spread, its number in the table, and what it says.

    ``label_y`` is where the number stands: beside the mark, or lower where another mark's number is.
    """

    x: float
    y: float
    top: float
    bottom: float
    label: str
    title: str
    label_y: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Accuracy (%) against something on a logarithmic axis."""

    title: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


def scatter(comparison: Comparison, column: Column) -> Scatter:
    """Test accuracy against ``column``, a mark for each recipe, with the spread over its seeds."""
    places = [max(1.0, row.mean(column) or 0.0) for row in comparison.rows]
    heights = [100 * value for row in comparison.rows for value in row.values(Column.ACCURACY)]
    spread = max(max(heights) - min(heights), 0.5)
    y_ticks = tuple(tick for tick in round_ticks(max(heights) - spread, max(heights), 5) if tick <= 100)
    x_ticks = log_ticks(min(places), max(places))
    x = _axis(math.log(x_ticks[0]), math.log(x_ticks[-1]), _LEFT, _WIDTH - _RIGHT)
    y = _axis(y_ticks[0], max(y_ticks[-1], max(heights)), _HEIGHT - _BOTTOM, _TOP)
    marks = []
    for at, (row, place) in enumerate(zip(comparison.rows, places, strict=True), 1):
        values = [100 * value for value in row.values(Column.ACCURACY)]
        mean = sum(values) / len(values)
        marks.append(Mark(x(math.log(place)), y(mean), y(max(values)), y(min(values)), str(at),
                          f"{row.name}: {mean:.2f} %, {column.value.lower()} {number(place)}"))
    return Scatter(title=f"Test accuracy (%) against {column.value.lower()}", marks=apart(marks),
                   x_ticks=tuple(Tick(x(math.log(tick)), scaled(tick)) for tick in x_ticks),
                   y_ticks=tuple(Tick(y(tick), f"{tick:g}") for tick in y_ticks))


def apart(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks from the highest down, their numbers moved down where they would cover each other."""
    placed: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: mark.y):
        taken = [other.label_y for other in placed if abs(other.x - mark.x) < _LABEL_WIDTH]
        placed.append(replace(mark, label_y=max([mark.y, *(y + _LABEL_HEIGHT for y in taken)])))
    return tuple(placed)


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round numbers (1, 2 and 5 times powers of ten) of which the first is at most ``low``, the last at least ``high``.

    At least two; ``low`` is at least 1.
    """
    steps = [digit * 10.0 ** power for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
             for digit in (1, 2, 5)]
    first = max(tick for tick in steps if tick <= low)
    last = min(tick for tick in steps if tick >= high and tick > first)
    return tuple(tick for tick in steps if first <= tick <= last)


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values ``low``..``high`` to pixels ``start``..``end``."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def render_comparison(comparison: Comparison) -> str:
    """The page as text, without outside resources, dates or paths; equal comparisons give equal text.

    Raises DataError where there is nothing to compare.
    """
    if not comparison.rows:
        raise DataError("There is nothing to compare: give at least one recipe")
    environment = Environment(loader=PackageLoader("espalier.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    charts = [scatter(comparison, column) for column in (Column.LIVE, Column.TRAINING)]
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison, columns=tuple(Column), cell=cell, charts=charts, meanings=MEANINGS)
