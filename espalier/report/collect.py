"""Results of other packages as sections of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import prod

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.ir.graph import Graph
from espalier.ir.types import TensorType
from espalier.report.model import (
    Area,
    ClockResult,
    Fact,
    Layer,
    Memories,
    Memory,
    Network,
    Resource,
    TensorFormat,
)
from espalier.synth.nextpnr import Routing
from espalier.synth.yosys import BLOCK_RAMS, MULTIPLIERS, Synthesis
from espalier.targets import Device

#: What each memory of a machine holds, for people.
_HOLDS = {"activations": "activations, from FP to BP", "gradients": "gradients of the outputs",
          "weights": "live blocks of narrow weights", "masters": "wide weights that the update moves",
          "momenta": "momenta of the live weights", "gradient_sums": "weight gradients summed over groups"}


def network_section(graph: Graph, live: Mapping[str, NDArray[np.bool_]]) -> Network:
    """The layers of ``graph``; ``live`` maps a parameter's name to its mask, all live where it has none."""
    layers = []
    for op in graph.layers():
        parameters = [parameter for parameter in (op.w, op.b) if parameter is not None]
        layers.append(Layer(
            name=op.w.name.removesuffix(".weight"), op=type(op).__name__, shape=op.out.shape,
            weights=sum(prod(parameter.shape) for parameter in parameters),
            live=sum(int(live[parameter.name].sum()) if parameter.name in live else prod(parameter.shape)
                     for parameter in parameters)))
    return Network(name=graph.name, input_shape=graph.inputs[0].shape, layers=tuple(layers))


def format_section(graph: Graph) -> tuple[TensorFormat, ...]:
    """The format of every value of ``graph``, in order, with the part it plays."""
    roles = {value.name: "input" for value in graph.inputs} | {value.name: "parameter" for value in graph.parameters}
    roles |= {value.name: "output" for value in graph.outputs}
    return tuple(TensorFormat(tensor=value.name, role=roles.get(value.name, "internal"), format=_format(value.type))
                 for value in graph.values())


def _format(kind: TensorType) -> str:
    return str(kind.format)


def area_section(device: Device, synthesis: Synthesis | None, routing: Routing | None, macs: int) -> Area | None:
    """Area and clock; place and route speaks where it ran, else synthesis alone. None where neither ran."""
    if routing is not None:
        resources = tuple(Resource(name=kind.name, used=kind.used, available=kind.available)
                          for kind in routing.utilisation)
        clocks = tuple(ClockResult(name=clock.name, achieved_mhz=clock.achieved_mhz, wanted_mhz=clock.wanted_mhz)
                       for clock in routing.clocks)
        source, limit = routing.tool, routing.limit
    elif synthesis is not None:
        available = {**dict.fromkeys(("LUT4", "LUT"), device.luts), "FF": device.flip_flops,
                     **dict.fromkeys(MULTIPLIERS, device.multipliers),
                     **dict.fromkeys(BLOCK_RAMS, device.block_rams)}
        resources = tuple(Resource(name=figure.name, used=int(figure.value), available=available.get(figure.name))
                          for figure in synthesis.figures)
        clocks, source, limit = (), synthesis.tool, ""
    else:
        return None
    per_mac = synthesis.per_mac(macs) if synthesis is not None and macs else ()
    return Area(device=str(device), source=source, resources=resources, clocks=clocks, limit=limit,
                cells_per_mac=tuple(figure for figure in per_mac if figure.value))


def machine_section(machine: Machine) -> tuple[Fact, ...]:
    """The parameters of ``machine``, in order, with its number of multipliers."""
    named = [Fact(field.name.replace("_", " "), str(getattr(machine, field.name))) for field in fields(machine)]
    return (*named, Fact("multipliers", str(machine.multipliers)))


def memory_section(machine: Machine, used: Mapping[str, int]) -> Memories:
    """The memories of ``machine``; ``used`` is how many words of each the program fills, none where left out."""
    return Memories(memories=tuple(
        Memory(name=name, holds=_HOLDS.get(name, ""), words=words, bits=bits, used=used.get(name, 0))
        for name, (words, bits) in machine.memories().items()))
