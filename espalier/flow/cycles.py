"""Cycles of one training step as counted in RTL simulation, by layer and phase, against the dense network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import add
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.compiler.fit import required_acc_bits, required_depths
from espalier.compiler.legalise import Layer, legalise
from espalier.compiler.lists import Live, blocks_of, live_weights, weight_numbers
from espalier.compiler.machine_choice import streaming
from espalier.compiler.place import place
from espalier.compiler.tiling import tiled
from espalier.cost.cycles import PhaseCycles, predict
from espalier.cost.energy import step_activity
from espalier.cost.macs import ConvolutionSize, useful_macs
from espalier.cost.traffic import traffic
from espalier.engines.rtl import RtlEngine
from espalier.flow.design import Design
from espalier.ir.differentiate import differentiate
from espalier.program.program import Program
from espalier.program.words import Opcode
from espalier.records import Figure, Provenance
from espalier.report.cycles import Cycles, LayerCycles, OtherCycles, Phase

MOVES = {Opcode.REFETCH: " asked back", Opcode.FETCH: ": weights asked for, and waited for",
         Opcode.STORE: ": weights put out", Opcode.END: ": all written"}
Images = NDArray[np.int64]


def step_cycles(engine: RtlEngine, images: Images, labels: NDArray[np.int64]) -> tuple[PhaseCycles, ...]:
    """The cycles of one training step on one batch, command by command. Trains the engine by that step."""
    engine.clear_cycles()
    engine.train(images, labels, len(images))
    return engine.phase_cycles()[:step_commands(engine.program)]


def step_commands(program: Program) -> int:
    """The commands of a training step; END is one of them where it waits for weights on their way to memory."""
    end = program.entries_at["infer"] - 1
    return end + program.commands[end].fence


def dense_engine(design: Design, timing: MemoryTiming | None = None) -> RtlEngine:
    """The network with every weight alive, on the same lattice with memories that hold them.

    Raises FitError or ToolError where no such machine can be built.
    """
    live = {name: np.ones_like(mask) for name, mask in design.live.items()}
    engine = RtlEngine(design.network(live, dense_machine(design)), timing=timing)
    engine.load(design.state)
    return engine


def dense_machine(design: Design) -> Machine:
    """The machine of ``design`` with depths and accumulators for the dense network."""
    machine, layers = design.machine, tiled(layers_of(design), design.machine.grid)
    live = {name: np.ones_like(mask) for name, mask in design.live.items()}
    blocks = blocks_of(layers, live, machine.rows, elements=machine.elements)
    memory = place(layers, machine.rows, machine.activation_depth, spill=machine.port_bits > 0,
                   elements=machine.elements)
    machine = replace(machine, acc_bits=max(machine.acc_bits, required_acc_bits(layers, blocks)))
    needed = required_depths(layers, blocks, memory, machine.rows)
    if machine.panel_depth:
        grown = streaming(layers, live, memory, machine)
        needed = {name: getattr(grown, name) for name in (*needed, "panel_depth", "state_depth", "run_depth")}
    return replace(machine, **{name: max(depth, getattr(machine, name)) for name, depth in needed.items()})


def layers_of(design: Design) -> tuple[Layer, ...]:
    """The layers as the machine runs them, on whole maps."""
    step = differentiate(design.graph, design.loss, design.checkpoint.gradient_formats)
    return legalise(step, design.checkpoint.frozen)[0]


def cycle_record(design: Design, counted: tuple[PhaseCycles, ...], dense: tuple[PhaseCycles, ...] | None,
                 dense_missing: str = "") -> Cycles:
    """The cycles of a step of ``design.batch`` images as a section of a report.

    ``dense_missing`` says why there is no ``dense``, where one was wanted.
    """
    counted, dense = by_phase(counted), None if dense is None else by_phase(dense)
    layers = {layer.name: layer for layer in layers_of(design)}
    useful = {name: design.batch * layer_macs(layer, design.live) for name, layer in layers.items()}
    dense_counts = [None] * len(counted) if dense is None else [phase.cycles for phase in dense]
    rows, others = [], []
    for phase, dense_cycles in zip(counted, dense_counts, strict=True):
        kind = _phase(phase.opcode)
        if kind is None:
            others.append(OtherCycles(name=f"{phase.layer}{MOVES.get(phase.opcode, '')}", cycles=phase.cycles,
                                      dense_cycles=dense_cycles))
        else:
            rows.append(LayerCycles(layer=phase.layer, phase=kind, cycles=phase.cycles,
                                    useful_macs=useful.get(phase.layer, 0), dense_cycles=dense_cycles))
    total = sum(phase.cycles for phase in counted)
    nominal = sum(nominal_macs(layers[row.layer]) for row in rows if row.layer in layers)  # not of pools apart
    return Cycles(
        multipliers=design.machine.multipliers, images=design.batch, step_cycles=total,
        dense_step_cycles=None if dense is None else sum(phase.cycles for phase in dense), layers=tuple(rows),
        others=tuple(others), dense_missing=dense_missing, figures=(
            Figure("Executed MACs per cycle", sum(row.useful_macs for row in rows) / total, "MAC/cycle",
                   Provenance.SIMULATED),
            Figure("Dense-equivalent MACs per cycle", design.batch * nominal / total, "MAC/cycle",
                   Provenance.SIMULATED),
            Figure("Peak MACs per cycle", design.machine.multipliers, "MAC/cycle", Provenance.ESTIMATED),
            *idle_figures(counted), *model_figures(design, counted)))


def idle_figures(counted: tuple[PhaseCycles, ...]) -> tuple[Figure, ...]:
    """For how much of each phase processing elements do not multiply, where there are several: all, and the idlest."""
    figures: list[Figure] = []
    for phase in Phase:
        found = [one for one in counted if _phase(one.opcode) is phase]
        cycles = sum(one.cycles for one in found)
        steps = [sum(parts) for parts in zip(*(one.steps for one in found), strict=True)]
        if cycles and len(steps) > 1:
            for what, idle in ((f"Idle in {phase.value}", cycles - sum(steps) / len(steps)),
                               (f"Idle in {phase.value}, the processing element with the least work",
                                cycles - min(steps))):
                figures.append(Figure(what, 100 * idle / cycles, "%", Provenance.SIMULATED))
    return tuple(figures)


def model_figures(design: Design, counted: tuple[PhaseCycles, ...]) -> tuple[Figure, ...]:
    """What a training step moves to and from external memory and waits for it, and what energy it would cost."""
    program, groups = design.network().program, design.batch // design.machine.images
    memory: tuple[Figure, ...] = ()
    if design.machine.port_bits:
        moved = traffic(program)
        computed = groups * sum(phase.cycles for phase in predict(program)[: step_commands(program)])
        memory = (Figure("Read from external memory", groups * moved.read, "bytes", Provenance.ESTIMATED),
                  Figure("Written to external memory", groups * moved.written, "bytes", Provenance.ESTIMATED),
                  Figure("Waits for external memory", sum(phase.cycles for phase in counted) - computed, "cycles",
                         Provenance.SIMULATED))
    spent = step_activity(program, groups).microjoules()
    return (*memory, Figure("Energy of a step", sum(spent.values()), "µJ", Provenance.ESTIMATED),
            *(Figure(f"Energy of a step: {what}", value, "µJ", Provenance.ESTIMATED) for what, value in spent.items()))


def by_phase(counted: Iterable[PhaseCycles]) -> tuple[PhaseCycles, ...]:
    """One for each phase of a layer: the backward pass of a strided one is several commands."""
    found: dict[tuple[str, Opcode], PhaseCycles] = {}
    for one in counted:
        key = one.layer, one.opcode
        before = found.get(key, replace(one, cycles=0, steps=(0,) * len(one.steps)))
        steps = tuple(map(add, before.steps, one.steps))
        found[key] = replace(one, cycles=before.cycles + one.cycles, steps=steps)
    return tuple(found.values())


def layer_macs(layer: Layer, live: Live) -> int:
    """Useful MACs of one phase of ``layer`` for one image."""
    size = ConvolutionSize(in_shape=layer.in_shape, out_shape=layer.conv_shape, kernel=layer.weight_shape[2:],
                           pad=layer.pad, stride=layer.stride)
    weights = live_weights(layer, live).sum(axis=(0, 1))
    return useful_macs(size, ((int(ky), int(kx), int(count)) for (ky, kx), count in np.ndenumerate(weights)))


def nominal_macs(layer: Layer) -> int:
    """The same with all weights live and border taps counted, as papers do."""
    return int((weight_numbers(layer) >= 0).sum()) * layer.conv_shape[1] * layer.conv_shape[2]


def _phase(opcode: Opcode) -> Phase | None:
    match opcode:
        case Opcode.FORWARD:
            return Phase.FP
        case Opcode.BACKWARD:
            return Phase.BP
        case Opcode.UPDATE:
            return Phase.WU
        case Opcode.LOSS | Opcode.REFETCH | Opcode.FETCH | Opcode.STORE | Opcode.NORM | Opcode.END:
            return None
        case _:
            assert_never(opcode)
