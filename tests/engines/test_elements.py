"""Processing elements that share the work of a layer: RTL equals interpreter, and takes the cycles predicted."""

import pytest
from bench.random_networks import check_engine, examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from espalier.arch.machine import Machine

EXAMPLES = settings(deadline=None, max_examples=7, derandomize=True, phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck))
DEPTHS = {"activation_depth": 2048, "gradient_depth": 1024, "weight_depth": 2048, "index_depth": 4096,
          "table_depth": 4096, "program_depth": 512}
MACHINES = (Machine(elements=2, rows=2, lanes=3, acc_bits=48, clips=True, trees=2, **DEPTHS),
            Machine(elements=4, rows=1, lanes=2, acc_bits=48, groups=True, **DEPTHS),
            Machine(elements=2, rows=4, lanes=1, word_bits=8, acc_bits=40, pairs=True, **DEPTHS),
            Machine(elements=2, rows=2, lanes=4, grid_y=2, grid_x=2, acc_bits=48, clips=True, **DEPTHS))


def named(machine):
    return f"{machine.elements}x{machine.rows}x{machine.lanes}"


@pytest.mark.parametrize("machine", MACHINES, ids=named)
@EXAMPLES
@given(data=st.data())
def test_random_networks(machine, data):
    check_engine(data.draw(examples(machine)))
