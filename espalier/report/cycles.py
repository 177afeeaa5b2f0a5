"""Where the cycles of a training step go: by layer and phase, against the dense network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from espalier.records import Figure, Provenance
from espalier.report.bounds import require_within


class Phase(Enum):
    """The three phases of training that use the multipliers."""

    FP = "FP"
    BP = "BP"
    WU = "WU"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCycles:
    """One layer in one phase. A useful MAC has a live weight and a tap inside the image."""

    layer: str
    phase: Phase
    cycles: int
    useful_macs: int
    dense_cycles: int | None = None

    @property
    def speedup(self) -> float | None:
        """Dense cycles by these cycles; None where the dense run is missing or either count is zero."""
        return self.dense_cycles / self.cycles if self.dense_cycles and self.cycles else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherCycles:
    """Cycles of a step that are not MAC phases: update, loss, pooling, barriers."""

    name: str
    cycles: int
    dense_cycles: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """The cycles of one training step of ``images`` images on ``multipliers`` multipliers.

    ``step_cycles`` is the whole step, which is less than the sum of the parts where they overlap.
    ``figures`` holds rates such as executed, dense-equivalent and peak GOPS. ``dense_missing`` says why the
    dense network was not run, where it was to be.
    """

    multipliers: int
    images: int
    step_cycles: int
    dense_step_cycles: int | None
    layers: tuple[LayerCycles, ...]
    others: tuple[OtherCycles, ...] = ()
    figures: tuple[Figure, ...] = ()
    provenance: Provenance = Provenance.SIMULATED
    dense_provenance: Provenance = Provenance.SIMULATED
    dense_missing: str = ""

    def __post_init__(self) -> None:
        for row in self.layers:
            require_within("Useful MACs", f"{row.layer} {row.phase.value}", row.useful_macs,
                           self.multipliers * row.cycles)
        require_within("Useful MACs", "the step", self.useful_macs, self.multipliers * self.step_cycles)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in the order of their first mention."""
        return tuple(dict.fromkeys(row.layer for row in self.layers))

    def of(self, layer: str, phase: Phase) -> LayerCycles | None:
        """The row of that layer and phase; None where the layer has no such phase."""
        return next((row for row in self.layers if (row.layer, row.phase) == (layer, phase)), None)

    def phase_total(self, phase: Phase) -> LayerCycles | None:
        """All layers of a phase as one row; dense cycles only where every layer has them."""
        return _sum((row for row in self.layers if row.phase is phase), phase)

    @property
    def useful_macs(self) -> int:
        return sum(row.useful_macs for row in self.layers)

    def utilisation(self, row: LayerCycles) -> float:
        """Useful MACs of the row by the MACs that the lattice could do in its cycles."""
        return row.useful_macs / (self.multipliers * row.cycles) if row.cycles else 0.0

    @property
    def step_utilisation(self) -> float:
        return self.useful_macs / (self.multipliers * self.step_cycles) if self.step_cycles else 0.0

    @property
    def step_speedup(self) -> float | None:
        return self.dense_step_cycles / self.step_cycles if self.dense_step_cycles and self.step_cycles else None


def _sum(rows: Iterable[LayerCycles], phase: Phase) -> LayerCycles | None:
    rows = tuple(rows)
    if not rows:
        return None
    dense = [row.dense_cycles for row in rows if row.dense_cycles is not None]
    return LayerCycles(layer="all layers", phase=phase, cycles=sum(row.cycles for row in rows),
                       useful_macs=sum(row.useful_macs for row in rows),
                       dense_cycles=sum(dense) if len(dense) == len(rows) else None)
