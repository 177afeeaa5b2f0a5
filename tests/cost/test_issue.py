"""The time of tiles through the queues of the front: by hand, and against every queue written out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.cost.issue import Stopwatch
from espalier.cost.work import Loop, Tile

DEPTH, CREDIT, ADD = 16, 2, 8
FILL = 15  #: from the first tile's setting out to its block's being there, where no segment is empty
Segments = tuple[tuple[int, ...], ...]
Spelled = tuple[int, Segments]  #: a tile: its rows, and the steps of the blocks of each segment


def cycles(*tiles: Spelled, adds: bool = False) -> int:
    return Stopwatch(adds=adds).cycles(Loop(tuple(Tile.of(rows, segments) for rows, segments in tiles)))


def through_all_queues(tiles: list[Spelled], adds: bool) -> int:
    """Cycles from when the first block can be taken to the last step; every item of all three queues."""
    tile = segment = fetch = -1  # when the last one set out
    tiles_taken, segments_taken, blocks_taken = ([-100] * DEPTH for _ in range(3))
    done = end = -100  # of the last block, and of the last tile with the rows that it needs
    banks: dict[int, int] = {}  # from which something is read that is added, by cycle
    for rows, segments in tiles:
        tile = max(tile + 1, tiles_taken[-DEPTH] + CREDIT)
        tiles_taken.append(max(tile + 5, segment))
        ready = tiles_taken[-1] + 1
        for number, blocks in enumerate(segments):
            segment = max(segment + 1, ready, segments_taken[-DEPTH] + CREDIT)
            segments_taken.append(max(segment + 3, fetch))
            last = number + 1 == len(segments)
            found = segments_taken[-1] + 1
            for steps in blocks or [1 if last else 0]:
                fetch = max(fetch + 1, found, blocks_taken[-DEPTH] + CREDIT)
                if steps:
                    blocks_taken.append(max(fetch + 5, done))
                    done = blocks_taken[-1]
                    for term in range(steps):
                        done += 1
                        while banks.get(done) == term:
                            done += 1
        while done < end or banks.get(done) == term:
            done += 1
        end = done + rows
        banks |= {done + ADD + row: row for row in range(rows)} if adds else {}
    return done - FILL


def test_steps_follow_each_other() -> None:
    assert cycles((1, ((3, 2),)), (1, ((1,), (4,)))) == 10
    assert cycles(*[(4, ((2, 2),))] * 9) == 36


def test_an_end_waits_for_the_rows_before_it() -> None:
    """One step, then ends 4 cycles apart."""
    assert cycles(*[(4, ((1,),))] * 3) == 1 + 4 + 4
    assert cycles((2, ((1,),)), (4, ((1,),)), (1, ((5,),)), (1, ((1,),))) == 1 + 2 + 5 + 1


def test_an_empty_end_is_a_step_of_nothing() -> None:
    assert cycles(*[(1, ((),))] * 5) == 5
    assert cycles((1, ((2,), ()))) == 3


def test_empty_segments_starve_where_nothing_waits() -> None:
    """Each tile is fetched in three cycles, and one is all that it takes to issue it."""
    assert cycles(*[(1, ((), (), (1,)))] * 10) == 30


def test_a_full_queue_hides_empty_segments() -> None:
    """Sixteen blocks of two steps: the last is fetched at 10 and done at 32. What is fetched can be taken 5 later."""
    long = (1, ((2,) * 16,))
    assert cycles(long, (1, ((),) * 12 + ((1,),))) == 32 + 1
    assert cycles(long, (1, ((),) * 20 + ((1,),))) == 11 + 20 + 5 + 1


def test_credit_bounds_how_far_ahead_the_fetcher_is() -> None:
    """18 blocks of 10 steps. There is room for the next, and for looking for it, when the third was taken: at 20."""
    assert cycles((1, ((10,) * 18,)), (1, ((),) * 200 + ((1,),))) == 22 + 200 + 5 + 1


def test_what_is_added_is_read_beside_other_steps() -> None:
    """Bank 0 is read eight cycles after the end of the first tile: only a block that would begin then waits."""
    assert cycles((4, ((1,),)), (4, ((4, 4, 4),)), adds=True) == 1 + 12
    assert cycles((4, ((1,),)), (4, ((4, 3, 4, 1),)), adds=True) == 1 + 12 + 1
    assert cycles((4, ((1,),)), (4, ((2,),)), adds=True) == 1 + 4


def test_the_end_of_a_tile_waits_for_the_bank_that_it_reads() -> None:
    """The second tile's nine steps are there at 9, but must end at 16, in the cycle in which bank 8 is read."""
    assert cycles((16, ((1,),)), (1, ((9,),)), adds=True) == 1 + 16 + 1
    assert cycles((16, ((1,),)), (1, ((8,),)), adds=True) == 1 + 16


tiles = st.tuples(
    st.sampled_from([1, 1, 2, 4, 16]),
    st.lists(st.lists(st.sampled_from([1, 1, 2, 5, 16]), max_size=5).map(tuple), min_size=1, max_size=6).map(tuple))
nests = st.recursive(
    st.lists(tiles, min_size=1, max_size=4).map(lambda found: (found, 1)),
    lambda inner: st.tuples(st.lists(inner, min_size=1, max_size=3), st.integers(1, 20)), max_leaves=5)


def spelled(nest: tuple) -> list[Spelled]:
    body, times = nest
    return times * [tile for part in body for tile in (spelled(part) if isinstance(part[0], list) else [part])]


def loop(nest: tuple, made: dict[Spelled, Tile]) -> Loop:
    """Equal tiles are one object, as in the work of a command."""
    body, times = nest
    return Loop(tuple(loop(part, made) if isinstance(part[0], list) else made.setdefault(part, Tile.of(*part))
                      for part in body), times)


@settings(deadline=None, max_examples=100)
@given(nests, st.booleans())
def test_equal_to_all_queues_written_out(nest: tuple, adds: bool) -> None:
    written = spelled(nest)
    work = loop(nest, {})
    assert Stopwatch(adds=adds).cycles(work) == through_all_queues(written, adds)
    assert work.issued == (sum(sum(map(sum, segments)) for _, segments in written),)
