from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.arch.machine import ROWS, Machine
from espalier.program.words import (
    Opcode,
    bits_for,
    command_fields,
    entry_fields,
    host_stride,
    host_words,
    lane_stride,
    pack,
    start_fields,
    vector_words,
)

MACHINE = Machine(rows=4, lanes=6, activation_depth=100, gradient_depth=300, weight_depth=64, index_depth=500,
                  table_depth=65)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**40)), min_size=1, max_size=8))
def test_pack_puts_the_first_field_lowest(items):
    widths = {f"f{k}": width for k, (width, _) in enumerate(items)}
    values = {f"f{k}": value % (1 << width) for k, (width, value) in enumerate(items)}
    word = pack(widths, values)
    assert word < 1 << sum(widths.values())
    for name, width in widths.items():
        assert word & (1 << width) - 1 == values[name]
        word >>= width


def test_pack_fills_missing_fields_with_zero():
    assert pack({"a": 3, "b": 4}, {"b": 5}) == 5 << 3


@pytest.mark.parametrize(("values", "sentence"), [
    ({"a": 8}, "a = 8 does not fit in 3 bits"), ({"a": -1}, "a = -1 does not fit in 3 bits"),
    ({"c": 1}, "unknown fields {'c'}")])
def test_pack_wrong(values, sentence):
    with pytest.raises(AssertionError, match=sentence):
        pack({"a": 3, "b": 4}, values)


@pytest.mark.parametrize(("count", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9)])
def test_bits_for(count, bits):
    assert bits_for(count) == bits


def test_fields_follow_the_machine():
    entry, command = entry_fields(MACHINE), command_fields(MACHINE)
    assert (entry["column"], entry["channel"], entry["count"]) == (6, 9, 3)
    assert (command["table"], command["out_base"], command["source_plane"], command["mask_base"]) == (7, 9, 7, 7)
    assert (command["one"], command["limit"]) == (16, 16)
    assert max(set(Opcode) - {Opcode.NORM}) < 1 << command["opcode"]
    assert max(Opcode) < 1 << command_fields(replace(MACHINE, norm_depth=2))["opcode"]
    assert sum(start_fields().values()) <= 32


@pytest.mark.parametrize("rows", ROWS)
def test_count_holds_a_whole_block(rows):
    machine = Machine(rows=rows, lanes=1, activation_depth=2, gradient_depth=2, weight_depth=2, index_depth=2,
                      table_depth=2)
    assert rows < 1 << entry_fields(machine)["count"]
    assert rows < 1 << command_fields(machine)["last_rows"]


@pytest.mark.parametrize(("bits", "words", "stride"), [(1, 1, 1), (32, 1, 1), (33, 2, 2), (65, 3, 4), (300, 10, 16)])
def test_host_items(bits, words, stride):
    assert (host_words(bits), host_stride(bits)) == (words, stride)


@pytest.mark.parametrize(("lanes", "words", "stride"), [(1, 1, 1), (2, 1, 2), (3, 2, 4), (16, 8, 16)])
def test_host_vectors(lanes, words, stride):
    machine = Machine(rows=1, lanes=lanes, activation_depth=2, gradient_depth=2, weight_depth=2, index_depth=2,
                      table_depth=2)
    assert (vector_words(machine), lane_stride(machine)) == (words, stride)
