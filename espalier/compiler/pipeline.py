"""The compiler: one visible tuple of steps from a training graph to a Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler import emit as emission
from espalier.compiler import place as placement
from espalier.compiler.emit import Rules
from espalier.compiler.fit import check_fit
from espalier.compiler.legalise import Layer, Loss, legalise
from espalier.compiler.lists import LayerBlocks
from espalier.compiler.panels import LayerPanels, laid_out, layer_panels
from espalier.compiler.place import Memory
from espalier.compiler.tiling import tiled
from espalier.ir.differentiate import differentiate
from espalier.ir.graph import Graph
from espalier.ir.types import Format
from espalier.ir.verify import verify
from espalier.program.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A network on its way through the compiler; each step fills in what it is named for."""

    graph: Graph
    loss: str
    gradient_formats: Mapping[str, Format]
    live: Mapping[str, NDArray[np.bool_]]
    rules: Rules
    machine: Machine
    layers: tuple[Layer, ...] = ()
    loss_layer: Loss | None = None
    blocks: tuple[LayerBlocks, ...] = ()
    panels: Mapping[int, LayerPanels] = field(default_factory=dict)
    memory: Memory | None = None
    program: Program | None = None


def step_differentiate(build: Build) -> Build:
    """Add loss, backward pass and weight gradients."""
    return replace(build, graph=verify(differentiate(build.graph, build.loss, build.gradient_formats)))


def step_legalise(build: Build) -> Build:
    """Recognise the layers that the engine runs, as each lane does them; refuse the rest by name."""
    layers, loss = legalise(build.graph, {value.name for value in build.graph.parameters} - set(build.rules))
    return replace(build, layers=tiled(layers, build.machine.grid), loss_layer=loss)


def step_schedule(build: Build) -> Build:
    """Order the live blocks of each layer, in panels where they lie in external memory."""
    blocks, streamed = laid_out(build.layers, build.live, build.machine)
    return replace(build, blocks=blocks, panels={k: layer_panels(blocks[k], build.machine) for k in streamed})


def step_place(build: Build) -> Build:
    """Give every tensor its addresses; check that all of it fits the machine."""
    machine = build.machine
    memory = placement.place(build.layers, machine.rows, machine.activation_depth, spill=machine.port_bits > 0,
                             elements=machine.elements, streamed=build.panels)
    assert build.loss_layer is not None, "legalise comes first"
    check_fit(machine, build.layers, build.loss_layer, build.blocks, memory, build.panels)
    return replace(build, memory=memory)


def step_emit(build: Build) -> Build:
    """Encode index lists and commands."""
    assert build.loss_layer is not None and build.memory is not None, "legalise and place come first"
    machine = build.machine
    program = emission.emit(machine, build.graph, build.layers, build.loss_layer, build.blocks, build.panels,
                            build.memory, build.rules)
    assert all(len(lists.entries) <= machine.index_depth and len(lists.table) <= machine.table_depth
               for lists in program.lists), "the lists take more than the fit was checked for"
    return replace(build, program=program)


PIPELINE: tuple[tuple[str, Callable[[Build], Build]], ...] = (
    ("differentiate", step_differentiate),
    ("legalise", step_legalise),
    ("schedule", step_schedule),
    ("place", step_place),
    ("emit", step_emit),
)


def compile_program(graph: Graph, *, loss: str, gradient_formats: Mapping[str, Format],
                    live: Mapping[str, NDArray[np.bool_]], rules: Rules, machine: Machine) -> Program:
    """Compile a fixed-point inference graph for a machine.

    Parameters
    ----------
    graph : Graph
        Inference graph, all values fixed-point.
    loss, gradient_formats
        As for :func:`espalier.ir.differentiate.differentiate`.
    live : mapping
        Which elements of each weight live (of the parameter's shape).
    rules : mapping
        The update rule of each weight (a bias takes that of its layer's weight, a shift that of the scale). What has
        none is not trained.
    machine : Machine

    Raises
    ------
    UnsupportedError
        A layer does not run on the engine.
    FitError
        The machine does not hold the network, with the numbers.
    """
    build = Build(graph=graph, loss=loss, gradient_formats=gradient_formats, live=live, rules=rules, machine=machine)
    for _, step in PIPELINE:
        build = step(build)
    assert build.program is not None
    return build.program
