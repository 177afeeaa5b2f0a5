"""Report: everything that directories hold -> one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier.errors import DataError
from espalier.flow.cycles import layers_of
from espalier.flow.design import MANIFEST, Design, load_design, load_manifest
from espalier.flow.simulate import SIMULATE
from espalier.flow.steps import Steps
from espalier.flow.synth import SYNTH
from espalier.flow.verify import VERIFY
from espalier.records import Figure, Provenance, write_json, write_text_atomically
from espalier.report.collect import area_section, format_section, machine_section, memory_section, network_section
from espalier.report.cycles import Cycles
from espalier.report.model import (
    Epoch,
    Estimate,
    Fact,
    Report,
    SaturationCount,
    Section,
    Skipped,
    ToolVersion,
    Training,
    Verification,
)
from espalier.report.render import render
from espalier.report.serial import decode
from espalier.synth.nextpnr import Routing
from espalier.synth.yosys import Synthesis
from espalier.targets import find_device
from espalier.train.checkpoint import Checkpoint
from espalier.train.loop import CHECKPOINT


def write_report(folders: Sequence[Path], output: Path, *, title: str | None = None, baseline: Path | None = None,
                 steps: Steps | None = None) -> Report:
    """Write the page ``output`` and, beside it, the same as JSON.

    Parameters
    ----------
    folders : sequence of Path
        Training and build directories, in any order; where two hold the same, the later one speaks.
    baseline : Path, optional
        A training directory whose accuracy is shown as that of the float32 dense network.

    Raises DataError if none of the folders holds anything, or a file is damaged.
    """
    steps = steps or Steps()
    with steps.step("collect"):
        report = collect_report(folders, title, baseline)
    with steps.step("render"):
        page = render(report)
    write_text_atomically(output, page)
    write_json(output.with_suffix(".json"), report.to_json())
    steps.wrote(output, output.with_suffix(".json"))
    return report


def collect_report(folders: Sequence[Path], title: str | None, baseline: Path | None) -> Report:
    """What the folders hold, as a report; what they do not hold is left out, and the page says so."""
    report = Report(title=title or "Espalier")
    found = False
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"There is no directory {folder} to report on: give what train or compile wrote")
        if (folder / CHECKPOINT).is_file():
            report, found = _with_training(report, Checkpoint.load(folder / CHECKPOINT)), True
        if (folder / MANIFEST).is_file():
            report, found = _with_build(report, folder), True
    if not found:
        raise DataError(f"There is nothing to report on in {', '.join(map(str, folders)) or 'no directory'}: give "
                        f"directories that train or compile wrote")
    if baseline is not None and report.training is not None:
        log = Checkpoint.load(baseline / CHECKPOINT).log
        accuracy = log[-1].test_accuracy if log else None
        report = replace(report, training=replace(report.training, baseline_accuracy=accuracy))
    if title is None and report.network is not None:
        report = replace(report, title=f"Espalier: {report.network.name}")
    return report


def _with_training(report: Report, checkpoint: Checkpoint) -> Report:
    report = replace(report, network=network_section(checkpoint.graph, checkpoint.live),
                     formats=format_section(checkpoint.graph))
    config = checkpoint.config
    if not checkpoint.log:
        return report
    quantise, prune = config.quantise, config.prune
    recipe = [Fact("batch", str(config.batch)), Fact("epochs", str(config.epochs)), Fact("seed", str(config.seed)),
              Fact("learning rate", f"{config.sgd.learning_rate:g}, {config.rate.kind.value}"),
              Fact("momentum", f"{config.sgd.momentum:g}"), Fact("weight decay", f"{config.sgd.weight_decay:g}"),
              Fact("loss", config.loss), Fact("update", config.update.value)]
    if quantise is not None:
        widths = quantise.widths
        recipe.append(Fact("widths", f"weights {widths.weight}, activations {widths.activation}, gradients "
                                     f"{widths.gradient} bits"))
    if prune is not None:
        recipe.append(Fact("pruning", f"to {prune.magnitude.density:.0%} in {prune.magnitude.rows}×"
                                      f"{prune.magnitude.rows} blocks, epochs {prune.schedule.start:g} to "
                                      f"{prune.schedule.end:g}"))
    epochs = tuple(Epoch(epoch=entry.epoch, loss=entry.loss, train_accuracy=entry.train_accuracy,
                         test_accuracy=entry.test_accuracy, live_weights=sum(entry.live.values()))
                   for entry in checkpoint.log)
    words = {value.name: _size(value.shape) * config.batch for value in checkpoint.graph.values()}
    saturation = tuple(SaturationCount(tensor=name, saturated=count, words=max(count, words.get(name, count)))
                       for name, count in checkpoint.log[-1].saturated.items())
    return replace(report, training=Training(dataset=config.data, recipe=tuple(recipe), epochs=epochs),
                   saturation=saturation)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size


def _with_build(report: Report, folder: Path) -> Report:
    design, manifest = load_design(folder), load_manifest(folder)
    report = _with_training(report, design.checkpoint)
    machine, depths = design.machine, manifest["depths"]
    columns = depths["weight_depth"]["used"] * machine.rows
    used = {"activations": depths["activation_depth"]["used"],
            "gradients": depths["gradient_depth"]["used"] * machine.rows,
            **dict.fromkeys(("weights", "masters", "momenta", "gradient_sums"), columns)}
    report = replace(
        report, machine=machine_section(machine), memories=memory_section(machine, used),
        figures=(*report.figures, Figure("Index lists and pointers", manifest["index_bytes"], "bytes",
                                         Provenance.ESTIMATED)),
        tools=tuple(ToolVersion(name, version) for name, version in sorted(manifest["tools"].items())))
    report = _with_checks(report, folder, manifest, design)
    return _with_area(report, folder, design)


def _with_checks(report: Report, folder: Path, manifest: dict[str, Any], design: Design) -> Report:
    verified, simulated = _read(folder / VERIFY), _read(folder / SIMULATE)
    checks = [] if verified is None else [decode(Verification, verified, VERIFY)]
    if simulated is None:
        return replace(report, verifications=tuple(checks))
    checks += [decode(Verification, check, SIMULATE) for check in simulated["verifications"]]
    cycles = decode(Cycles, simulated["cycles"], SIMULATE)
    figures = tuple(map(Figure.from_json, simulated["figures"]))
    return replace(report, verifications=tuple(checks), cycles=cycles, figures=(*report.figures, *figures),
                   estimates=(*report.estimates, *_cycle_estimates(cycles, manifest, design)))


def _cycle_estimates(cycles: Cycles, manifest: dict[str, Any], design: Design) -> list[Estimate]:
    """The compiler's estimates of each phase against the simulation."""
    groups = design.batch // design.machine.lanes
    names = {layer.name for layer in layers_of(design)}
    foretold = {(entry["layer"], phase): entry[phase] * groups for entry in manifest["estimated_cycles"]
                for phase in ("FP", "BP", "WU") if entry["layer"] in names}
    return [Estimate(name=f"{row.layer} {row.phase.value}", unit="cycles",
                     estimated=foretold[row.layer, row.phase.value], actual=row.cycles, provenance=cycles.provenance)
            for row in cycles.layers]


def _with_area(report: Report, folder: Path, design: Design) -> Report:
    found = _read(folder / SYNTH)
    if found is None:
        return report
    synthesis = Synthesis.from_json(found["synthesis"])
    routing = None if found["routing"] is None else Routing.from_json(found["routing"])
    area = area_section(find_device(found["device"]), synthesis, routing, design.machine.multipliers)
    tools = [ToolVersion(*tool.rsplit(" ", 1)) for tool in (synthesis.tool, routing.tool if routing else "") if tool]
    skipped = [] if routing is not None else [Skipped(Section.AREA, f"Not routed: {found['not_routed']}.")]
    return replace(report, area=area, tools=(*report.tools, *tools), skipped=(*report.skipped, *skipped))


def _read(path: Path) -> Any:
    """The content of a result; None where there is none. Raises DataError if it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}): run the command that wrote it again") from None
