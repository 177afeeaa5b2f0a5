"""The loss unit's integers near torch's real losses, and equal to hand-worked words."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from espalier.numerics.loss import EXP_TABLE, LN2, LN_TABLE, LOG2E, LOSS_FRAC, SoftmaxCrossEntropy, SquareHinge

PROBABILITY_TOLERANCE = 2.0 ** -9  #: stated by SoftmaxCrossEntropy for up to 50 classes
LOSS_TOLERANCE = 2.0 ** -8         #: stated there too


@st.composite
def batches(draw) -> tuple[int, np.ndarray, np.ndarray]:
    """Fraction bits, 16-bit logits (N, classes) of any spread, and labels."""
    classes, frac, spread = draw(st.integers(2, 50)), draw(st.integers(0, 16)), draw(st.integers(0, 15))
    random = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    logits = random.integers(-2 ** spread, 2 ** spread, (4, classes))
    return frac, logits, random.integers(0, classes, 4)


def torch_loss(logits: np.ndarray, frac: int, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Real softmax cross-entropy per image, and its gradient, by autograd in float64."""
    z = torch.tensor(np.ldexp(logits.astype(np.float64), -frac), requires_grad=True)
    losses = functional.cross_entropy(z, torch.tensor(labels), reduction="none")
    losses.sum().backward()
    return losses.detach().numpy(), z.grad.numpy()


@settings(deadline=None, derandomize=True, max_examples=300)
@given(batches(), st.integers(2, 15))
def test_softmax_cross_entropy_is_near_the_real_one(batch, grad_frac):
    frac, logits, labels = batch
    losses, gradients = torch_loss(logits, frac, labels)
    unit = SoftmaxCrossEntropy(logit_frac=frac, grad_width=grad_frac + 1, grad_frac=grad_frac)
    rounding = 2.0 ** -(grad_frac + 1)
    top = 1 - 2.0 ** -grad_frac  # the largest gradient the format holds
    error = np.abs(np.ldexp(unit.grad(logits, labels).astype(float), -grad_frac) - np.minimum(gradients, top))
    assert error.max() <= PROBABILITY_TOLERANCE + rounding
    assert np.abs(np.ldexp(unit.loss(logits, labels).astype(float), -LOSS_FRAC) - losses).max() <= LOSS_TOLERANCE


@pytest.mark.parametrize("classes", [2, 10, 50])
def test_softmax_worst_case_is_within_the_tolerance(classes):
    """All but one exponential just below the table's last place, where truncation loses most."""
    for distance in range(9 << 8, 12 << 8):
        logits = np.full((1, classes), -distance)
        logits[0, 0] = 0
        _, gradients = torch_loss(logits, 8, np.zeros(1, dtype=np.int64))
        words = SoftmaxCrossEntropy(logit_frac=8, grad_width=16, grad_frac=15).grad(logits, np.zeros(1, dtype=np.int64))
        assert np.abs(np.ldexp(words.astype(float), -15) - gradients).max() <= PROBABILITY_TOLERANCE + 2.0 ** -16


def test_tables_and_constants_by_hand():
    assert (LOG2E, LN2) == (23637, 45426)
    assert (EXP_TABLE[0], EXP_TABLE[512], EXP_TABLE[1023]) == (32768, 23170, 16395)
    assert (LN_TABLE[0], LN_TABLE[512], LN_TABLE[1023]) == (0, 26573, 45394)


def test_softmax_of_equal_logits_by_hand():
    """Four equal logits: probabilities of exactly a quarter, a loss of 2·ln 2."""
    unit = SoftmaxCrossEntropy(logit_frac=8, grad_width=8, grad_frac=7)
    logits, labels = np.array([[5, 5, 5, 5]]), np.array([2])
    assert unit.exponentials(logits).tolist() == [[32768] * 4]
    assert unit.grad(logits, labels).tolist() == [[32, 32, -96, 32]]
    assert unit.loss(logits, labels).tolist() == [2 * 45426]


def test_softmax_probability_rounds_half_up_by_hand():
    """A quarter with one fraction bit is half a unit: one; for the right class 1 - 2."""
    unit = SoftmaxCrossEntropy(logit_frac=8, grad_width=8, grad_frac=1)
    assert unit.grad(np.array([[5, 5, 5, 5]]), np.array([0])).tolist() == [[-1, 1, 1, 1]]


