"""What the scalar unit of a machine does, and how long each operation takes."""

from __future__ import annotations

from enum import IntEnum

FRAC_BITS = 9  #: of the signed number of fraction bits of a sum or a word


class ScalarOperation(IntEnum):
    """An operation of ``numerics/scalar.py``, on ``a`` and ``b``, or on a whole number and its fraction bits."""

    ADD = 0           #: ``a + b``
    SUB = 1           #: ``a - b``
    EXCESS = 2        #: ``max(a - b, 0)``
    MUL = 3           #: ``a * b``
    INVERSE_ROOT = 4  #: ``1 / sqrt(a)``
    OF_SUM = 5        #: the scalar of a whole number
    TO_WORD = 6       #: the word of ``a``
    TO_NEGATED = 7    #: the word of ``-a``


#: Cycles from an operation's start to its result, whatever the operands are.
SCALAR_CYCLES = {
    ScalarOperation.ADD: 7, ScalarOperation.SUB: 7, ScalarOperation.EXCESS: 7, ScalarOperation.MUL: 8,
    ScalarOperation.INVERSE_ROOT: 58, ScalarOperation.OF_SUM: 5, ScalarOperation.TO_WORD: 3,
    ScalarOperation.TO_NEGATED: 3}
