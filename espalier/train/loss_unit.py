"""The loss unit of ``numerics/loss.py`` on int64 torch tensors, word for word, without waiting for the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from espalier.numerics.fixed import Fixed
from espalier.numerics.loss import (
    EXP_FRAC,
    EXP_TABLE,
    LN2,
    LN_TABLE,
    LOG2E,
    LOG2E_FRAC,
    LOSS_FRAC,
    RECIPROCAL_FRAC,
    TABLE_BITS,
)


def softmax_cross_entropy(logits: Tensor, labels: Tensor, logit_frac: int) -> Tensor:
    """The loss words (N,) of logit words (N, classes), both int64."""
    total = _exponentials(logits, logit_frac).sum(dim=1)
    octave = torch.frexp(total.double()).exponent.long() - 1
    index = ((total << TABLE_BITS) >> octave) & ((1 << TABLE_BITS) - 1)
    distance = logits.amax(dim=1) - logits.gather(1, labels[:, None])[:, 0]
    log_sum = (octave - EXP_FRAC) * LN2 + _table(LN_TABLE, logits.device)[index]
    return log_sum + (distance << LOSS_FRAC - logit_frac)


def softmax_cross_entropy_grad(logits: Tensor, labels: Tensor, logit_frac: int, out: Fixed) -> Tensor:
    """The gradient words (N, classes) in the format ``out``."""
    e = _exponentials(logits, logit_frac)
    total = e.sum(dim=1, keepdim=True)
    reciprocal = torch.full_like(total, 1 << RECIPROCAL_FRAC).div(total, rounding_mode="floor")
    shift = RECIPROCAL_FRAC - out.frac
    probability = (e * reciprocal + (1 << shift - 1)) >> shift
    return (probability - (_onehot(logits, labels).long() << out.frac)).clamp(out.low, out.high)


def square_hinge(logits: Tensor, labels: Tensor, logit_frac: int) -> Tensor:
    """The loss words (N,) of logit words (N, classes), both int64."""
    square = _hinge_difference(logits, labels, logit_frac) ** 2
    return ((square << LOSS_FRAC) >> 2 * logit_frac + 1).sum(dim=1)


def square_hinge_grad(logits: Tensor, labels: Tensor, logit_frac: int, out: Fixed) -> Tensor:
    """The gradient words (N, classes) in the format ``out``."""
    shift = logit_frac - out.frac
    rounded = (_hinge_difference(logits, labels, logit_frac) + ((1 << shift) >> 1)) >> shift
    return rounded.clamp(out.low, out.high)


def _exponentials(logits: Tensor, logit_frac: int) -> Tensor:
    distance = logits.amax(dim=1, keepdim=True) - logits
    exponent = (distance * LOG2E) >> logit_frac + LOG2E_FRAC - TABLE_BITS
    fraction = exponent & ((1 << TABLE_BITS) - 1)
    return _table(EXP_TABLE, logits.device)[fraction] >> (exponent >> TABLE_BITS).clamp(max=31)


def _onehot(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == labels[:, None]


def _hinge_difference(logits: Tensor, labels: Tensor, logit_frac: int) -> Tensor:
    target = _onehot(logits, labels).long() * 2 - 1
    one = 1 << logit_frac
    return (logits - target * one) * (target * logits < one)


@cache
def _table(words: tuple[int, ...], device: torch.device) -> Tensor:
    """A table on the device; kept, because making it waits for the device."""
    return torch.tensor(words, dtype=torch.int64, device=device)
