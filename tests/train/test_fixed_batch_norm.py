"""Batch norm on words in torch equals the interpreter, bit for bit: random formats, shapes and statistics."""

from __future__ import annotations

import numpy as np
import pytest
from bench.draws import Draw, draws, scalars

from espalier.errors import FormatError
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.interpret import fixed
from espalier.ir.types import FLOAT, Fixed, TensorType, Value
from espalier.ir.verify import verify
from espalier.numerics.scalar import LARGEST, TINIEST
from espalier.train.exact import check_exact


def norm_of(draw: Draw) -> dict[str, Value]:
    """The values of a batch norm: of a map or a vector, words and scalars."""
    channels = draw.integer(1, 4)
    shape = (channels, draw.integer(1, 3), draw.integer(1, 4)) if draw.integer(0, 1) else (channels,)
    width = draw.integer(2, 16)
    x = draw.value("x", *shape, format_=Fixed.of(width, draw.integer(0, width - 2)))
    scalars = {name: draw.value(name, channels, format_=FLOAT) for name in (
        "scale", "shift", "mean", "variance", "running", "out")}
    return {"x": x, "g": draw.value("g", *shape), **scalars}


def words_of(draw: Draw, name: str, like: Value, *most: int) -> Value:
    """A result no finer than the products that it is the sum of."""
    return draw.value(name, *like.shape, format_=Fixed.of(draw.integer(2, 16), draw.integer(min(most) - 20, min(most))))


def checked(draw: Draw, op: ops.Op) -> None:
    verify(Graph("one", tuple(dict.fromkeys(op.inputs)), (), (op,), (op.out,)))
    draw.check(op)


@draws
def test_forward(draw: Draw) -> None:
    v, factor = norm_of(draw), draw.format(-8, 18)
    y = words_of(draw, "y", v["x"], fixed(v["x"].format).frac + factor.frac)
    checked(draw, ops.BatchNorm(y, v["x"], v["scale"], v["shift"], v["mean"], v["variance"], 1e-5, factor))


@draws
def test_statistics(draw: Draw) -> None:
    v = norm_of(draw)
    checked(draw, ops.BatchMean(v["out"], v["x"]))
    checked(draw, ops.BatchVariance(v["out"], v["x"], v["mean"]))
    checked(draw, ops.RunningMean(v["out"], v["running"], v["mean"], v["x"]))
    checked(draw, ops.RunningVariance(v["out"], v["running"], v["variance"], v["x"]))


@draws
def test_backward(draw: Draw) -> None:
    v, factor, slope = norm_of(draw), draw.format(-8, 18), draw.format(-8, 18)
    x_frac, g_frac = fixed(v["x"].format).frac, fixed(v["g"].format).frac
    checked(draw, ops.BiasGrad(v["out"], v["g"]))
    checked(draw, ops.BatchNormScaleGrad(v["out"], v["g"], v["x"], v["mean"], v["variance"], 1e-5))
    out = words_of(draw, "y", v["x"], x_frac + slope.frac, g_frac + factor.frac)
    checked(draw, ops.BatchNormInputGrad(out, v["g"], v["x"], v["scale"], v["mean"], v["variance"], 1e-3, factor,
                                         slope))
    out = words_of(draw, "y", v["x"], g_frac + factor.frac)
    checked(draw, ops.FrozenBatchNormInputGrad(out, v["g"], v["scale"], v["variance"], TINIEST, factor))


def test_draws_have_the_ends_of_the_range() -> None:
    """What the cases above rest on: of many scalars some are zero, huge and tiny, and a variance is none below zero."""
    random = np.random.RandomState(0)
    scale = np.abs(np.concatenate([scalars(random, "scale", (4,)) for _ in range(100)]))
    assert (scale == 0).any() and (scale == np.float32(LARGEST)).any() and (scale == np.float32(TINIEST)).any()
    assert scalars(random, "variance", (400,)).min() == 0


X, C = (Value(name, TensorType(shape, format_)) for name, shape, format_ in (
    ("x", (1, 512, 512), Fixed.of(16, 8)), ("c", (1,), FLOAT)))


@pytest.mark.parametrize("op", [
    ops.BatchVariance(C, X, C), ops.BatchNormScaleGrad(C, X, X, C, C, 1e-5),
    ops.BatchNormInputGrad(X, X, X, C, C, C, 1e-5, Fixed.of(8, 4), Fixed.of(8, 4))])
def test_sums_too_large_wrong(op: ops.Op) -> None:
    """2**18 pixels of 33 images: S(x*x) is up to 33 * 2**48."""
    check_exact(op, 31)
    with pytest.raises(FormatError, match=r"sums of up to 53 bits, and .* of 33 images needs 54: take smaller "):
        check_exact(op, 33)
