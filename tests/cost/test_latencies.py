"""The cycles that the model takes for granted are those of the gateware."""

from __future__ import annotations

from typing import TypeVar

import pytest
from amaranth.hdl import Elaboratable, Fragment
from bench.machines import DEPTHS, GROUPED, TWO_BY_FOUR

from espalier.arch.machine import Machine
from espalier.arch.memory import MemoryTiming
from espalier.cost import latencies
from espalier.cost.spilling import WritePort
from espalier.gateware import accelerator as gateware
from espalier.gateware import external, panels
from espalier.gateware.accelerator import Accelerator
from espalier.gateware.front import Front
from espalier.gateware.landing_queue import DEPTH_BITS
from espalier.gateware.loss_unit import LossUnit

Component = TypeVar("Component", bound=Elaboratable)
ISSUER_CYCLES = 2  #: from taking a block to the step that is seen


def elaborated(component: Component) -> Component:
    Fragment.get(component, None)
    return component


@pytest.mark.parametrize("machine", [TWO_BY_FOUR, GROUPED, Machine(rows=1, lanes=1, **DEPTHS),
                                     Machine(rows=16, lanes=1, trees=8, **DEPTHS),
                                     Machine(rows=4, lanes=9, **DEPTHS),
                                     Machine(elements=4, rows=2, lanes=1, **DEPTHS)],
                         ids=lambda machine: f"{machine.elements}x{machine.rows}x{machine.lanes}")
def test_a_command_drains_as_the_accelerator_does(machine: Machine) -> None:
    accelerator = elaborated(Accelerator(machine))
    assert accelerator.sequencer.drain_cycles == latencies.drain_cycles(machine)
    assert accelerator.sequencer.update_cycles == latencies.update_cycles(machine)
    assert accelerator.first.front.add_cycles == latencies.add_cycles(machine.elements)
    assert accelerator.loss.read_latency == latencies.LOSS_READ_CYCLES


def test_the_front_fills_and_queues_as_the_model_says() -> None:
    assert Front.fill_cycles == latencies.FILL_CYCLES + ISSUER_CYCLES
    assert 1 << DEPTH_BITS == latencies.QUEUE_DEPTH


@pytest.mark.parametrize("machine", [Machine(**{**TWO_BY_FOUR.to_json(), "port_bits": 64}),
                                     Machine(rows=16, lanes=1, port_bits=32, **DEPTHS)],
                         ids=lambda machine: f"{machine.rows}x{machine.lanes}")
def test_the_port_queues_as_the_model_says(machine: Machine) -> None:
    spiller = elaborated(Accelerator(machine)).spiller
    assert WritePort.of(machine, MemoryTiming()).spare == spiller.spare == spiller.depth // 2
    assert latencies.HOLD_CYCLES == gateware.HOLD_CYCLES
    assert (latencies.OUTSTANDING, latencies.DESCRIPTORS + 1) == (external.OUTSTANDING, external.DESCRIPTORS)


@pytest.mark.parametrize("lanes", [1, 3, 4, 5, 13, 64])
def test_a_loss_takes_what_its_unit_says(lanes: int) -> None:
    machine = Machine(**{**GROUPED.to_json(), "lanes": lanes})
    unit = elaborated(LossUnit(lanes=lanes, word_bits=8, max_classes=16, read_latency=latencies.LOSS_READ_CYCLES))
    for classes in range(1, 17):
        for hinge in (False, True):
            assert unit.cycles(classes, hinge=hinge) == latencies.loss_cycles(machine, classes, hinge=hinge)


def test_panels_are_read_ahead_as_the_model_says() -> None:
    """A launch, the panel's memories, the queue behind them."""
    assert latencies.SOURCE_CYCLES == 1 + panels.SOURCE_CYCLES + 1
