"""A report as one HTML page without outside resources, scripts, dates or paths."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from espalier.records import Figure, Provenance
from espalier.report.charts import BarChart, LineChart, accuracy_chart, cycle_chart, live_chart, loss_chart
from espalier.report.cycles import Phase
from espalier.report.model import Report, Section

#: What was not done where a section has no data, and what would do it.
NOT_RUN: dict[Section, str] = {
    Section.NETWORK: "No network was given to this report.",
    Section.TRAINING: "Not trained here: no training log was given. `espalier train` writes one.",
    Section.VERIFICATION: "Not verified: no two engines were compared. `espalier verify` compares them bit for bit.",
    Section.CYCLES: "Not simulated: no cycles were counted. `espalier simulate` counts them in the RTL.",
    Section.MEMORIES: "Not compiled: there is no memory map. `espalier compile` makes one.",
    Section.AREA: "Not synthesised: area and clock are not known. `espalier synth` finds them.",
    Section.ESTIMATES: "No estimate was held against a result.",
    Section.FIGURES: "No further figures were recorded.",
    Section.MACHINE: "No machine was chosen. `espalier compile` chooses one.",
    Section.FORMATS: "No number formats were recorded: the network was not calibrated.",
    Section.SATURATION: "Saturation was not counted.",
    Section.TOOLS: "No tool versions were recorded.",
}
MEANINGS: dict[Provenance, str] = {
    Provenance.ESTIMATED: "computed from a model",
    Provenance.SIMULATED: "counted in a simulation of the RTL",
    Provenance.SYNTHESISED: "read from a synthesis or place-and-route tool's own report",
    Provenance.MEASURED: "observed while the real thing ran",
}


@dataclass(frozen=True, slots=True)
class Card:
    """A headline figure. Without ``provenance`` it was not obtained, and ``text`` says so."""

    name: str
    text: str
    provenance: Provenance | None
    detail: str = ""
    alarm: bool = False


def render(report: Report) -> str:
    """The page as text. Equal reports give equal text, byte for byte."""
    environment = Environment(loader=PackageLoader("espalier.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"count": count, "percent": percent, "quantity": quantity, "times": times,
                            "shape": shape, "code": code_parts}
    return environment.get_template("page.html.j2").render(
        report=report, cards=headline(report), charts=_charts(report), Section=Section, Phase=Phase,
        not_run=not_run(report), meanings=MEANINGS)


def _charts(report: Report) -> dict[str, LineChart | BarChart | None]:
    """The charts that there is data for, by the name the template knows them by."""
    training, network, cycles = report.training, report.network, report.cycles
    return {"accuracy": accuracy_chart(training.epochs, training.baseline_accuracy) if training else None,
            "loss": loss_chart(training.epochs) if training else None,
            "live": live_chart(network) if network else None,
            "cycles": cycle_chart(cycles) if cycles else None}


def not_run(report: Report) -> dict[Section, str]:
    """The sentence for each section that has no data: the reason given, else the general one."""
    return NOT_RUN | {skipped.section: skipped.reason for skipped in report.skipped}


def headline(report: Report) -> tuple[Card, ...]:
    """The figures that a reader looks for first; those that were not obtained are there and say so."""
    return (_accuracy_card(report), _live_card(report), _verification_card(report), _speedup_card(report),
            _utilisation_card(report), _clock_card(report))


def _accuracy_card(report: Report) -> Card:
    training = report.training
    if training is None or training.test_accuracy is None:
        return Card("Test accuracy", "not run", None)
    base = training.baseline_accuracy
    detail = "" if base is None else f"float32 dense: {percent(base, 2)}"
    return Card("Test accuracy", percent(training.test_accuracy, 2), training.provenance, detail)


def _live_card(report: Report) -> Card:
    if report.network is None:
        return Card("Live weights", "not given", None)
    total = report.network.total
    return Card("Live weights", percent(total.density), report.network.provenance,
                f"{count(total.live)} of {count(total.weights)}")


def _verification_card(report: Report) -> Card:
    checks = report.verifications
    if not checks:
        return Card("Differing words", "not run", None)
    compared, differing = sum(check.words for check in checks), sum(check.differing for check in checks)
    sure = all(check.passed for check in checks)
    text = count(differing) if compared else "nothing compared"
    return Card("Differing words", text, checks[0].provenance, f"of {count(compared)} compared", alarm=not sure)


def _speedup_card(report: Report) -> Card:
    cycles = report.cycles
    if cycles is None or cycles.step_speedup is None:
        return Card("Step against dense", "not run", None, "" if cycles is None else "no dense run to compare with")
    return Card("Step against dense", times(cycles.step_speedup), cycles.provenance,
                f"{count(cycles.step_cycles)} cycles for {count(cycles.images)} images")


def _utilisation_card(report: Report) -> Card:
    cycles = report.cycles
    if cycles is None:
        return Card("MAC utilisation", "not run", None)
    return Card("MAC utilisation", percent(cycles.step_utilisation), cycles.provenance,
                f"{count(cycles.multipliers)} multipliers, whole step")


def _clock_card(report: Report) -> Card:
    clocks = report.area.clocks if report.area else ()
    if report.area is None or not clocks:
        return Card("Clock", "not run", None, "no place and route" if report.area else "")
    slowest = min(clocks, key=lambda clock: clock.achieved_mhz)
    return Card("Clock", f"{slowest.achieved_mhz:.1f} MHz", report.area.provenance,
                f"{report.area.device.split(' ')[0]}, wanted {slowest.wanted_mhz:g}\u00a0MHz", alarm=not slowest.met)


def count(value: int) -> str:
    """A whole number with its thousands parted: ``1,234,567``."""
    return f"{value:,}"


def percent(ratio: float | None, digits: int = 1) -> str:
    """A ratio in percent, ``93.0 %`` with a space that does not break; a dash where there is none.

    Never rounded up to 100 % or down to 0 %.
    """
    if ratio is None:
        return "–"
    if not math.isfinite(ratio):
        return str(ratio)
    ulp = 10.0 ** -digits
    shown = round(100 * ratio, digits)
    if ratio < 1 and shown >= 100:
        shown = 100 - ulp
    if ratio > 0 and shown <= 0:
        return f"<\u00a0{ulp:.{digits}f}\u00a0%"
    return f"{shown:.{digits}f}\u00a0%"


def times(ratio: float | None) -> str:
    """A speed-up: ``9.35×``; a dash where there is none."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def quantity(figure: Figure) -> str:
    """Value and unit of a figure, the value to four places or as a whole number."""
    value = count(figure.value) if isinstance(figure.value, int) else number(figure.value)
    return f"{value} {figure.unit}".strip()


def number(value: float) -> str:
    """Four significant digits, whole thousands kept whole."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shape(axes: tuple[int, ...]) -> str:
    """``16×28×28``; a dash for a single number."""
    return "×".join(map(str, axes)) or "–"


def code_parts(sentence: str) -> list[tuple[bool, str]]:
    """A sentence cut at its backquotes: (is it code, text)."""
    return [(at % 2 == 1, part) for at, part in enumerate(sentence.split("`")) if part]
