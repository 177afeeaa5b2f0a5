"""Graphs, netlists and routings as sections of a report."""

import numpy as np

from espalier.arch.machine import Machine
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear, Reshape
from espalier.ir.types import TensorType, Value
from espalier.numerics.fixed import Fixed
from espalier.numerics.window import Window
from espalier.report.collect import area_section, format_section, machine_section, memory_section, network_section
from espalier.report.model import ClockResult, Fact, Layer, Memory, Resource, TensorFormat
from espalier.synth.nextpnr import Clock, Routing, Utilisation
from espalier.synth.yosys import Architecture, Synthesis
from espalier.targets import ECP5_85F


def value(name, *shape):
    return Value(name, TensorType(shape, Fixed.of(16, 10)))


X, CW, CB = value("x", 1, 4, 4), value("conv1.weight", 2, 1, 3, 3), value("conv1.bias", 2)
C, F, FW, Y = value("c", 2, 2, 2), value("f", 8), value("fc.weight", 3, 8), value("y", 3)
GRAPH = Graph("tiny", (X,), (CW, CB, FW), (Conv2d(C, X, CW, CB, Window((3, 3))), Reshape(F, C), Linear(Y, F, FW, None)),
              (Y,))
SYNTHESIS = Synthesis(Architecture.ECP5, "top", "yosys 0.70", (("LUT4", 80), ("MULT18X18D", 8), ("TRELLIS_FF", 40)))
ROUTING = Routing("ecp5-85f", "nextpnr-ecp5 0.11", (Clock("clk", 90.0, 80.0),),
                  (Utilisation("MULT18X18D", 8, 156),), ())


def test_network_counts_biases_and_live_masks():
    live = {"conv1.weight": np.zeros((2, 1, 3, 3), bool), "fc.weight": np.eye(3, 8, dtype=bool)}
    network = network_section(GRAPH, live)
    assert network.layers == (Layer(name="conv1", op="Conv2d", shape=(2, 2, 2), weights=20, live=2),
                              Layer(name="fc", op="Linear", shape=(3,), weights=24, live=3))
    assert (network.total.weights, network.total.live) == (44, 5)


def test_formats_name_the_part_of_each_tensor():
    formats = format_section(GRAPH)
    assert [(row.tensor, row.role) for row in formats] == [
        ("x", "input"), ("conv1.weight", "parameter"), ("conv1.bias", "parameter"), ("fc.weight", "parameter"),
        ("c", "internal"), ("f", "internal"), ("y", "output")]
    assert formats[0] == TensorFormat(tensor="x", role="input", format=str(Fixed.of(16, 10)))


def test_area_is_that_of_place_and_route_where_it_ran():
    area = area_section(ECP5_85F, SYNTHESIS, ROUTING, macs=8)
    assert area.source == "nextpnr-ecp5 0.11" and area.clocks == (
        ClockResult(name="clk", achieved_mhz=90.0, wanted_mhz=80.0),)
    assert area.resources == (Resource(name="MULT18X18D", used=8, available=156),)
    assert [(figure.name, figure.value) for figure in area.cells_per_mac] == [
        ("LUT4 per MAC", 10.0), ("FF per MAC", 5.0), ("MULT18X18D per MAC", 1.0)]


def test_area_of_synthesis_alone_has_no_clock():
    area = area_section(ECP5_85F, SYNTHESIS, None, macs=8)
    assert area.clocks == () and area.limit == "" and area.source == "yosys 0.70"
    assert Resource(name="LUT4", used=80, available=83_640) in area.resources
    assert Resource(name="CCU2C", used=0, available=None) in area.resources


def test_no_area_without_tools():
    assert area_section(ECP5_85F, None, None, macs=8) is None


def test_machine_and_memories():
    machine = Machine(rows=2, lanes=4, activation_depth=64, gradient_depth=16, weight_depth=8, index_depth=8,
                      table_depth=8)
    facts = machine_section(machine)
    assert facts[:2] == (Fact("rows", "2"), Fact("lanes", "4")) and facts[-1] == Fact("multipliers", "8")
    memories = memory_section(machine, {"weights": 5}).memories
    assert [(memory.name, memory.used) for memory in memories] == [
        ("activations", 0), ("gradients", 0), ("weights", 5), ("masters", 0), ("momenta", 0)]
    assert memories[2] == Memory(name="weights", holds="live blocks of narrow weights", words=16, bits=16, used=5)
