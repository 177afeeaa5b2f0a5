"""What is done once a batch for each channel of a trained batch norm, as operations on scalars.

The formulas are those of ``numerics/fixed_batch_norm.py`` and of ``ScalarSgd``, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from espalier.program.scalar import ScalarOperation

ADD, SUB, EXCESS, MUL = (ScalarOperation.ADD, ScalarOperation.SUB, ScalarOperation.EXCESS, ScalarOperation.MUL)
INVERSE_ROOT, OF_SUM = ScalarOperation.INVERSE_ROOT, ScalarOperation.OF_SUM
TO_WORD, TO_NEGATED = ScalarOperation.TO_WORD, ScalarOperation.TO_NEGATED


class NormMode(IntEnum):
    """What is done to a batch norm's channels."""

    FORWARD = 0
    BACKWARD = 1
    RUNNING = 2  #: the words of FORWARD by the running statistics, which stay, as all does


class Slot(Enum):
    """Where the scalars of a channel lie that outlast a step; a host loads and reads those up to the statistics."""

    SCALE = 0
    SHIFT = 1
    SCALE_VELOCITY = 2
    SHIFT_VELOCITY = 3
    RUNNING_MEAN = 4
    RUNNING_VARIANCE = 5
    MEAN = 6      #: these from forward to backward
    INVERSE = 7
    FACTOR = 8    #: the value of the word


class Sum(Enum):
    """The sums of a channel over images and pixels."""

    FIRST = 0   #: of x; backward, of g
    SECOND = 1  #: of x*x; backward, of g*x


class Word(Enum):
    """The words of a channel."""

    ADDED = 0       #: offset; backward, intercept
    MULTIPLIED = 1  #: factor; backward, slope


class Constant(Enum):
    """Scalars that all channels share."""

    SHARE = 0       #: 1/n
    EPSILON = 1
    UNBIASED = 2    #: FOLLOWING * n/(n-1)
    MOMENTUM = 3    #: these three as in ``ScalarSgd``
    RATE = 4
    DECAY = 5
    FOLLOWING = 6   #: as in ``numerics/batch_norm.py``
    STAYING = 7     #: 1 - FOLLOWING


class Frac(Enum):
    """The fraction bits of sums, which have those of a product (the first are sums of products with one), and words."""

    SUM = 0
    WORD = 1


@dataclass(frozen=True, slots=True)
class Step:
    """``result = operation(a, b)``; a string names what no later pass over the channel needs.

    OF_SUM makes a scalar of a sum, or of the word that was made last, with ``b`` fraction bits. TO_WORD and TO_NEGATED
    make a word of ``b`` fraction bits.
    """

    result: Slot | Word | str
    operation: ScalarOperation
    a: Slot | Sum | Word | str
    b: Slot | Constant | Frac | str | None = None


def _words(mean: Slot, inverse: Slot | str, factor: Slot | str) -> tuple[Step, ...]:
    """Factor and offset."""
    return (
        Step("gain", MUL, Slot.SCALE, inverse),
        Step(Word.MULTIPLIED, TO_WORD, "gain", Frac.WORD),
        Step(factor, OF_SUM, Word.MULTIPLIED, Frac.WORD),
        Step("moved mean", MUL, mean, factor),
        Step("rest", SUB, Slot.SHIFT, "moved mean"),
        Step(Word.ADDED, TO_WORD, "rest", Frac.WORD),
    )


#: What stands first starts first, if it can.
FORWARD = (
    Step("total", OF_SUM, Sum.FIRST, Frac.SUM),
    Step(Slot.MEAN, MUL, "total", Constant.SHARE),
    Step("squares", OF_SUM, Sum.SECOND, Frac.SUM),
    Step("mean square", MUL, "squares", Constant.SHARE),
    Step("squared mean", MUL, Slot.MEAN, Slot.MEAN),
    Step("variance", EXCESS, "mean square", "squared mean"),
    Step("widened", ADD, "variance", Constant.EPSILON),
    Step(Slot.INVERSE, INVERSE_ROOT, "widened"),
    *_words(Slot.MEAN, Slot.INVERSE, Slot.FACTOR),
    Step("staying mean", MUL, Slot.RUNNING_MEAN, Constant.STAYING),
    Step("followed mean", MUL, Slot.MEAN, Constant.FOLLOWING),
    Step(Slot.RUNNING_MEAN, ADD, "staying mean", "followed mean"),
    Step("staying variance", MUL, Slot.RUNNING_VARIANCE, Constant.STAYING),
    Step("followed variance", MUL, "variance", Constant.UNBIASED),
    Step(Slot.RUNNING_VARIANCE, ADD, "staying variance", "followed variance"),
)


def _sgd(weight: Slot, velocity: Slot, gradient: str) -> tuple[Step, ...]:
    name = weight.name.lower()
    return (
        Step(f"{name} carried", MUL, velocity, Constant.MOMENTUM),
        Step(f"{name} stepped", MUL, gradient, Constant.RATE),
        Step(f"{name} moved", ADD, f"{name} carried", f"{name} stepped"),
        Step(f"{name} decayed", MUL, weight, Constant.DECAY),
        Step(velocity, ADD, f"{name} moved", f"{name} decayed"),
        Step(weight, SUB, weight, velocity),
    )


BACKWARD = (
    Step("shift gradient", OF_SUM, Sum.FIRST, Frac.SUM),
    Step("products", OF_SUM, Sum.SECOND, Frac.SUM),
    Step("by mean", MUL, Slot.MEAN, "shift gradient"),
    Step("centred", SUB, "products", "by mean"),
    Step("scale gradient", MUL, "centred", Slot.INVERSE),
    Step("factor inverse", MUL, Slot.FACTOR, Slot.INVERSE),
    Step("through", MUL, "factor inverse", "scale gradient"),
    Step("shared through", MUL, "through", Constant.SHARE),
    Step(Word.MULTIPLIED, TO_NEGATED, "shared through", Frac.WORD),
    Step("slope", OF_SUM, Word.MULTIPLIED, Frac.WORD),
    Step("factor gradient", MUL, Slot.FACTOR, "shift gradient"),
    Step("shared gradient", MUL, "factor gradient", Constant.SHARE),
    Step("slope mean", MUL, "slope", Slot.MEAN),
    Step("sum", ADD, "shared gradient", "slope mean"),
    Step(Word.ADDED, TO_NEGATED, "sum", Frac.WORD),
    *_sgd(Slot.SCALE, Slot.SCALE_VELOCITY, "scale gradient"),
    *_sgd(Slot.SHIFT, Slot.SHIFT_VELOCITY, "shift gradient"),
)

RUNNING = (
    Step("widened", ADD, Slot.RUNNING_VARIANCE, Constant.EPSILON),
    Step("inverse", INVERSE_ROOT, "widened"),
    *_words(Slot.RUNNING_MEAN, "inverse", "factor"),
)
