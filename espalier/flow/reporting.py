"""Report: everything that directories hold -> one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from espalier.cost.resources import estimate
from espalier.errors import DataError
from espalier.flow.comparison import settings
from espalier.flow.design import Design, load_design
from espalier.flow.manifest import MACHINE, MANIFEST, Manifest, load_manifest
from espalier.flow.simulation import SIMULATE
from espalier.flow.steps import Steps
from espalier.flow.synthesis import SYNTH
from espalier.flow.verification import VERIFY
from espalier.ir.differentiate import differentiate
from espalier.ir.ops import BiasGrad, Conv2dWeightGrad, LinearWeightGrad
from espalier.records import Figure, Provenance, write_json, write_text_atomically
from espalier.report.collect import area_section, format_section, machine_section, memory_section, network_section
from espalier.report.cycles import Cycles, Phase
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
from espalier.targets import Device, find_device
from espalier.train.checkpoint import Checkpoint
from espalier.train.loop import CHECKPOINT

RESULTS = frozenset({MANIFEST, MACHINE, VERIFY, SIMULATE, SYNTH})  #: what other stages keep as JSON


def write_report(folders: Sequence[Path], output: Path, *, title: str | None = None, baseline: Path | None = None,
                 steps: Steps | None = None) -> Report:
    """Write the page ``output`` and, beside it, the same as JSON.

    Parameters
    ----------
    folders : sequence of Path
        Training and build directories, in any order; the last of each kind speaks.
    baseline : Path, optional
        A training directory whose accuracy is shown as that of the float32 dense network.

    Raises DataError if no folder holds a training or a build, they are of different networks, ``baseline`` is
    given and holds no float32 training without pruning, a file is damaged, or the JSON would replace
    something else.
    """
    steps = steps or Steps()
    source = output.with_suffix(".json")
    if source == output or source.name in RESULTS:
        raise DataError(f"The report writes its JSON beside the page, to {source}, which is the place of something "
                        f"else: choose another name for the page, such as report.html")
    with steps.step("collect"):
        report = collect_report(folders, title, baseline)
    with steps.step("render"):
        page = render(report)
    write_text_atomically(output, page)
    write_json(source, report.to_json())
    steps.wrote(output, source)
    return report


def collect_report(folders: Sequence[Path], title: str | None, baseline: Path | None) -> Report:
    """What the folders hold, as a report; what they do not hold is left out, and the page says so."""
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise DataError(f"There is no directory {missing} to report on: give what train or compile wrote")
    trained = [folder for folder in folders if (folder / CHECKPOINT).is_file()]
    built = [folder for folder in folders if (folder / MANIFEST).is_file()]
    if not trained and not built:
        raise DataError(f"There is nothing to report on in {', '.join(map(str, folders)) or 'no directory'}: give "
                        f"directories that train or compile wrote")
    report = Report(title=title or "Espalier")
    if trained:
        report = _with_training(report, Checkpoint.load(trained[-1] / CHECKPOINT))
    if built:
        report = _with_build(report, built[-1])
    if baseline is not None:
        report = _with_baseline(report, baseline)
    if title is None and report.network is not None:
        report = replace(report, title=f"Espalier: {report.network.name}")
    return report


def _with_baseline(report: Report, folder: Path) -> Report:
    checkpoint = Checkpoint.load(folder / CHECKPOINT)
    config = checkpoint.config
    if any((config.quantise, config.prune, config.structure, config.tracking)) or not checkpoint.log:
        raise DataError(f"The baseline is the accuracy in float32 without pruning after at least one epoch, and "
                        f"{folder} does not hold that: train it with --float32 and without --density")
    if report.training is None:
        raise DataError("A baseline stands beside the accuracy of a training, and there is none: give a training "
                        "directory, too")
    return replace(report, training=replace(report.training, baseline_accuracy=checkpoint.log[-1].test_accuracy))


def _with_training(report: Report, checkpoint: Checkpoint) -> Report:
    if report.network is not None and report.network.name != checkpoint.graph.name:
        raise DataError(f"The training is of network {report.network.name!r} and the build of "
                        f"{checkpoint.graph.name!r}: report on each by itself")
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
        recipe.append(Fact("pruning", f"{prune.method.kind}, to {prune.method.density:.0%} in {prune.method.rows}×"
                                      f"{prune.method.rows} blocks, epochs {prune.schedule.start:g} to "
                                      f"{prune.schedule.end:g}"))
        if prune.exchange is not None:
            recipe.append(Fact("exchange", f"{prune.exchange.fraction:.0%} of the live blocks at first, epochs "
                                           f"{prune.exchange.start:g} to {prune.exchange.end:g}"))
        if prune.lasso is not None:
            recipe.append(Fact("group lasso", f"{prune.lasso.weight:g}, epochs {prune.lasso.start:g} to "
                                              f"{prune.lasso.end:g}"))
    shown = {"Pruning": config.tracking, "Widths": config.structure, "Frozen": config.frozen}
    recipe += [Fact(fact.name.lower(), fact.value) for fact in settings(config) if shown.get(fact.name)]
    epochs = tuple(Epoch(epoch=entry.epoch, loss=entry.loss, train_accuracy=entry.train_accuracy,
                         test_accuracy=entry.test_accuracy, live_weights=sum(entry.live.values()))
                   for entry in checkpoint.log)
    return replace(report, training=Training(dataset=config.data, recipe=tuple(recipe), epochs=epochs),
                   saturation=_saturation(checkpoint))


def _saturation(checkpoint: Checkpoint) -> tuple[SaturationCount, ...]:
    """The words at an end of their range in the batch after the last epoch, of all that a step computes."""
    step = differentiate(checkpoint.graph, checkpoint.config.loss, checkpoint.gradient_formats)
    summed = Conv2dWeightGrad | LinearWeightGrad | BiasGrad  # over the batch
    words = {op.out.name: prod(op.out.shape) * (1 if isinstance(op, summed) else checkpoint.config.batch)
             for op in step.ops}
    return tuple(SaturationCount(tensor=name, saturated=count, words=words[name])
                 for name, count in checkpoint.log[-1].saturated.items())


def _with_build(report: Report, folder: Path) -> Report:
    design, manifest = load_design(folder), load_manifest(folder)
    report = _with_training(report, design.checkpoint)
    machine, depths = design.machine, manifest.depths
    weights, states = (machine.all_rows * (depths.weight_depth.used + (2 * panel.used if panel else 0))
                       for panel in (depths.panel_depth, depths.state_depth))
    used = {"activations": depths.activation_depth.used * machine.elements,
            "gradients": depths.gradient_depth.used * machine.all_rows,
            "weights": weights, **dict.fromkeys(("masters", "momenta", "gradient_sums"), states)}
    report = replace(
        report, machine=machine_section(machine), memories=memory_section(machine, used),
        figures=(*report.figures, Figure("Index lists and pointers", manifest.index_bytes, "bytes",
                                         Provenance.ESTIMATED), *_cycle_figures(manifest),
                 *_resource_figures(manifest)),
        tools=tuple(ToolVersion(name, version) for name, version in sorted(manifest.tools.items())))
    report = _with_checks(report, folder, manifest, design)
    return _with_area(report, folder, design)


def _with_checks(report: Report, folder: Path, manifest: Manifest, design: Design) -> Report:
    verified, simulated = _read(folder / VERIFY), _read(folder / SIMULATE)
    checks = [] if verified is None else [decode(Verification, verified, VERIFY)]
    if simulated is None:
        return replace(report, verifications=tuple(checks))
    with _as_written(folder / SIMULATE):
        checks += [decode(Verification, check, SIMULATE) for check in simulated["verifications"]]
        cycles = decode(Cycles, simulated["cycles"], SIMULATE)
        figures = tuple(map(Figure.from_json, simulated["figures"]))
    return replace(report, verifications=tuple(checks), cycles=cycles, figures=(*report.figures, *figures),
                   estimates=(*report.estimates, *_cycle_estimates(cycles, manifest, design)))


def _cycle_figures(manifest: Manifest) -> list[Figure]:
    """What the cycle model says of all layers together, by phase."""
    layers = manifest.estimated_cycles
    return [Figure(f"{phase.value} of a group of images", cycles, "cycles", Provenance.ESTIMATED) for phase, cycles in (
        (Phase.FP, sum(layer.FP for layer in layers)), (Phase.BP, sum(layer.BP for layer in layers)),
        (Phase.WU, sum(layer.WU for layer in layers)))]


def _resource_figures(manifest: Manifest) -> tuple[Figure, ...]:
    """What the resource model says that the machine takes of the part that it was built for."""
    resources = manifest.estimated_resources
    return () if resources is None else tuple(replace(figure, name=f"{figure.name} of {manifest.device}")
                                              for figure in resources.figures(Provenance.ESTIMATED))


def _cycle_estimates(cycles: Cycles, manifest: Manifest, design: Design) -> list[Estimate]:
    """The cycle model against the simulation, phase by phase."""
    groups = design.batch // design.machine.images
    foretold = {(entry.layer, phase): count * groups for entry in manifest.estimated_cycles
                for phase, count in ((Phase.FP, entry.FP), (Phase.BP, entry.BP), (Phase.WU, entry.WU))}
    strange = next((row for row in cycles.layers if (row.layer, row.phase) not in foretold), None)
    if strange is not None:
        raise DataError(f"{SIMULATE} has cycles of layer {strange.layer!r}, and {MANIFEST} has no estimate of them: "
                        f"compile and simulate the network again")
    return [Estimate(name=f"{row.layer} {row.phase.value}", unit="cycles",
                     estimated=foretold[row.layer, row.phase], actual=row.cycles, provenance=cycles.provenance)
            for row in cycles.layers]


def _with_area(report: Report, folder: Path, design: Design) -> Report:
    found = _read(folder / SYNTH)
    if found is None:
        return report
    with _as_written(folder / SYNTH):
        synthesis = Synthesis.from_json(found["synthesis"])
        routing = None if found["routing"] is None else Routing.from_json(found["routing"])
        skipped = [] if routing is not None else [Skipped(Section.AREA, f"Not routed: {found['not_routed']}.")]
    device = find_device(found["device"])
    area = area_section(device, synthesis, routing, design.machine.multipliers)
    tools = [ToolVersion(*tool.rsplit(" ", 1)) for tool in (synthesis.tool, routing.tool if routing else "") if tool]
    return replace(report, area=area, estimates=(*report.estimates, *_resource_estimates(device, synthesis, design)),
                   tools=(*report.tools, *tools), skipped=(*report.skipped, *skipped))


def _resource_estimates(device: Device, synthesis: Synthesis, design: Design) -> list[Estimate]:
    """The resource model against the synthesis."""
    foretold = estimate(design.machine, device)
    if foretold is None:
        return []
    counted = synthesis.resources.figures(Provenance.SYNTHESISED)
    return [Estimate(name=f"{guess.name} of {device.name}", unit=guess.unit, estimated=guess.value, actual=found.value,
                     provenance=found.provenance)
            for guess, found in zip(foretold.figures(Provenance.ESTIMATED), counted, strict=True)]


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Turn what taking a record apart raises into a DataError about ``path``."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not as this version writes it ({type(error).__name__}: {error}): run the command "
                        f"that wrote it again") from error


def _read(path: Path) -> Any:
    """The content of a result; None where there is none. Raises DataError if it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): run the command that wrote it again") from None
