"""Cycles that the engine's pipelines and its control take, whatever the network is.

The gateware owns these numbers; ``tests/cost/test_latencies.py`` holds both against each other.
"""

from __future__ import annotations

from espalier.arch.machine import Machine
from espalier.numerics.loss import EXP_FRAC, RECIPROCAL_FRAC

QUEUE_DEPTH = 16    #: items on the way to a landing queue or in it
CREDIT_CYCLES = 2   #: from an item's leaving such a queue to the launch of another in its place
FETCH_CYCLES = 5    #: from the launch of a block by the EntryFetcher to the cycle in which the Issuer can take it
FILL_CYCLES = 16    #: from a phase's launch to the cycle in which the Issuer can take its first block
CONTROL_CYCLES = 3  #: of a command beside fill, steps, waits and drain
LOSS_CONTROL_CYCLES = 5  #: of a loss beside the unit's own
REFETCH_CYCLES = 4  #: of asking a spilled tensor back
LAUNCH_CYCLES = 3     #: from a command's first cycle to its launch
OUTSTANDING = 8       #: bursts asked for and not answered
DESCRIPTORS = 3       #: tensors that wait for the port, and another that is about to be taken up
STORE_CYCLES = 2      #: from a tensor's last beat to the cycle in which the port is not busy with it any more
RUN_CYCLES = 3        #: from a panel's turn to its first burst
SOURCE_CYCLES = 5     #: from there to a panel's first item beside the port, less one
LANDING_CYCLES = 2    #: from a panel's last item on chip to the cycle in which the port is not busy with it any more
ANSWER_CYCLES = 2     #: from the last answer to a stored panel to that cycle
END_CYCLES = 5      #: of the command that stops a program

OPERAND_CYCLES, LATTICE_CYCLES = 8, 3
DRAIN_CYCLES = 10   #: from a row of sums to the write of its words
ADD_CYCLES = 8      #: from a tile's last step to the one that reads what is added to its first result
ADD_GATHERED_CYCLES = 10  #: the same of several processing elements
UPDATE_CYCLES = 20  #: from a gradient to the write of its weight
GROUPS_CYCLES = 3   #: more, where gradients add up over groups
GATHER_CYCLES = 1   #: more in FP and BP, where sums of several processing elements are added
WRITE_CYCLES = 1
HOLD_CYCLES = 4     #: from a vector's coming to the port's queue to the step that it holds up
SPILL_CYCLES = OPERAND_CYCLES + LATTICE_CYCLES + DRAIN_CYCLES + WRITE_CYCLES  #: from a tile's end to that coming

LOSS_READ_CYCLES = 3      #: from a class to its logits
LOSS_BEST_CYCLES = 2      #: from an element's turn to the write of its lane's largest logit
LOSS_RESULT_CYCLES = 10   #: from an element's turn to its exponential or gradient
QUOTIENT_BITS_A_CYCLE = 2


def gather_cycles(machine: Machine) -> int:
    """What it takes to add up the sums of several processing elements."""
    return GATHER_CYCLES * (machine.elements > 1)


def add_cycles(elements: int) -> int:
    """From a tile's last step to the one that reads what is added to its first result."""
    return ADD_GATHERED_CYCLES if elements > 1 else ADD_CYCLES


def drain_cycles(machine: Machine) -> int:
    """From the last step of FP or BP to the write of the last row that it can complete."""
    return (OPERAND_CYCLES + LATTICE_CYCLES + gather_cycles(machine) + machine.all_rows - 1 + DRAIN_CYCLES
            + WRITE_CYCLES)


def lane_levels(machine: Machine) -> int:
    """Levels of a lane tree, a register each."""
    return max(1, (machine.lanes - 1).bit_length())


def update_cycles(machine: Machine) -> int:
    """From the last step of WU to the write of the last weight."""
    return (OPERAND_CYCLES + LATTICE_CYCLES + machine.tree_rows - 1 + lane_levels(machine) + UPDATE_CYCLES
            + machine.groups * GROUPS_CYCLES + WRITE_CYCLES)


def loss_cycles(machine: Machine, classes: int, *, hinge: bool) -> int:
    """Of the loss unit on one group: a fetch, two or three walks over the logits, and a division for each image."""
    slots = max(machine.images, LOSS_BEST_CYCLES + 1, LOSS_READ_CYCLES + 1)
    walk = 1 + classes * slots + max(0, LOSS_RESULT_CYCLES - (slots - machine.images))
    quotient = -(-(RECIPROCAL_FRAC - EXP_FRAC + 1) // QUOTIENT_BITS_A_CYCLE)
    divide = machine.images * (quotient + 3)
    return 1 + LOSS_READ_CYCLES + (2 * walk if hinge else 3 * walk + divide)
