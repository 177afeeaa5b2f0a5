"""Which number formats an operation can compute with exactly, and round once."""

from __future__ import annotations

from typing import assert_never

from espalier.errors import GraphError
from espalier.ir.differentiate import LOSS_FORMAT
from espalier.ir.ops import (
    Add,
    AveragePool,
    AveragePoolGrad,
    BatchMean,
    BatchNorm,
    BatchNormInputGrad,
    BatchNormOp,
    BatchNormScaleGrad,
    BatchVariance,
    BiasGrad,
    ClippedRelu,
    ClippedReluGrad,
    Concat,
    ConcatGrad,
    Conv2d,
    Conv2dInputGrad,
    Conv2dWeightGrad,
    FrozenBatchNormInputGrad,
    GlobalAveragePool,
    GlobalAveragePoolGrad,
    Linear,
    LinearInputGrad,
    LinearWeightGrad,
    MaxPool,
    MaxPoolGrad,
    Op,
    Relu,
    ReluGrad,
    Reshape,
    RunningMean,
    RunningVariance,
    SoftmaxCrossEntropy,
    SoftmaxCrossEntropyGrad,
    SquareHinge,
    SquareHingeGrad,
)
from espalier.ir.types import FLOAT, INDEX, Float, Index, Value
from espalier.ir.verify_batch_norm import scalars_of
from espalier.numerics.activation import AVERAGE_FRAC
from espalier.numerics.fixed import Fixed, Overflow, Quant
from espalier.numerics.loss import LOSS_FRAC, RECIPROCAL_FRAC
from espalier.numerics.update import GRADIENT_BITS

WORD_BITS = range(2, 17)                   #: widths of activations, their gradients, weights and biases
WIDE_BITS = range(2, GRADIENT_BITS + 1)    #: widths of the gradients of weights and biases
EXACT_BITS = 62                            #: widest number that an int64 interpreter may make by a left shift

LossOrGrad = SoftmaxCrossEntropy | SoftmaxCrossEntropyGrad | SquareHinge | SquareHingeGrad


def verify_format(value: Value, *, is_parameter: bool = False) -> None:
    """Raise GraphError unless ``value`` has a format that an input or a parameter may have.

    Inputs are float, index or signed words of 2..16 bits; parameters are float or such words.
    """
    match value.format:
        case Float():
            return
        case Index():
            if is_parameter:
                raise GraphError(f"A parameter is a quantity, not an index: {value}")
        case Fixed() as format_:
            _word(f"{'Parameter' if is_parameter else 'Input'} {value}", format_, WORD_BITS)
        case _:
            assert_never(value.format)


def verify_formats(op: Op, wide: set[str]) -> None:
    """Raise GraphError unless the formats of the operation's values are those it can compute with.

    ``wide`` holds the names of the values that may have 32 bits (gradients of weights, and their
    sums); the result of ``op`` is added to it if it is one.
    """
    quantities: tuple[Value, ...] = (*op.inputs, op.out)
    scalars: tuple[Value, ...] = ()
    match op:
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            _labels(op)
            quantities = (op.logits, op.out)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            scalars = scalars_of(op)
        case BiasGrad(out=Value(format=Float())):  # of the shift of a batch norm
            scalars = (op.out,)
        case _:
            pass
    for value in quantities:
        if value.format == INDEX:
            raise _fail(op, f"an index is no quantity to compute with, and {value} is one")
    for value in scalars:
        if value.format != FLOAT:
            raise _fail(op, f"of what a batch norm has one of for each channel all is float, and {value} is not")
    quantities = tuple(value for value in quantities if value not in scalars)
    floats = [value for value in quantities if value.format == FLOAT]
    if len(floats) not in (0, len(quantities)):
        fixed = next(value for value in quantities if value.format != FLOAT)
        raise _fail(op, f"float and fixed-point values do not mix, and {floats[0]} meets {fixed}")
    if not floats:
        _fixed_formats(op, wide)
    elif any(format_ is not None for format_ in _factors(op).values()):
        raise _fail(op, "a batch norm of float values multiplies them by no words, and this one has a format of such")


def _fail(op: Op, rule: str) -> GraphError:
    return GraphError(f"{type(op).__name__} {op.out}: {rule}")


def _fixed(value: Value) -> Fixed:
    assert isinstance(value.format, Fixed)
    return value.format


def _word(place: str, format_: Fixed, widths: range) -> None:
    """The format is signed and of a width that the engine has."""
    if not format_.signed:
        raise GraphError(f"{place}: words of the engine are signed; use fixed instead of ufixed")
    if format_.width not in widths:
        raise GraphError(f"{place}: the width must be in {widths.start}..{widths.stop - 1}, not {format_.width}")


def _result(op: Op, widths: range) -> None:
    """The result is a word of the engine and is rounded half up and saturated, as the engine does."""
    _word(f"{type(op).__name__} {op.out}", _fixed(op.out), widths)
    _modes(op, "result", _fixed(op.out))


