"""What a memory cannot be."""

import pytest

from espalier.arch.memory import MemoryTiming
from espalier.errors import FitError


@pytest.mark.parametrize(("fields", "sentence"), [
    ({"beat_cycles": 0}, r"^beat_cycles of a memory must be at least 1, not 0$"),
    ({"queue": 0}, r"^queue of a memory must be at least 1, not 0$"),
    ({"refresh_every": 20, "refresh_cycles": 20}, r"^A memory must work between refreshes: every 20 cycles none moves "
                                                  r"for 20$"),
    ({"stalls": (0, 0, 100, 0, 0)}, r"^Channels of a memory stall in 0\.\.99 percent of cycles and err in 0\.\.100, "
                                    r"not 0, 0, 100, 0, 0 and 0$"),
    ({"errors": 101}, r"and 101$")])
def test_timing_wrong(fields, sentence):
    with pytest.raises(FitError, match=sentence):
        MemoryTiming(**fields)


def test_steady():
    assert MemoryTiming(refresh_every=100).steady and not MemoryTiming(refresh_every=100, refresh_cycles=1).steady
    assert not MemoryTiming(stalls=(0, 0, 0, 1, 0)).steady and not MemoryTiming(errors=1).steady
