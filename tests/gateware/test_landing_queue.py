import numpy as np
import pytest
from amaranth.hdl import unsigned
from bench.simulation import simulate

from espalier.gateware.landing_queue import LandingQueue


@pytest.mark.parametrize("latency", [1, 4, 12])
@pytest.mark.parametrize("stalls", [0.0, 0.7])
def test_nothing_is_lost_and_nothing_waits(latency, stalls):
    """Items through a pipeline of ``latency`` cycles, at every chance to send and with random stalls at the end."""
    queue, rng, count = LandingQueue(unsigned(8)), np.random.default_rng(latency), 120
    taken, cycles = [], 0

    async def testbench(ctx):
        nonlocal cycles
        pipeline, sent = [None] * latency, 0
        while len(taken) < count:
            launch = sent < count and ctx.get(queue.room)
            ctx.set(queue.launch, int(launch))
            pipeline.append(sent if launch else None)
            sent += launch
            arrived = pipeline.pop(0)
            ctx.set(queue.i.valid, int(arrived is not None))
            ctx.set(queue.i.payload, arrived or 0)
            ready = rng.random() >= stalls
            ctx.set(queue.o.ready, int(ready))
            if ready and ctx.get(queue.o.valid):
                taken.append(ctx.get(queue.o.payload))
            await ctx.tick()
            cycles += 1

    simulate(queue, testbench, max_cycles=20 * count)
    assert taken == list(range(count))
    assert stalls or cycles == count + latency + 1