def _modes(op: Op, role: str, format_: Fixed) -> None:
    if (format_.quant, format_.overflow) != (Quant.AP_RND, Overflow.AP_SAT):
        raise _fail(op, f"the engine rounds with AP_RND and saturates with AP_SAT, and the {role}'s format "
                        f"asks for something else")


def _fixed_formats(op: Op, wide: set[str]) -> None:
    """The rules of each operation on words."""
    match op:
        case Conv2d(x=x, w=w, b=b) | Linear(x=x, w=w, b=b):
            _result(op, WORD_BITS)
            _product(op, x, w)
            if b is not None:
                _bias(op, b, _fixed(x).frac + _fixed(w).frac)
        case Conv2dInputGrad(g=g, w=w) | LinearInputGrad(g=g, w=w):
            _result(op, WORD_BITS)
            _product(op, g, w)
        case Conv2dWeightGrad(x=x, g=g) | LinearWeightGrad(x=x, g=g):
            _result(op, WIDE_BITS)
            _product(op, x, g)
            wide.add(op.out.name)
        case BiasGrad(g=g, out=Value(format=Float())):
            _scalar_sum(op, g)
        case BiasGrad(g=g):
            _result(op, WIDE_BITS)
            _shift(op, g, _fixed(g).frac, _fixed(op.out).frac)  # as fine as a weight's: the constant one has the rest
            wide.add(op.out.name)
        case AveragePool(x=x) | GlobalAveragePool(x=x) | AveragePoolGrad(g=x) | GlobalAveragePoolGrad(g=x):
            _result(op, WORD_BITS)
            _shift(op, x, _fixed(x).frac + AVERAGE_FRAC, _fixed(op.out).frac)
        case ClippedRelu(x=x, bound=bound):
            _result(op, WORD_BITS)
            _shift(op, x, _fixed(x).frac, _fixed(op.out).frac)
            _bound(op, bound, x, op.out)
        case ClippedReluGrad(g=g, y=y, bound=bound):
            _result(op, WORD_BITS)
            _shift(op, g, _fixed(g).frac, _fixed(op.out).frac)
            _bound(op, bound, y)
        case Concat(a=a, b=b):
            _result(op, WORD_BITS)
            for part in (a, b):
                _shift(op, part, _fixed(part).frac, _fixed(op.out).frac)
        case Relu(x=x) | MaxPool(x=x) | ReluGrad(g=x) | MaxPoolGrad(g=x) | ConcatGrad(g=x):
            _result(op, WORD_BITS)
            _shift(op, x, _fixed(x).frac, _fixed(op.out).frac)
        case (BatchNorm() | BatchMean() | BatchVariance() | RunningMean() | RunningVariance() | BatchNormInputGrad()
              | FrozenBatchNormInputGrad() | BatchNormScaleGrad()):
            _batch_norm(op)
        case Add(a=a, b=b):
            _sum(op, a, b, wide)
        case Reshape(x=x):
            _result(op, WIDE_BITS if x.name in wide else WORD_BITS)
            _shift(op, x, _fixed(x).frac, _fixed(op.out).frac)
            wide.update({op.out.name} if x.name in wide else ())
        case SoftmaxCrossEntropy() | SquareHinge() | SoftmaxCrossEntropyGrad() | SquareHingeGrad():
            _loss(op)
        case _:
            assert_never(op)


def _factors(op: Op) -> dict[str, Fixed | None]:
    """The formats of the words that a batch norm multiplies by, and what they are called."""
    match op:
        case BatchNorm(factor=factor) | FrozenBatchNormInputGrad(factor=factor):
            return {"factor": factor}
        case BatchNormInputGrad(factor=factor, slope=slope):
            return {"factor": factor, "slope": slope}
        case _:
            return {}


def _batch_norm(op: BatchNormOp) -> None:
    """Words times words of the engine, or sums of words and of their products, which become scalars."""
    for value in (*op.inputs, op.out):
        if isinstance(value.format, Fixed):
            _scalar_sum(op, value)
    for role, format_ in _factors(op).items():
        if format_ is None:
            raise _fail(op, f"a batch norm of words has a format of its {role}, and this one has none; choose formats "
                            f"anew (calibrate), or fold it into the layer before it first (fold_batch_norm)")
        _word(f"{type(op).__name__} {op.out}, {role}", format_, WORD_BITS)
        _modes(op, role, format_)
        _fraction(op, f"its {role}", format_)
    match op:
        case BatchNorm(x=x, factor=Fixed() as factor):
            _result(op, WORD_BITS)
            _constant_one(op, x)
            _scaled(op, x, "factor", factor)
        case BatchNormInputGrad(g=g, x=x, factor=Fixed() as factor, slope=Fixed() as slope):
            _result(op, WORD_BITS)
            _constant_one(op, x)
            _scaled(op, g, "factor", factor)
            _scaled(op, x, "slope", slope)
        case FrozenBatchNormInputGrad(g=g, factor=Fixed() as factor):
            _result(op, WORD_BITS)
            _scaled(op, g, "factor", factor)
        case _:
            pass


def _scalar_sum(op: Op, x: Value) -> None:
    """Sums of ``x`` can be scalars."""
    _word(f"{type(op).__name__} {op.out}, {x}", _fixed(x), WORD_BITS)
    _fraction(op, str(x), _fixed(x))


