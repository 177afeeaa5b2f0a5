"""When each operation of a channel of a batch norm starts: one row a cycle, for a machine that only follows.

A step starts as soon as its operands are there and no other result is done in the same cycle as its own. An operand is
the last result, if it is that, or is read from the memory of slots, which is read once a cycle; a result that is
neither named by a slot nor read again is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count

from espalier.arch.machine import CHANNEL_SCALARS
from espalier.program.norm import (
    BACKWARD,
    FORWARD,
    RUNNING,
    Constant,
    Frac,
    NormMode,
    Slot,
    Step,
    Sum,
    Word,
)
from espalier.program.scalar import SCALAR_CYCLES

A_READ_CYCLES, B_READ_CYCLES = 4, 3  #: from the read of a slot to the start that takes it as ``a`` or ``b``
SUM_CYCLES = 3                       #: from the choice of a sum to the start that takes it
CHOICE_CYCLES = 1                    #: likewise of a constant or of fraction bits
CONTROL_CYCLES = 3                   #: of a channel beside its rows


class Source(IntEnum):
    """Where ``b`` comes from."""

    MEMORY = 0
    RESULT = 1
    CONSTANT = 2


#: Each field of a row acts in the row's own cycle: ``read`` a slot; choose a ``sum``, a ``constant``, a ``frac``;
#: ``start`` an ``operation`` with ``a`` from memory or the last result, ``b`` from a :class:`Source` and a sum or the
#: last word for a whole number; ``write`` the result that is just done to a ``slot``; ``which`` word is just done.
ROW_FIELDS = {"read": 4, "sum": 1, "constant": 3, "frac": 3, "start": 1, "operation": 3, "a_result": 1, "b_source": 2,
              "of_word": 1, "write": 1, "slot": 4, "which": 1}
Row = Mapping[str, int]
Value = int | Slot  #: the result of a step, by its number; what a slot holds before the first step


@dataclass(slots=True)
class _Plan:
    """Steps, of which more and more have a cycle in which they start."""

    steps: tuple[Step, ...]
    operands: list[tuple[Value | None, Value | None]]
    starts: dict[int, int] = field(default_factory=dict)           #: step -> cycle
    results: dict[int, int] = field(default_factory=dict)          #: cycle in which it is done -> step
    reads: dict[int, Value] = field(default_factory=dict)          #: cycle -> what is read
    forwarded: set[tuple[int, int]] = field(default_factory=set)   #: (step, operand) that takes the last result

    def done(self, step: int) -> int:
        """The cycle of its result."""
        return self.starts[step] + SCALAR_CYCLES[self.steps[step].operation]

    def start(self, step: int, cycle: int) -> bool:
        """Start a step in this cycle, if it can."""
        end = cycle + SCALAR_CYCLES[self.steps[step].operation]
        makes_word = isinstance(self.steps[step].result, Word)
        if cycle < SUM_CYCLES or (end in self.results and not makes_word):
            return False
        last = max((done for done in self.results if done <= cycle), default=None)
        forwarded, reads = set[tuple[int, int]](), dict[int, Value]()
        for place, (value, ahead) in enumerate(zip(self.operands[step], (A_READ_CYCLES, B_READ_CYCLES), strict=True)):
            if isinstance(value, int) and (value not in self.starts or self.done(value) > cycle):
                return False
            if value is None or isinstance(value, int) and isinstance(self.steps[value].result, Word):
                continue
            if last is not None and self.results[last] == value:
                forwarded.add((step, place))
            elif self._readable(value, cycle - ahead):
                reads[cycle - ahead] = value
            else:
                return False
        self.starts[step] = cycle
        self.forwarded |= forwarded
        self.reads |= reads
        if not makes_word:
            self.results[end] = step
        return True

    def _readable(self, value: Value, cycle: int) -> bool:
        written = -1 if isinstance(value, Slot) else self.done(value)
        return cycle > written and self.reads.get(cycle, value) == value

    def places(self) -> dict[Value, int]:
        """The slot of each value that has one; those without a name share what slots are left."""
        last_read = {value: cycle for cycle, value in sorted(self.reads.items())}
        free_at = dict.fromkeys(range(len(Slot), CHANNEL_SCALARS), 0)
        places: dict[Value, int] = {slot: slot.value for slot in Slot}
        for done, step in sorted(self.results.items()):
            result = self.steps[step].result
            if isinstance(result, Slot):
                places[step] = result.value
            elif step in last_read:
                places[step] = next(slot for slot, free in free_at.items() if free <= done)
                free_at[places[step]] = last_read[step] + 1
        return places


def _operands(steps: tuple[Step, ...]) -> list[tuple[Value | None, Value | None]]:
    """What each step takes from others or from memory."""
    made: dict[Slot | Word | str, int] = {}
    taken = []
    for number, step in enumerate(steps):
        a, b = (made.get(name, name if isinstance(name, Slot) else None)
                if isinstance(name, Slot | Word | str) else None for name in (step.a, step.b))
        taken.append((a, b))
        made[step.result] = number
    return taken


def rows(steps: tuple[Step, ...]) -> tuple[Row, ...]:
    """One row a cycle, until the last result is written."""
    plan = _Plan(steps, _operands(steps))
    for cycle in count():
        next((step for step in range(len(steps)) if step not in plan.starts and plan.start(step, cycle)), None)
        if len(plan.starts) == len(steps):
            break
    places = plan.places()
    table: list[dict[str, int]] = [{} for _ in range(1 + max(map(plan.done, plan.starts)))]
    for cycle, value in plan.reads.items():
        table[cycle]["read"] = places[value]
    for number, cycle in plan.starts.items():
        step = steps[number]
        table[cycle] |= {"start": 1, "operation": step.operation, "a_result": (number, 0) in plan.forwarded,
                         "b_source": Source.RESULT if (number, 1) in plan.forwarded else Source.MEMORY}
        match step.a:
            case Sum():
                table[cycle - SUM_CYCLES]["sum"] = step.a.value
            case Word():
                table[cycle]["of_word"] = 1
        match step.b:
            case Constant():
                table[cycle]["b_source"] = Source.CONSTANT
                table[cycle - CHOICE_CYCLES]["constant"] = step.b.value
            case Frac():
                table[cycle - CHOICE_CYCLES]["frac"] = step.b.value
        if isinstance(step.result, Word):
            table[plan.done(number)]["which"] = step.result.value
        elif number in places:
            table[plan.done(number)] |= {"write": 1, "slot": places[number]}
    return tuple(table)


ROWS = {NormMode.FORWARD: rows(FORWARD), NormMode.BACKWARD: rows(BACKWARD), NormMode.RUNNING: rows(RUNNING)}
CHANNEL_CYCLES = {mode: len(table) + CONTROL_CYCLES for mode, table in ROWS.items()}  #: of one whose sums are there
