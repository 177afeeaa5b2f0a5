"""Loss functions in exact integers, as the loss unit computes them.

Losses are words with :data:`LOSS_FRAC` fraction bits, one per image. Gradients are per image too:
the division by the batch size belongs to the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOSS_FRAC = 16       #: fraction bits of a loss word
TABLE_BITS = 10      #: address bits of the exponential and logarithm tables
EXP_FRAC = 15        #: fraction bits of a table exponential: ``exp(0)`` is ``1 << EXP_FRAC``
LOG2E_FRAC = 14      #: fraction bits of the constant log2(e)
RECIPROCAL_FRAC = 40  #: ``reciprocal = 2**RECIPROCAL_FRAC // sum``

LOG2E = round(math.log2(math.e) * (1 << LOG2E_FRAC))
LN2 = round(math.log(2) * (1 << LOSS_FRAC))
EXP_TABLE = tuple(round(2.0 ** (-k / (1 << TABLE_BITS)) * (1 << EXP_FRAC)) for k in range(1 << TABLE_BITS))
LN_TABLE = tuple(round(math.log1p(k / (1 << TABLE_BITS)) * (1 << LOSS_FRAC)) for k in range(1 << TABLE_BITS))


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy on fixed-point logits.

    With ``d = max - z``: ``e = 2**-(d*log2(e))`` by a table of ``2**TABLE_BITS`` entries and a
    shift, ``p = e * (2**RECIPROCAL_FRAC // sum(e))``; the gradient is ``p - onehot`` rounded half
    up to ``grad_frac``; the loss is ``ln(sum(e)) + d[label]`` with the logarithm by table.
    Up to 50 classes the probabilities are within ``2**-9`` of the real ones, the loss within ``2**-8``.

    Parameters
    ----------
    logit_frac : int
        Fraction bits of the logits, 0..LOSS_FRAC.
    grad_width, grad_frac : int
        Format of the gradient; ``1 << grad_frac`` stands for probability one.
    """

    logit_frac: int
    grad_width: int
    grad_frac: int

    def exponentials(self, logits: NDArray[np.int64]) -> NDArray[np.int64]:
        """``exp(z - max)`` with EXP_FRAC fraction bits, for logits (N, classes)."""
        distance = logits.max(axis=1, keepdims=True) - logits
        shift = self.logit_frac + LOG2E_FRAC - TABLE_BITS
        exponent = (distance * LOG2E) >> shift
        fraction = exponent & ((1 << TABLE_BITS) - 1)
        return np.array(EXP_TABLE, dtype=np.int64)[fraction] >> np.minimum(exponent >> TABLE_BITS, 31)

    def grad(self, logits: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The gradient (N, classes) with respect to the logits."""
        e = self.exponentials(logits)
        reciprocal = (1 << RECIPROCAL_FRAC) // e.sum(axis=1, keepdims=True)
        shift = RECIPROCAL_FRAC - self.grad_frac
        probability = (e * reciprocal + (1 << shift - 1)) >> shift
        onehot = np.arange(logits.shape[1]) == labels[:, None]
        top = (1 << self.grad_width - 1) - 1
        return np.clip(probability - (onehot.astype(np.int64) << self.grad_frac), -top - 1, top)

    def loss(self, logits: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The loss (N,) with LOSS_FRAC fraction bits."""
        total = self.exponentials(logits).sum(axis=1)
        octave = np.frexp(total.astype(np.float64))[1].astype(np.int64) - 1
        index = ((total << TABLE_BITS) >> octave) & ((1 << TABLE_BITS) - 1)
        distance = logits.max(axis=1) - logits[np.arange(len(logits)), labels]
        log_sum = (octave - EXP_FRAC) * LN2 + np.array(LN_TABLE, dtype=np.int64)[index]
        return log_sum + (distance << (LOSS_FRAC - self.logit_frac))


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareHinge:
    """Square hinge loss with ±1 targets, ``sum over classes of max(0, 1 - t*z)**2 / 2``.

    As in the golden model of arXiv 1908.06724: the gradient is ``z - t`` where ``t*z < 1``.

    Parameters
    ----------
    logit_frac : int
        Fraction bits of the logits, at least ``grad_frac``... any value 0..LOSS_FRAC.
    grad_width, grad_frac : int
        Format of the gradient; ``grad_frac <= logit_frac``, rounded half up and saturated.
    """

    logit_frac: int
    grad_width: int
    grad_frac: int

    def _difference(self, logits: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """``z - t`` where ``t*z < 1``, else zero; ``logit_frac`` fraction bits."""
        target = np.where(np.arange(logits.shape[1]) == labels[:, None], 1, -1).astype(np.int64)
        one = 1 << self.logit_frac
        return np.where(target * logits < one, logits - target * one, 0)

    def grad(self, logits: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The gradient (N, classes) with respect to the logits."""
        shift = self.logit_frac - self.grad_frac
        rounded = (self._difference(logits, labels) + ((1 << shift) >> 1)) >> shift
        top = (1 << self.grad_width - 1) - 1
        return np.clip(rounded, -top - 1, top)

    def loss(self, logits: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The loss (N,) with LOSS_FRAC fraction bits, each class's term truncated."""
        square = self._difference(logits, labels) ** 2
        return ((square << LOSS_FRAC) >> (2 * self.logit_frac + 1)).sum(axis=1)
