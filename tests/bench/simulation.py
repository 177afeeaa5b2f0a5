"""Runs components in Amaranth's simulator, always with a limit on cycles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from amaranth.lib import data, wiring
from amaranth.sim import Simulator, SimulatorContext

PERIOD_SECONDS = 1e-8


def simulate(component: wiring.Component, testbench: Callable[[SimulatorContext], Awaitable[None]], *,
             max_cycles: int) -> None:
    """Run ``testbench`` on ``component`` to its end; TimeoutError if that takes more than ``max_cycles``."""
    async def watchdog(ctx: SimulatorContext) -> None:
        for _ in range(max_cycles):
            await ctx.tick()
        raise TimeoutError(f"{type(component).__name__} was not done after {max_cycles} cycles")

    simulator = Simulator(component)
    for domain in ("sync", "data"):  # one clock; see espalier.gateware.verilog
        simulator.add_clock(PERIOD_SECONDS, domain=domain, if_exists=True)
    simulator.add_testbench(testbench)
    simulator.add_testbench(watchdog, background=True)
    simulator.run()


def trace(component: wiring.Component, rows: Sequence[Mapping[str, int | Mapping[str, int]]],
          watched: Sequence[str]) -> list[tuple[int, ...]]:
    """Give the ports the values of one row in each cycle and list the ``watched`` ports, one tuple a cycle.

    A port that a row does not name is 0 in that cycle. Element ``k`` is what the ports show in the
    cycle of row ``k``: what a row causes after a latency of ``n`` cycles stands ``n`` elements later.
    """
    seen: list[tuple[int, ...]] = []
    outputs = [getattr(component, name) for name in watched]
    driven = {name for row in rows for name in row}

    async def testbench(ctx: SimulatorContext) -> None:
        before: dict[str, object] = {}
        for row in rows:
            for name in driven:
                port = getattr(component, name)
                value = row.get(name, {} if isinstance(port, data.View) else 0)
                if before.get(name) != value:
                    ctx.set(port, value)
                    before[name] = value
            _, _, *values = await ctx.tick().sample(*outputs)
            seen.append(tuple(values))

    simulate(component, testbench, max_cycles=len(rows) + 1)
    return seen
