"""Which kernels run side by side."""

from __future__ import annotations

import pytest

from espalier.opencl.queues import Turn, turns


def test_a_chain_is_one_queue() -> None:
    assert turns([(["x", "w1"], "a"), (["a", "w2"], "b"), (["b"], "c")]) == [Turn()] * 3


def test_a_shortcut_has_its_own() -> None:
    """The sum follows the branch in its queue, and waits for the shortcut."""
    found = turns([(["x"], "a"), (["a"], "b"), (["a"], "shortcut"), (["shortcut", "b"], "sum"), (["sum"], "y")])
    assert found == [Turn(), Turn(), Turn(1, (0,)), Turn(1, (1,)), Turn(1)]


def test_a_queue_that_nothing_waits_for_is_taken_up() -> None:
    assert turns([(["x"], "a"), (["x"], "b"), (["a", "b"], "c")]) == [Turn(), Turn(1), Turn(1, (0,))]


def test_a_buffer_has_one_writer() -> None:
    with pytest.raises(AssertionError, match=r"^a has two writers, and a reader cannot wait for both$"):
        turns([(["x"], "a"), (["a"], "b"), (["x"], "a")])
