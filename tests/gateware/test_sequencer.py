"""Programs of random commands, whose phases end when the test says so."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from bench.simulation import simulate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine
from espalier.gateware.sequencer import FETCH_CYCLES, Sequencer
from espalier.program.words import Opcode, command_fields, pack

NO_SHRINK = settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
PHASES = [Opcode.FORWARD, Opcode.BACKWARD, Opcode.UPDATE, Opcode.LOSS]
IN_FORCE_BEFORE_LAUNCH = 1  #: cycles
START_TO_LAUNCH = 4         #: cycles
MACHINE = Machine(rows=2, lanes=1, activation_depth=64, gradient_depth=32, weight_depth=32, index_depth=2,
                  table_depth=32, program_depth=16)


@dataclass(frozen=True)
class Cycle:
    """What the sequencer shows in one cycle. ``flags``: parity, first, last."""

    command: int
    opcode: int
    position: int
    busy: int
    launch: int
    launch_loss: int
    flags: tuple[int, int, int]


def random_program(rng, opcodes):
    """Commands with these opcodes and anything in their other fields."""
    fields = command_fields(MACHINE)
    return [pack(fields, {name: int(rng.integers(1 << width)) for name, width in fields.items()} | {"opcode": opcode})
            for opcode in opcodes]


def sequencer(*, drain=9, update=14):
    return Sequencer(MACHINE, drain_cycles=drain, update_cycles=update)


def run(dut, program, starts, durations, *, pester=None, idle_cycles=4):
    """Load ``program``; begin with each word of ``starts`` once the one before is done. One list of cycles a run.

    Phase ``k`` ends ``durations[k]`` cycles after its launch. Element 0 of a run is the cycle of ``start``.
    ``pester``: a start word that is tried again in every cycle in which the sequencer is busy.
    """
    runs, left = [], iter(durations)

    def shown(ctx):
        command = ctx.get(dut.command)
        return Cycle(command.as_bits(), command.opcode, ctx.get(dut.position), ctx.get(dut.busy), ctx.get(dut.launch),
                     ctx.get(dut.launch_loss), (ctx.get(dut.parity), ctx.get(dut.first), ctx.get(dut.last)))

    async def testbench(ctx):
        ctx.set(dut.write_en, 1)
        for address, word in enumerate(program):
            ctx.set(dut.write_address, address)
            ctx.set(dut.write_data, word)
            await ctx.tick()
        ctx.set(dut.write_en, 0)
        for word in starts:
            ctx.set(dut.start, 1)
            ctx.set(dut.word, word)
            seen, rest, idle = [shown(ctx)], -1, 0
            while idle < idle_cycles:
                await ctx.tick()
                seen.append(shown(ctx))
                rest = next(left) if seen[-1].launch or seen[-1].launch_loss else rest - 1
                loss = seen[-1].opcode == Opcode.LOSS
                ctx.set(dut.finished, int(rest == 0 and not loss))
                ctx.set(dut.loss_done, int(rest == 0 and loss))
                ctx.set(dut.start, int(pester is not None and seen[-1].busy))
                ctx.set(dut.word, pester or {})
                idle = 0 if seen[-1].busy else idle + 1
            runs.append(seen)

    simulate(dut, testbench, max_cycles=len(program) + sum(durations) + 60 * (len(durations) + len(starts)))
    assert next(left, None) is None, "a phase was never launched"
    return runs


def launches(seen):
    return [cycle for cycle, shown in enumerate(seen) if shown.launch or shown.launch_loss]


def cycles_after_end(dut, opcode):
    """Cycles that a command stays in force after its phase is finished."""
    return {Opcode.UPDATE: dut.update_cycles, Opcode.LOSS: FETCH_CYCLES}.get(opcode, dut.drain_cycles)


def check_program(dut, opcodes, entry, durations, seed):
    """Each command from ``entry`` on is in force, launches and ends exactly when it should."""
    program = random_program(np.random.default_rng(seed), [*opcodes, Opcode.END])
    seen, = run(dut, program, [{"entry": entry}], durations)
    launched = START_TO_LAUNCH
    for number, duration in enumerate(durations, entry):
        opcode = opcodes[number]
        last = launched + duration + cycles_after_end(dut, opcode)
        within = range(launched - IN_FORCE_BEFORE_LAUNCH, last + 1)
        assert [cycle for cycle, shown in enumerate(seen) if shown.command == program[number]] == list(within)
        assert {seen[cycle].position for cycle in range(launched, launched + duration + 1)} == {number}
        assert (seen[launched].launch, seen[launched].launch_loss) == ((0, 1) if opcode == Opcode.LOSS else (1, 0))
        launched = last + IN_FORCE_BEFORE_LAUNCH + 1
    stopped = launched + 2  # the end is fetched like a command
    assert len(launches(seen)) == len(durations)
    assert [shown.busy for shown in seen] == [0] + [1] * (stopped - 1) + [0] * (len(seen) - stopped)
    assert all(shown.opcode == Opcode.END for shown in seen[launched:])


@pytest.mark.parametrize("opcode", PHASES)
@pytest.mark.parametrize("duration", [1, 2, 7])
def test_a_command_stays_in_force_until_the_pipelines_are_empty(opcode, duration):
    check_program(sequencer(), [opcode], 0, [duration], seed=duration)


@NO_SHRINK
@given(opcodes=st.lists(st.sampled_from(PHASES), min_size=1, max_size=6), data=st.data(),
       seed=st.integers(0, 1 << 30))
def test_programs(opcodes, data, seed):
    """From any entry; with the shortest pipelines there may be, and with either longer than the other."""
    entry = data.draw(st.integers(0, len(opcodes) - 1))
    durations = [data.draw(st.integers(1, 20)) for _ in opcodes[entry:]]
    drain, update = (data.draw(st.integers(FETCH_CYCLES, 40)) for _ in range(2))
    check_program(sequencer(drain=drain, update=update), opcodes, entry, durations, seed)


@pytest.mark.parametrize("opcode", PHASES)
def test_shortest_pipelines(opcode):
    check_program(sequencer(drain=FETCH_CYCLES, update=FETCH_CYCLES), [opcode] * 2, 0, [1, 1], seed=0)


def test_end_alone_launches_nothing():
    check_program(sequencer(), [Opcode.FORWARD], 1, [], seed=0)


def test_what_follows_the_end_does_not_run():
    program = random_program(np.random.default_rng(1), [Opcode.FORWARD, Opcode.END, Opcode.UPDATE, Opcode.END])
    seen, = run(sequencer(), program, [{"entry": 0}], [3], idle_cycles=60)
    assert len(launches(seen)) == 1
    assert program[2] not in {shown.command for shown in seen}


@pytest.mark.parametrize("number", range(4))
def test_single_runs_one_command(number):
    """The last of a program as the others; a start without ``single`` then runs to the end again."""
    program = random_program(np.random.default_rng(2), [*PHASES, Opcode.END])
    dut = sequencer()
    alone, whole = run(dut, program, [{"entry": number, "single": 1}, {"entry": number}],
                       [5] * (1 + len(PHASES) - number))
    launched, = launches(alone)
    assert launched == START_TO_LAUNCH
    assert alone[launched].command == program[number]
    assert {shown.command for shown in alone} & set(program) == {program[number]}
    in_force = [cycle for cycle, shown in enumerate(alone) if shown.command == program[number]]
    assert in_force[-1] == launched + 5 + cycles_after_end(dut, PHASES[number])
    assert alone[-1].opcode == Opcode.END
    assert [whole[cycle].command for cycle in launches(whole)] == program[number:-1]


def test_single_of_an_end_stops():
    seen, = run(sequencer(), random_program(np.random.default_rng(3), [Opcode.END]), [{"entry": 0, "single": 1}], [])
    assert not launches(seen)


def test_flags_are_those_of_the_start():
    """From the cycle after a start to the next one."""
    program = random_program(np.random.default_rng(4), [Opcode.FORWARD, Opcode.LOSS, Opcode.END])
    flags = list(product(range(2), repeat=3))
    starts = [dict(zip(("parity", "first", "last"), flag, strict=True)) for flag in flags]
    for flag, seen in zip(flags, run(sequencer(), program, starts, [2] * 2 * len(starts)), strict=True):
        assert {shown.flags for shown in seen[1:]} == {flag}


def test_start_while_busy_is_ignored():
    """In every cycle of a run, with everything in the word different."""
    program = random_program(np.random.default_rng(5), [*PHASES, Opcode.END])
    starts, durations = [{"entry": 1, "first": 1}, {"entry": 3, "parity": 1, "last": 1}], [4, 1, 6, 2]
    pester = {"entry": 0, "parity": 1, "last": 1, "single": 1}
    left_alone = run(sequencer(), program, starts, durations)
    assert run(sequencer(), program, starts, durations, pester=pester) == left_alone
    assert [len(launches(seen)) for seen in left_alone] == [3, 1]


def test_idle_until_started():
    dut = sequencer()

    async def testbench(ctx):
        ctx.set(dut.word, {"entry": 1})
        ctx.set(dut.finished, 1)
        for _ in range(30):
            await ctx.tick()
            assert not ctx.get(dut.busy) and not ctx.get(dut.launch) and not ctx.get(dut.launch_loss)
            assert ctx.get(dut.command.opcode) == Opcode.END

    simulate(dut, testbench, max_cycles=31)
