"""Which images count as recognised."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.train.step import ranks


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 2 ** 32 - 1), st.integers(2, 9))
def test_rank_is_the_place_in_a_stable_order(seed: int, classes: int) -> None:
    """Few different logits, so that many are equal: the first of them comes first."""
    random = np.random.default_rng(seed)
    logits, labels = random.integers(0, 4, (5, classes)), random.integers(0, classes, 5)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [row.tolist().index(label) for row, label in zip(order, labels, strict=True)]
    assert ranks(torch.from_numpy(logits), torch.from_numpy(labels)).tolist() == expected


def test_rank_zero_is_the_first_largest_logit() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]])
    assert ranks(logits, torch.tensor([1, 0])).tolist() == [0, 0]
    assert ranks(logits, torch.tensor([2, 2])).tolist() == [1, 2]
