"""When panels of weights come from external memory and go there: one ahead of the commands that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from espalier.arch.machine import Machine
from espalier.compiler.panels import Panel
from espalier.program.program import Command, Run
from espalier.program.words import Opcode, region_of

LOSS = -1  #: what the loss makes, among the numbers of the backward pass's steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Commands that run one after another with the same weights.

    Members
    -------
    panel : Panel, optional
        Where those lie in external memory.
    state : bool
        Whether masters and momenta are used, and changed, and weights made of them.
    makes : str or int, optional
        The value, or the number of the step (or LOSS), that is whole when the last of them is done.
    """

    commands: tuple[Command, ...]
    panel: Panel | None = None
    state: bool = False
    makes: str | int | None = None

    @property
    def spills(self) -> bool:
        """Whether the port is busy with results."""
        return any(command.spill for command in self.commands)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Commands with the moves between them, and for what each part makes the number of its last command."""

    commands: tuple[Command, ...]
    makers: dict[str | int, int]


class Moves:
    """Puts FETCH and STORE between commands.

    The two panels take turns. While one is in use, what was changed in the other goes out, and what is needed next
    comes in, in this order; a fence waits for that before the turn changes. Nothing comes in while results are spilled.

    Members
    -------
    runs : list
        Of all panels, each once.
    """

    def __init__(self, machine: Machine, weight_page: int, state_page: int) -> None:
        self.machine, self.pages = machine, {False: weight_page, True: state_page}
        self.runs: list[Run] = []
        self.known: dict[tuple[Run, ...], int] = {}

    def scheduled(self, parts: Sequence[Part]) -> Schedule:
        """All commands of a program that ends behind them."""
        turns = [number for number, part in enumerate(parts) if part.panel and part.panel.columns]
        panels = {number: turn % 2 for turn, number in enumerate(turns)}
        asked: dict[int, list[int]] = {}  # before which part those of which are asked for
        for turn, number in enumerate(turns):
            asked.setdefault(self._asked_before(parts, turns, turn), []).append(number)
        commands: list[Command] = []
        makers: dict[str | int, int] = {}
        for number, part in enumerate(parts):
            wanted = asked.get(number, [])
            if number in wanted:
                commands.append(self._move(Opcode.FETCH, part, panels[number]))
            moves = [*self._stored(parts, panels, number - 1),
                     *(self._move(Opcode.FETCH, parts[later], panels[later]) for later in wanted if later > number)]
            if number in panels:
                own = [replace(command, panel=region_of(panels[number])) for command in part.commands]
                first, *others = (*moves, *own)
                commands += [replace(first, fence=1), *others]
            else:
                commands += [*moves, *part.commands]
            if part.makes is not None:
                makers[part.makes] = len(commands) - 1
        return Schedule((*commands, *self._stored(parts, panels, len(parts) - 1)), makers)

    def _asked_before(self, parts: Sequence[Part], turns: Sequence[int], turn: int) -> int:
        """The part before which a panel is asked for: that with the panel before it, or the one before the first."""
        number = turns[turn]
        earliest = turns[turn - 1] if turn else max(0, number - 1)
        return next((later + 1 for later in range(number - 1, earliest - 1, -1) if parts[later].spills), earliest)

    def _stored(self, parts: Sequence[Part], panels: dict[int, int], number: int) -> list[Command]:
        """What a part has changed, on its way out: weights, then masters and momenta."""
        if number not in panels or not parts[number].state:
            return []
        return [self._move(Opcode.STORE, replace(parts[number], state=state), panels[number])
                for state in (False, True)]

    def _move(self, opcode: Opcode, part: Part, panel: int) -> Command:
        assert part.panel, "there is something to move"
        runs = part.panel.runs
        if runs not in self.known:
            self.known[runs] = len(self.runs)
            self.runs += runs
        return Command(opcode=opcode, layer=part.commands[0].layer, external=self.pages[part.state],
                       beats=self.machine.column_beats(part.panel.columns, state=part.state), panel=panel,
                       state=int(part.state), runs_at=self.known[runs], runs=len(runs))