def test_softmax_of_two_logits_by_hand():
    """Distance 1.0: the exponent is 256·23637 >> 12 = 1477 = 1·1024 + 453, so e = table[453] >> 1 = 12057."""
    unit = SoftmaxCrossEntropy(logit_frac=8, grad_width=16, grad_frac=14)
    logits, labels = np.array([[256, 0]]), np.array([1])
    assert unit.exponentials(logits).tolist() == [[32768, 12057]]
    # reciprocal = 2^40 // 44825 = 24528981; 32768 · it = 0.73102…, 12057 · it = 0.26897…, 14 fraction bits
    assert unit.grad(logits, labels).tolist() == [[11977, 4407 - 16384]]
    # 44825 = 2^15 · 1.36795: octave 15, table entry 376 = round(2^16 · ln(1 + 376/1024)) = 20497, distance 65536
    assert unit.loss(logits, labels).tolist() == [20497 + 65536]


def test_softmax_gradient_saturates():
    """A gradient of one does not fit in frac = width - 1; a gradient of minus one does."""
    unit = SoftmaxCrossEntropy(logit_frac=0, grad_width=8, grad_frac=7)
    assert unit.grad(np.array([[100, -100]]), np.array([1])).tolist() == [[127, -128]]
    assert unit.grad(np.array([[100, -100]]), np.array([0])).tolist() == [[0, 0]]
    assert unit.loss(np.array([[100, -100]]), np.array([1])).tolist() == [200 << 16]


def test_square_hinge_by_hand():
    """Logits 0.5, 1.5, -0.25, -2 with class 0 right: margins 0.5, 2.5 wrong side, 0.75, none."""
    unit = SquareHinge(logit_frac=4, grad_width=8, grad_frac=2)
    logits, labels = np.array([[8, 24, -4, -32]]), np.array([0])
    assert unit.grad(logits, labels).tolist() == [[-2, 10, 3, 0]]
    assert unit.loss(logits, labels).tolist() == [round((0.25 + 6.25 + 0.5625) / 2 * 2 ** 16)]


def test_square_hinge_rounds_half_up_and_saturates_by_hand():
    unit = SquareHinge(logit_frac=3, grad_width=4, grad_frac=1)
    # z - t in eighths: label 3-8 = -5, others 6+8 = 14 and -7+8 = 1, 100+8 = 108; two fraction bits go
    assert unit.grad(np.array([[3, 6, -7, 100]]), np.array([0])).tolist() == [[-1, 4, 0, 7]]
    assert unit.grad(np.array([[2, -8, -10, -6]]), np.array([0])).tolist() == [[-1, 0, 0, 1]]


@settings(deadline=None, derandomize=True)
@given(batches(), st.data())
def test_square_hinge_is_exact(batch, data):
    frac, logits, labels = batch
    grad_frac, width = data.draw(st.integers(0, frac)), data.draw(st.integers(2, 16))
    unit = SquareHinge(logit_frac=frac, grad_width=width, grad_frac=grad_frac)
    for row, label, grads, loss in zip(logits.tolist(), labels.tolist(), unit.grad(logits, labels).tolist(),
                                       unit.loss(logits, labels).tolist(), strict=True):
        total = 0
        for index, (word, grad) in enumerate(zip(row, grads, strict=True)):
            z, t = Fraction(word, 2 ** frac), 1 if index == label else -1
            slope = z - t if t * z < 1 else Fraction(0)
            nearest = (slope * 2 ** grad_frac + Fraction(1, 2)).__floor__()
            assert grad == min(max(nearest, -2 ** (width - 1)), 2 ** (width - 1) - 1)
            total += (slope ** 2 / 2 * 2 ** LOSS_FRAC).__floor__()
        assert loss == total


@settings(deadline=None, derandomize=True)
@given(batches())
def test_square_hinge_equals_autograd(batch):
    frac, logits, labels = batch
    z = torch.tensor(np.ldexp(logits.astype(np.float64), -frac), requires_grad=True)
    target = torch.tensor(np.where(np.arange(logits.shape[1]) == labels[:, None], 1.0, -1.0))
    (torch.clamp(1 - target * z, min=0) ** 2 / 2).sum().backward()
    words = SquareHinge(logit_frac=frac, grad_width=32, grad_frac=frac).grad(logits, labels)
    assert np.array_equal(np.ldexp(words.astype(np.float64), -frac), z.grad.numpy())
