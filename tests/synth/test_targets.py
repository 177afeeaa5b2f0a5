"""Devices: their counts, the lookup, and how many block RAMs a memory takes."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import PAIR_BITS
from espalier.errors import EspalierError
from espalier.targets import DEVICES, ECP5_25F, ECP5_45F, ECP5_85F, GENERIC, find_device


def test_the_ecp5_parts_have_the_counts_of_the_tool():
    assert [(d.multipliers, d.block_rams, d.luts) for d in (ECP5_25F, ECP5_45F, ECP5_85F)] == [
        (28, 56, 24_288), (72, 108, 43_848), (156, 208, 83_640)]


def test_lookup_takes_any_case_and_finds_every_device():
    assert find_device("ECP5-85F") is ECP5_85F
    assert all(find_device(name) is device and device.name == name for name, device in DEVICES.items())


def test_lookup_wrong():
    with pytest.raises(EspalierError, match=r"^A device must be one of generic, ecp5-25f, .*, not 'spartan'$"):
        find_device("spartan")


def test_a_device_is_frozen_and_prints_its_part():
    assert str(ECP5_85F) == "ecp5-85f (LFE5U-85F CABGA756 speed 6)"
    assert str(GENERIC) == "generic"
    with pytest.raises(dataclasses.FrozenInstanceError):
        ECP5_85F.luts = 1


def test_pairs_are_no_wider_than_the_packing_and_the_multipliers():
    able = {name: device.pair_bits for name, device in DEVICES.items() if device.pair_bits}
    assert able == {"xc7z020": 8, "xczu9eg": 8}
    assert all((device.pair_bits or 0) <= min(PAIR_BITS, device.multiplier_bits) for device in DEVICES.values())


def test_no_shape_holds_more_bits_than_the_block():
    for device in DEVICES.values():
        assert all(shape.words * shape.bits <= device.block_ram_bits for shape in device.block_ram_shapes)


@pytest.mark.parametrize(("words", "bits", "blocks"), [
    (1024, 16, 1), (512, 36, 1), (513, 36, 2), (512, 37, 2), (2048, 16, 2), (1024, 256, 15), (1, 1, 1), (0, 8, 0)])
def test_block_rams_of_a_memory(words, bits, blocks):
    assert ECP5_85F.block_rams_for(words, bits) == blocks


@settings(deadline=None)
@given(st.integers(1, 70_000), st.integers(1, 600), st.sampled_from(list(DEVICES.values())))
def test_block_rams_hold_the_memory_and_never_shrink(words, bits, device):
    blocks = device.block_rams_for(words, bits)
    assert blocks * device.block_ram_bits >= words * bits
    assert device.block_rams_for(words + 1, bits) >= blocks <= device.block_rams_for(words, bits + 1)