def _fraction(op: Op, what: str, format_: Fixed) -> None:
    if abs(format_.frac) > EXACT_BITS:
        raise _fail(op, f"{what} must have -{EXACT_BITS}..{EXACT_BITS} fraction bits, not {format_.frac}")


def _constant_one(op: Op, x: Value) -> None:
    """What is added to ``x`` times a word is the weight of a constant one, a word of ``x``."""
    if not 0 <= _fixed(x).frac <= _fixed(x).width - 2:
        raise _fail(op, f"one must be a word of {x}, with 0..{_fixed(x).width - 2} fraction bits, not {_fixed(x).frac}")


def _scaled(op: Op, x: Value, role: str, format_: Fixed) -> None:
    _no_finer(op, _fixed(x).frac + format_.frac, f"product of {x} and its {role}")


def _product(op: Op, a: Value, b: Value) -> None:
    """A sum of products has the fraction bits of both factors, and the result no more."""
    _no_finer(op, _fixed(a).frac + _fixed(b).frac, f"product of {a} and {b}")


def _no_finer(op: Op, acc_frac: int, source: str) -> None:
    frac = _fixed(op.out).frac
    if frac > acc_frac:
        raise _fail(op, f"the result may have at most the {acc_frac} fraction bits of the {source}, and has {frac}")
    if acc_frac - frac > EXACT_BITS:
        raise _fail(op, f"the result drops {acc_frac - frac} fraction bits of the {source}, and at most {EXACT_BITS} "
                        f"may go")


def _bias(op: Conv2d | Linear, b: Value, acc_frac: int) -> None:
    """The bias is aligned to the accumulator by a left shift."""
    _word(f"{type(op).__name__} {op.out}, bias {b}", _fixed(b), WORD_BITS)
    if _fixed(b).frac > acc_frac:
        raise _fail(op, f"bias {b} may have at most the {acc_frac} fraction bits of the accumulator, "
                        f"and has {_fixed(b).frac}")
    _shift(op, b, _fixed(b).frac, acc_frac)


def _shift(op: Op, x: Value, from_frac: int, to_frac: int) -> None:
    """``x``, at ``from_frac`` fraction bits, can be brought to ``to_frac`` without loss of its upper bits."""
    width = _fixed(x).width + max(0, to_frac - from_frac)
    if width > EXACT_BITS or from_frac - to_frac > EXACT_BITS:
        raise _fail(op, f"{x} cannot be brought from {from_frac} to {to_frac} fraction bits in {EXACT_BITS} bits")


def _bound(op: Op, bound: int, *values: Value) -> None:
    """The bound is a whole number of units of each value, and of at most :data:`EXACT_BITS` bits in them."""
    for value in values:
        frac = _fixed(value).frac
        if frac < 0 and bound % (1 << -frac):
            raise _fail(op, f"the bound {bound} must be a whole number of units of {value}, which are {1 << -frac}")
        if bound.bit_length() + frac > EXACT_BITS:
            raise _fail(op, f"the bound {bound} must have at most {EXACT_BITS} bits in units of {value}")


def _sum(op: Add, a: Value, b: Value, wide: set[str]) -> None:
    is_wide = a.name in wide and b.name in wide
    _result(op, WIDE_BITS if is_wide else WORD_BITS)
    frac = max(_fixed(a).frac, _fixed(b).frac)
    for value in (a, b):
        _shift(op, value, _fixed(value).frac, frac)
        _shift(op, value, frac, _fixed(op.out).frac)
    if is_wide:
        wide.add(op.out.name)


def _labels(op: LossOrGrad) -> None:
    if op.labels.format != INDEX:
        raise _fail(op, f"labels are an index, and {op.labels} is not")


def _loss(op: LossOrGrad) -> None:
    """Logits have 0..16 fraction bits; the loss has the format of the loss unit."""
    logit_frac = _fixed(op.logits).frac
    if not 0 <= logit_frac <= LOSS_FRAC:
        raise _fail(op, f"logits must have 0..{LOSS_FRAC} fraction bits, and {op.logits} has {logit_frac}")
    frac = _fixed(op.out).frac
    match op:
        case SoftmaxCrossEntropy() | SquareHinge():
            if op.out.format != LOSS_FORMAT:
                raise _fail(op, f"the format of a loss is {LOSS_FORMAT}")
        case SoftmaxCrossEntropyGrad():
            _result(op, WORD_BITS)
            if not 0 <= frac < RECIPROCAL_FRAC:
                raise _fail(op, f"the gradient must have 0..{RECIPROCAL_FRAC - 1} fraction bits, not {frac}")
        case SquareHingeGrad():
            _result(op, WORD_BITS)
            if frac > logit_frac:
                raise _fail(op, f"the gradient may have at most the {logit_frac} fraction bits of the logits, "
                                f"and has {frac}")
            if logit_frac - frac > EXACT_BITS:
                raise _fail(op, f"the gradient drops {logit_frac - frac} fraction bits of the logits, and at most "
                                f"{EXACT_BITS} may go")
        case _:
            assert_never(op)
