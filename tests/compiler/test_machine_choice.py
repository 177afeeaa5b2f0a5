"""The choice of a machine: within the limits, the fastest, and refused with the numbers where nothing fits."""

from dataclasses import replace

import numpy as np
import pytest
from bench.networks import Chain, all_live, compiled, random_live
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS, Machine
from espalier.compiler import machine_choice
from espalier.compiler.legalise import legalise
from espalier.compiler.lists import blocks_of
from espalier.compiler.machine_choice import (
    DEPTH_STEP,
    Constraints,
    choose_machine,
    multipliers_of,
    phase_estimates,
)
from espalier.errors import FitError
from espalier.program.memories import memory_banks


def block_rams_for(words: int, bits: int) -> int:
    return -(-words // 512) * -(-bits // 36)


def chain() -> Chain:
    """8C3 with padding and pooling on 1x8x8, then a linear layer."""
    return Chain((1, 8, 8)).conv(8, (3, 3), (1, 1, 1, 1)).relu().pool().flatten().linear(10)


def part(**limits) -> Constraints:
    return Constraints(**{"name": "part-x", "multipliers": 156, "block_rams": 208, "block_rams_for": block_rams_for,
                          **limits})


def chosen(net: Chain, live, constraints: Constraints) -> Machine:
    return choose_machine(*legalise(net.training_graph()), live, constraints)


@settings(deadline=None, max_examples=20)
@given(multipliers=st.integers(60, 300), block_rams=st.integers(40, 300), rows=st.sampled_from(ROWS),
       trees=st.sampled_from([1, 2, 8, None]), seed=st.integers(0, 99))
def test_what_is_chosen_is_within_the_limits_and_holds_the_network(multipliers, block_rams, rows, trees, seed):
    net = chain()
    live = random_live(np.random.default_rng(seed), net, rows, 0.5)
    machine = chosen(net, live, part(multipliers=multipliers, block_rams=block_rams, trees=trees))
    assert multipliers_of(machine) <= multipliers and machine.trees == min(trees or machine.trees, machine.rows)
    assert sum(count * block_rams_for(words, bits) for count, words, bits in memory_banks(machine)) <= block_rams
    compiled(net, machine, live=live)  # raises where it does not fit


def test_a_fully_connected_layer_gets_lane_trees():
    net = Chain((1, 8, 8)).flatten().linear(64).relu().linear(10)
    machine = chosen(net, all_live(net), part(rows=8, lanes=4, trees=None))
    assert machine.trees == 8
    assert chosen(net, all_live(net), part(rows=8, lanes=4, trees=None, multipliers=66)).trees == 4
    compiled(net, machine)


def test_lane_trees_that_save_nothing_are_left_out():
    net = (Chain((8, 16, 16)).conv(8, (3, 3), (1, 1, 1, 1)).relu().pool().conv(2, (3, 3)).relu().pool().flatten()
           .linear(2))
    assert chosen(net, all_live(net), part(rows=8, trees=None)).trees == 1


@pytest.mark.parametrize("elements", [2, 4])
def test_processing_elements_share_the_limits(elements):
    net = chain()
    machine = chosen(net, all_live(net), part(elements=elements, rows=2))
    assert machine.elements == elements and multipliers_of(machine) <= 156 < multipliers_of(machine) * 2
    assert machine.multipliers == elements * 2 * machine.lanes
    compiled(net, machine, live=all_live(net))
    with pytest.raises(FitError, match=r"^Weights in external memory are those of one processing element, and there "):
        replace(machine, port_bits=64, panel_depth=64, state_depth=64, run_depth=64)


def test_given_rows_and_lanes_are_taken():
    machine = chosen(chain(), all_live(chain()), part(rows=4, lanes=3))
    assert (machine.rows, machine.lanes, machine.groups) == (4, 3, False)


def test_depths_are_rounded_up():
    machine = chosen(chain(), all_live(chain()), part(rows=2, lanes=2))
    assert machine.activation_depth % DEPTH_STEP == 0
    assert 2 * 64 + 8 * 16 + 10 <= machine.activation_depth < 2 * 64 + 8 * 16 + 10 + DEPTH_STEP


def test_a_dense_network_gets_most_of_the_multipliers():
    machine = chosen(chain(), all_live(chain()), part())
    assert machine.multipliers > 100


def test_look_up_tables_set_a_limit_too():
    machine = chosen(chain(), all_live(chain()), part(luts=1000, luts_for=lambda machine: 100 * machine.lanes))
    assert machine.lanes == 10


def test_unstructured_weights_get_one_row():
    net = chain()
    live = random_live(np.random.default_rng(0), net, 1, 0.2)
    assert chosen(net, live, part()).rows == 1


def test_a_batch_is_whole_groups():
    machine = chosen(chain(), all_live(chain()), part(batch=24, rows=16))
    assert 24 % machine.lanes == 0 and machine.groups == (machine.lanes < 24)


@pytest.mark.parametrize(("batch", "grid", "groups"), [(1, (4, 4), False), (3, (2, 4), False), (24, (1, 1), False)])
def test_a_small_batch_leaves_no_lanes_over(batch, grid, groups):
    """Maps in tiles, where whole images would leave multipliers idle."""
    net = chain()
    machine = chosen(net, all_live(net), part(batch=batch, rows=4, grid=None))
    assert (machine.grid, machine.images, machine.groups) == (grid, batch, groups)
    compiled(net, machine)
    assert chosen(net, all_live(net), part(batch=batch, rows=4)).lanes == batch
    assert chosen(net, all_live(net), part(batch=batch, rows=4, grid=None, lanes=batch)).lanes == batch


def test_a_network_without_tiles_has_a_lane_an_image():
    net = Chain((1, 7, 7)).conv(8, (3, 3)).relu().linear(10)
    assert chosen(net, all_live(net), part(batch=2, grid=None)).lanes == 2
    with pytest.raises(FitError, match=r"^A grid has at least one tile, not 0 × 2$"):
        chosen(net, all_live(net), part(grid=(0, 2)))


def test_words_are_as_wide_as_the_widest_format():
    assert chosen(chain(), all_live(chain()), part(rows=1, lanes=1)).word_bits == 16


def test_estimates_of_a_dense_convolution_are_its_useful_work():
    net = chain()
    layers, _ = legalise(net.training_graph())
    item = blocks_of(layers, all_live(net), 1)[0]
    inside = sum((8 - abs(ky - 1)) * (8 - abs(kx - 1)) for ky in range(3) for kx in range(3))
    assert phase_estimates(item, 1) == (8 * (inside + 64), 0, 8 * (inside + 64))


def test_pairs_take_half_a_multiplier_for_each_product():
    single, paired = (chosen(chain(), all_live(chain()), part(rows=8, word_bits=8, multipliers=80, pair_bits=bits))
                      for bits in (0, 8))
    assert not single.pairs and (single.lanes, single.hard_multipliers) == (8, 64)
    assert paired.pairs and (paired.lanes, paired.multipliers, paired.hard_multipliers) == (16, 128, 64)
    assert multipliers_of(paired) == multipliers_of(single) == 80


@pytest.mark.parametrize(("limits", "pairs"), [
    ({"pair_bits": 8}, True), ({"pair_bits": 7}, False), ({"pair_bits": None}, False),
    ({"pair_bits": 8, "pairs": False}, False), ({"pair_bits": None, "pairs": True}, True),
    ({"pair_bits": 8, "rows": 1}, False)])
def test_pairs_are_where_part_words_and_rows_allow_or_as_asked(limits, pairs):
    limits = {"rows": 4, "lanes": 2, "word_bits": 8, **limits}
    assert chosen(chain(), all_live(chain()), part(**limits)).pairs is pairs


def test_pairs_asked_for_leave_out_one_row():
    assert chosen(chain(), all_live(chain()), part(lanes=1, word_bits=8, multipliers=17, pairs=True)).rows == 2


def test_pairs_of_unstructured_weights_wrong():
    net = chain()
    live = random_live(np.random.default_rng(0), net, 1, 0.2)
    with pytest.raises(FitError, match=r"^Pairs of products are those of two rows, and the live weights are not "):
        chosen(net, live, part(word_bits=8, pairs=True))


@pytest.mark.parametrize(("limits", "sentence"), [
    ({"port_bits": 48}, r"^A port to external memory has 32, 64, 128, 256, 512, 1024 bits, not 48$"),
    ({"rows": 3}, r"^Rows must be one of 1, 2, 4, 8, 16, 32, 64, not 3$"),
    ({"rows": 8, "trees": 3}, r"^Lane trees must be a power of two up to the 8 rows, not 3$"),
    ({"rows": 8, "trees": 0}, r"^Lane trees must be a power of two up to the 8 rows, not 0$"),
    ({"rows": 8, "trees": 8, "elements": 16, "multipliers": None, "block_rams": None, "lanes": 1},
     r"^16 processing elements with 8 lane trees each are more than 64 update units: take fewer$"),
    ({"lanes": 0}, r"^Lanes must be in 1\.\.1024, not 0$"),
    ({"lanes": 4, "batch": 6}, r"^A batch must be whole groups of lanes, and 6 images are not whole groups of 4$"),
    ({"batch": 0}, r"^A batch must hold at least one image, not 0$"),
    ({"multipliers": None}, r"^part-x sets no limit to multipliers, so the number of lanes must be given$"),
    ({"multipliers": 16}, r"^No machine for this network fits part-x: the smallest that was tried, 1 rows × 1 lanes, "
                          r"takes at least 17 of 16 multipliers and \d+ of 208 block RAMs; "),
    ({"block_rams": 3}, r"the smallest that was tried, 1 rows × 1 lanes, takes at least 17 of 156 multipliers and \d+ "
                        r"of 3 "),
    ({"rows": 1, "word_bits": 8, "pairs": True}, r"^Pairs of products are those of two rows, and the machine has 1$"),
    ({"pairs": True}, r"^Pairs of products need words of at most 8 bits, not 16$"),
    ({"pairs": True, "pair_bits": 8}, r"^A multiplier of part-x makes two products of words of at most 8 bits, not"),
    ({"pairs": True, "pair_bits": 0, "word_bits": 8}, r"^A multiplier of part-x makes no two products$"),
    ({"luts": 99, "luts_for": lambda machine: 100 * machine.lanes},
     r"17 of 156 multipliers, \d+ of 208 block RAMs and 100 of 99 look-up tables \(estimated\); prune more"),
    ({"rows": 16, "lanes": 16}, r"16 rows × 16 lanes, takes at least 272 of 156 multipliers"),
])
def test_constraints_wrong(limits, sentence):
    with pytest.raises(FitError, match=sentence):
        chosen(chain(), all_live(chain()), part(**limits))


def test_weights_alone_that_fill_the_part_are_refused_before_their_blocks_are_laid_out(monkeypatch):
    def never(*arguments):
        raise AssertionError("a dense network of millions of weights takes minutes here")
    monkeypatch.setattr(machine_choice, "blocks_of", never)
    with pytest.raises(FitError, match=r"takes at least \d+ of 156 multipliers and \d+ of 9 block RAMs"):
        chosen(chain(), all_live(chain()), part(block_rams=9))


def test_rows_that_cut_blocks_wrong():
    net = chain()
    live = random_live(np.random.default_rng(0), net, 1, 0.2)
    with pytest.raises(FitError, match=r"are not whole 4×4 blocks: prune in blocks of 4, or compile for a machine with "
                                       r"rows = 1$"):
        chosen(net, live, part(rows=4))


@pytest.mark.parametrize("block_rams", [None, 95, 99, 208])
def test_no_more_activations_leave_than_the_block_rams_make_necessary(block_rams):
    net = Chain((1, 8, 8))
    for _ in range(6):
        net.conv(8, (3, 3), (1, 1, 1, 1)).relu()
    net.linear(10)
    limits = part(rows=4, lanes=4, port_bits=64, block_rams=block_rams)
    machine, least, whole = (chosen(net, all_live(net), one) for one in (
        limits, replace(limits, block_rams=None), replace(limits, port_bits=0, block_rams=None)))
    assert machine == replace(least, activation_depth=machine.activation_depth) and limits.hold(machine)
    spills = sum(command.spill for command in compiled(net, machine).program.commands)
    if block_rams == 208:
        assert machine.activation_depth == whole.activation_depth and not spills
        return
    assert machine.activation_depth < whole.activation_depth and spills
    assert block_rams is None or not limits.hold(replace(
        machine, activation_depth=machine.activation_depth + DEPTH_STEP))
    assert (machine == least) == (block_rams is None)


def test_no_more_weights_stream_than_the_block_rams_make_necessary():
    """On a part that cannot hold them all, either."""
    net = Chain((1, 8, 8)).conv(8, (3, 3), (1, 1, 1, 1)).relu().linear(64).relu().linear(64).relu().linear(10)
    limits = part(rows=4, lanes=4, port_bits=64, stream=True)
    parts = [replace(limits, block_rams=count) for count in (None, 170, 208, 400)]
    machines = [chosen(net, all_live(net), one) for one in parts]
    assert all(one.hold(machine) for one, machine in zip(parts, machines, strict=True))
    outside = [compiled(net, machine).program.external_columns for machine in machines]
    assert outside == sorted(outside, reverse=True) and len(set(outside)) == len(parts) and not outside[-1]
    assert not machines[-1].panel_depth
    with pytest.raises(FitError, match=r"takes at least 20 of 156 multipliers and 246 of 208"):
        chosen(net, all_live(net), replace(limits, stream=False, block_rams=208))
