import numpy as np
import pytest
from bench.simulation import trace

from espalier.gateware.counted_loop import CountedLoop


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_counts_and_knows_its_last_turn(count):
    steps = np.random.default_rng(count).integers(0, 2, 40)
    rows = [{"count": count}] * 2 + [{"count": count, "reset": 1}] + [{"count": count, "step": int(k)} for k in steps]
    seen = trace(CountedLoop(3), rows, ["value", "done"])[3:]
    turns = [int(steps[:k].sum()) % count for k in range(len(steps))]
    assert seen == [(turn, int(turn == count - 1)) for turn in turns]
