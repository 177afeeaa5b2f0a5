"""The rows of a batch norm's channel do what its formulas say, whatever the scalars are."""

import pytest

from espalier.program.norm import BACKWARD, FORWARD, RUNNING, Constant, Frac, NormMode, Slot, Step, Sum, Word
from espalier.program.norm_schedule import (
    A_READ_CYCLES,
    B_READ_CYCLES,
    CHOICE_CYCLES,
    ROW_FIELDS,
    ROWS,
    SUM_CYCLES,
    Source,
    rows,
)
from espalier.program.scalar import SCALAR_CYCLES, ScalarOperation
from espalier.program.words import pack

WORDS = (ScalarOperation.TO_WORD, ScalarOperation.TO_NEGATED)


def meant(steps):
    """What slots and words hold after the steps, as formulas: nested tuples."""
    named = {slot: slot for slot in Slot}
    for step in steps:
        named[step.result] = (step.operation, *(named.get(name, name) for name in (step.a, step.b) if name is not None))
    return {name: formula for name, formula in named.items() if not isinstance(name, str)}


def done(table):
    """Likewise of rows, on a machine of formulas."""
    memory, seen, words = dict(enumerate(Slot)), [], {}
    last = dict.fromkeys((False, True))  # scalar and word
    arriving = {}  # (cycle, whether it is a word) -> formula
    for cycle, row in enumerate(table):
        for is_word in (False, True):
            last[is_word] = arriving.pop((cycle, is_word), last[is_word])
        words[Word(row.get("which", 0))] = last[True]
        if row.get("write"):
            memory[row["slot"]] = last[False]
        seen.append(None if row.get("write") and row["slot"] == row.get("read") else memory.get(row.get("read", 0)))
        if row.get("start"):
            formula = started(table, cycle, seen, last)
            end = cycle + SCALAR_CYCLES[formula[0]], formula[0] in WORDS
            assert end not in arriving, "two results at once"
            arriving[end] = formula
    assert not arriving
    return {slot: memory[slot.value] for slot in Slot} | words


def started(table, cycle, seen, last):
    """The formula that a row starts."""
    row, choice = table[cycle], table[cycle - CHOICE_CYCLES]
    operation, frac = ScalarOperation(row["operation"]), choice.get("frac", 0)
    a = last[False] if row["a_result"] else seen[cycle - A_READ_CYCLES]
    if operation == ScalarOperation.INVERSE_ROOT:
        return operation, a
    if operation in WORDS:
        return operation, a, Frac(frac)
    if operation == ScalarOperation.OF_SUM:
        return operation, last[True] if row.get("of_word") else Sum(table[cycle - SUM_CYCLES].get("sum", 0)), Frac(frac)
    return operation, a, {Source.MEMORY: seen[cycle - B_READ_CYCLES], Source.RESULT: last[False],
                          Source.CONSTANT: Constant(choice.get("constant", 0))}[row["b_source"]]


@pytest.mark.parametrize(("mode", "steps"), [
    (NormMode.FORWARD, FORWARD), (NormMode.BACKWARD, BACKWARD), (NormMode.RUNNING, RUNNING)])
def test_rows_do_what_the_formulas_say(mode, steps):
    assert done(ROWS[mode]) == meant(steps)


@pytest.mark.parametrize("table", list(ROWS.values()))
def test_rows_fit_their_fields(table):
    assert all(pack(ROW_FIELDS, row) >= 0 for row in table)


def test_what_waits_keeps_its_slot():
    """Six values that are taken in the opposite order."""
    names = [f"value {k}" for k in range(6)]
    steps = [Step("sum", ScalarOperation.OF_SUM, Sum.SECOND, Frac.SUM)]
    steps += [Step(name, ScalarOperation.MUL, "sum", constant) for name, constant in zip(names, Constant, strict=False)]
    for name in reversed(names):
        steps.append(Step(Slot.MEAN, ScalarOperation.SUB, Slot.MEAN, name))
    result = done(rows(tuple(steps)))
    assert result[Slot.MEAN] == meant(steps)[Slot.MEAN]
