"""Batch norm, forward and backward, and how it folds into the layer before it.

Ioffe and Szegedy, "Batch Normalization" (ICML 2015). Maps are (N, C, H, W) or (N, C), everything else is (C,). In
training the statistics are those of the batch, and running ones follow them; in inference they are the running ones.
This is its definition in floating point; on words that of ``fixed_batch_norm.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.errors import DataError

FOLLOWING = 0.1  #: how far a step moves the running statistics to those of its batch, as torch's default momentum


def batch_mean(x: NDArray) -> NDArray:
    """The mean of each channel over images and pixels."""
    mean: NDArray = x.mean(axis=_reduced(x))
    return mean


def batch_variance(x: NDArray, mean: NDArray) -> NDArray:
    """The variance of each channel around its ``mean``: of all values, not an estimate from some of them."""
    return batch_mean((x - spread(mean, x)) ** 2)


def followed(running: NDArray, batch: NDArray) -> NDArray:
    """The next running statistic."""
    return running * (1 - FOLLOWING) + batch * FOLLOWING


def unbiased(count: int) -> float:
    """What makes the variance of ``count`` values an estimate of that of all there could be; of one value, 1."""
    return count / max(1, count - 1)


def factor(scale: NDArray, variance: NDArray, epsilon: float) -> NDArray:
    """What batch norm multiplies each channel by."""
    return scale / np.sqrt(variance + epsilon)


def normalised(x: NDArray, scale: NDArray, shift: NDArray, mean: NDArray, variance: NDArray, *,
               epsilon: float) -> NDArray:
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift``."""
    return (x - spread(mean, x)) * spread(factor(scale, variance, epsilon), x) + spread(shift, x)


def scale_grad(g: NDArray, x: NDArray, mean: NDArray, variance: NDArray, *, epsilon: float) -> NDArray:
    """The gradient of the scale, summed over the batch."""
    normal = (x - spread(mean, x)) / spread(np.sqrt(variance + epsilon), x)
    return (g * normal).sum(axis=_reduced(x))


def input_grad(g: NDArray, x: NDArray, scale: NDArray, mean: NDArray, variance: NDArray, *,
               epsilon: float) -> NDArray:
    """The gradient of ``x`` where ``mean`` and ``variance`` are those of ``x`` itself, which it passes through, too."""
    normal = (x - spread(mean, x)) / spread(np.sqrt(variance + epsilon), x)
    through = spread(batch_mean(g), x) + normal * spread(batch_mean(g * normal), x)
    return (g - through) * spread(factor(scale, variance, epsilon), x)


def frozen_input_grad(g: NDArray, scale: NDArray, variance: NDArray, *, epsilon: float) -> NDArray:
    """The gradient of the input where the statistics do not depend on it."""
    return g * spread(factor(scale, variance, epsilon), g)


def folded(weight: NDArray, bias: NDArray | None, scale: NDArray, shift: NDArray, mean: NDArray, variance: NDArray,
           *, epsilon: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (C, ...) and bias (C,) of a layer that computes what it did, and the batch norm of it, in float64.

    As ``torch.nn.utils.fusion.fuse_conv_bn_eval`` (Jacob et al., CVPR 2018, section 3.2). Variance and epsilon are
    positive together (:func:`check_variance`).
    """
    weight, scale, shift, mean, variance = (np.asarray(array, np.float64)
                                            for array in (weight, scale, shift, mean, variance))
    by = factor(scale, variance, epsilon)
    moved = shift - mean * by if bias is None else (np.asarray(bias, np.float64) - mean) * by + shift
    return weight * by.reshape(-1, *(1,) * (weight.ndim - 1)), moved


def check_variance(place: str, variance: NDArray, epsilon: float) -> None:
    """Raise DataError, which begins with ``place``, unless variance and epsilon are positive together."""
    total = np.asarray(variance, np.float64) + epsilon
    if not (total > 0).all():
        raise DataError(f"{place}: variance and epsilon must be positive together, and their least sum is "
                        f"{np.min(total)}; train again or repair the file")


def _reduced(x: NDArray) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def spread(channels: NDArray, x: NDArray) -> NDArray:
    """One number a channel, as ``x`` takes it."""
    return channels.reshape(-1, *(1,) * (x.ndim - 2))
