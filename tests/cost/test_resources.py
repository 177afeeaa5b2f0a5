"""The resource model against what Yosys made, as ``benchmarks/synth_family.py`` recorded it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench.machines import DEPTHS
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.arch.machine import ROWS, Machine
from espalier.cost.resources import FABRICS, Resources, block_rams_for, estimate, luts_for, terms
from espalier.program.memories import memory_banks
from espalier.records import Provenance
from espalier.targets import DEVICES, ECP5_85F, GENERIC, find_device

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "synth_family.json"
RECORDED = json.loads(RESULTS.read_text(encoding="utf-8"))["machines"]
WORST = 0.15  #: error of the logic of one machine; the benchmark holds the median to 10 %
FOUR_BY_FOUR = Machine(rows=4, lanes=4, acc_bits=40, **DEPTHS)


def named(record):
    return f"{record['device']} {record['name']}"


@pytest.mark.parametrize("record", RECORDED, ids=named)
def test_multipliers_are_exact_and_block_rams_to_one(record):
    made = record["synthesised"]
    found = estimate(Machine.from_json(record["machine"]), find_device(record["device"]))
    assert found.multipliers == made["multipliers"]
    assert abs(found.block_rams - made["block_rams"]) <= 1


@pytest.mark.parametrize("record", RECORDED, ids=named)
def test_logic_is_near(record):
    made = record["synthesised"]
    found = estimate(Machine.from_json(record["machine"]), find_device(record["device"]))
    assert found.luts == pytest.approx(made["luts"], rel=WORST)
    assert found.flip_flops == pytest.approx(made["flip_flops"], rel=WORST)


def test_some_machines_are_held_out_of_the_fit_in_every_family():
    assert {record["device"] for record in RECORDED if record["held_out"]} == {
        device.name for device in map(find_device, {record["device"] for record in RECORDED})}
    assert {find_device(record["device"]).family for record in RECORDED} == FABRICS.keys()


@settings(deadline=None)
@given(rows=st.sampled_from(ROWS[:-1]), lanes=st.integers(1, 100), word_bits=st.integers(5, 15),
       device=st.sampled_from([device for device in DEVICES.values() if device.family in FABRICS]))
def test_a_larger_machine_takes_no_less(rows, lanes, word_bits, device):
    machine = Machine(rows=rows, lanes=lanes, word_bits=word_bits, acc_bits=40, **DEPTHS)
    taken = asdict(estimate(machine, device))
    for larger in ({"rows": 2 * rows}, {"lanes": lanes + 1}, {"acc_bits": 41}, {"groups": True}):
        more = asdict(estimate(replace(machine, **larger), device))
        assert all(more[name] >= taken[name] for name in ("multipliers", "luts", "flip_flops")), larger


def test_every_part_has_a_coefficient_for_each_term():
    lengths = {part: len(values) for part, values in terms(FOUR_BY_FOUR).items()}
    for fabric in FABRICS.values():
        for coefficients in (fabric.logic.luts, fabric.logic.flip_flops):
            assert {part: len(values) for part, values in coefficients.items()} == lengths
            assert all(value >= 0 for values in coefficients.values() for value in values)


@pytest.mark.parametrize(("words", "bits", "blocks"), [
    (16, 4, 0), (64, 8, 0), (128, 10, 1), (32, 300, 0), (64, 300, 9), (1024, 36, 2)])
def test_small_memories_are_look_up_tables(words, bits, blocks):
    assert block_rams_for(words, bits, ECP5_85F) == blocks


def test_memories_are_banks_of_1024_words():
    machine = replace(FOUR_BY_FOUR, activation_depth=2500, gradient_depth=1024, weight_depth=1025)
    banks = memory_banks(machine)
    assert banks[:4] == ((2, 1024, 72), (1, 452, 72), (4, 1024, 72), (4, 1024, 16))
    assert banks[4] == (4, 2, 16)  # a bank has two words at least


def test_a_part_of_no_family_has_no_estimate():
    assert estimate(FOUR_BY_FOUR, GENERIC) is None and luts_for(FOUR_BY_FOUR, GENERIC) == 0
    assert block_rams_for(16, 4, GENERIC) == GENERIC.block_rams_for(16, 4) == 1


def test_use_is_told_in_a_line():
    resources = Resources(multipliers=29, block_rams=40, luts=9000, flip_flops=8000)
    assert resources.use_of(ECP5_85F) == ("29 of 156 multipliers, 40 of 208 block RAMs, 9000 of 83640 look-up tables, "
                                          "8000 of 83640 flip-flops of ecp5-85f")
    assert [(figure.value, figure.provenance) for figure in resources.figures(Provenance.ESTIMATED)] == [
        (value, Provenance.ESTIMATED) for value in (29, 40, 9000, 8000)]
