"""What training batch norms on the engine takes, beside the same networks with batch norms folded: predicted cycles.

    python benchmarks/norms.py

The model's cycles are those of the simulated Verilog (``cost_model.py``, and ``tests/engines/test_batch_norms.py`` with
batch norms). Dense networks, one group of images on as many lanes, every tensor on chip, as many lane trees as rows.
A command waits for scalars where its last channel is done later than its sums are made.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from harness import LOSS, fitted_machine, write_results
from utilisation_at_scale import ACTIVATION, GRADIENT, WEIGHT, WEIGHT_GRADIENT

from espalier.compiler.pipeline import compile_program
from espalier.cost.cycles import PhaseCycles, predict
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate, gradient_name, slope_name
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm
from espalier.ir.types import FLOAT, Format
from espalier.numerics.scalar import scalar
from espalier.numerics.update import BufferedSgd, Factor, ScalarSgd
from espalier.program.program import Program
from espalier.records import Figure, Provenance
from espalier.zoo import build, input_shape

NETWORKS = ("resnet20", "mobilenetv1", "vgg16_bn")
LATTICES = ((4, 64), (16, 64), (16, 256))
RULES = (BufferedSgd(weight=WEIGHT, rate=Factor.nearest(0.1), momentum=Factor.nearest(0.9), decay=Factor.nearest(1e-4)),
         ScalarSgd(momentum=scalar(0.9), rate=scalar(0.1), decay=scalar(1e-4)))


def in_words(name: str, *, norms: bool) -> tuple[Graph, dict[str, Format]]:
    """A zoo network in plain formats, which decide no cycle, and those of its gradients; norms trained or folded."""
    graph, _ = from_torch(build(name), input_shape(name), name, keep_batch_norm=norms)
    scalars = {value for op in graph.ops if isinstance(op, BatchNorm) for value in op.inputs[1:]}
    formats: dict[str, Format] = {}
    gradients: dict[str, Format] = {}
    for value in graph.values():
        formats[value.name], gradients[gradient_name(value.name)] = (
            (FLOAT, FLOAT) if value in scalars else (WEIGHT, WEIGHT_GRADIENT) if value in graph.parameters else
            (ACTIVATION, GRADIENT))
    fixed = graph.with_formats(formats)
    ops = tuple(replace(op, factor=WEIGHT) if isinstance(op, BatchNorm) else op for op in fixed.ops)
    gradients |= {slope_name(op.out.name): WEIGHT for op in ops if isinstance(op, BatchNorm)}
    return replace(fixed, ops=ops), gradients


def compiled(name: str, rows: int, lanes: int, *, norms: bool) -> Program:
    graph, gradients = in_words(name, norms=norms)
    step = differentiate(graph, LOSS, gradients)
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in graph.parameters}
    machine = replace(fitted_machine(step, live, rows, lanes)[0], trees=rows)
    rules = {value.name: RULES[value.format == FLOAT] for value in graph.learned()}
    return compile_program(graph, loss=LOSS, gradient_formats=gradients, live=live, rules=rules, machine=machine)


def step_of(program: Program) -> tuple[PhaseCycles, ...]:
    return predict(program)[: program.entries_at["infer"]]


def without_waits(program: Program) -> int:
    """The cycles of a step if scalars took none."""
    plain = replace(program, commands=tuple(replace(command, norm=0) for command in program.commands
                                            [: program.entries_at["infer"]]))
    return sum(phase.cycles for phase in predict(plain))


def megabytes(program: Program) -> float:
    return sum(words * bits for words, bits in program.machine.memories().values()) / 8e6


def main() -> None:
    figures = []
    for name in NETWORKS:
        for rows, lanes in LATTICES:
            case = f"{name}, {rows}×{lanes}"
            folded, trained = (compiled(name, rows, lanes, norms=norms) for norms in (False, True))
            before, after = (sum(phase.cycles for phase in step_of(program)) for program in (folded, trained))
            norms = {command.layer for command in trained.commands if command.norm}
            own = sum(phase.cycles for phase in step_of(trained) if phase.layer in norms)
            told = [("step, folded", before, "cycles"), ("step, trained", after, "cycles"),
                    ("trained over folded", round(after / before, 3), "ratio"),
                    ("of it in batch norms", round(100 * own / after, 1), "%"),
                    ("of it waiting for scalars", round(100 * (1 - without_waits(trained) / after), 2), "%"),
                    ("memory, folded", round(megabytes(folded), 1), "MB"),
                    ("memory, trained", round(megabytes(trained), 1), "MB")]
            figures += [Figure(f"{case}: {what}", value, unit, Provenance.ESTIMATED) for what, value, unit in told]
            print(case, *(f"{what}: {value} {unit}" for what, value, unit in told), sep="\n    ", flush=True)
    write_results("norms", seeds=[0], figures=figures, bars=[])


if __name__ == "__main__":
    main()
