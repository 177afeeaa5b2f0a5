"""What calibration images tell about a layer: the second moments of its input columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.numerics.window import Window


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over the input columns ``x`` of a layer, of length K, and over those it had in the original network.

    Add the moments of several batches of images to get those of all.

    Parameters
    ----------
    count : int
        The number of columns: images times output pixels.
    total, total_original : ndarray
        The sums of ``x`` and of the original ``x0`` (K,).
    gram : ndarray
        The sum of ``x xᵀ`` (K, K).
    cross : ndarray
        The sum of ``x0 xᵀ`` (K, K): the gram where earlier layers are unchanged.
    """

    count: int
    total: NDArray[np.float64]
    total_original: NDArray[np.float64]
    gram: NDArray[np.float64]
    cross: NDArray[np.float64]

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.total_original + other.total_original,
                       self.gram + other.gram, self.cross + other.cross)

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The sums (K, K) of ``x xᵀ`` and ``x0 xᵀ`` after each has lost its mean: what a bias cannot express."""
        mean = self.total / self.count
        return self.gram - np.outer(self.total, mean), self.cross - np.outer(self.total_original, mean)


def columns(images: NDArray, window: Window) -> NDArray:
    """What a convolution reads for each output pixel: ``images`` (N, I, H, W) → (N · OH · OW, I · KH · KW).

    The order within a column is that of a weight (O, I, KH, KW). A fully connected layer reads its input as it is:
    give (N, I, 1, 1) and a 1×1 window. A convolution in groups has columns for each group: give its channels only.
    """
    out_y, out_x = window.out_size(*images.shape[2:])
    padded = window.padded(images)
    taps = [window.tap(padded, ky, kx, out_y, out_x)
            for ky in range(window.kernel[0]) for kx in range(window.kernel[1])]
    return np.stack(taps, axis=2).transpose(0, 3, 4, 1, 2).reshape(len(images) * out_y * out_x, -1)


def moments(x: NDArray, original: NDArray | None = None) -> Moments:
    """The moments of input columns ``x`` (N, K).

    Parameters
    ----------
    original : ndarray
        The same columns (N, K) in the network before any layer was pruned; by default ``x``. With them a layer makes
        up for what earlier layers lost.

    Raises UnsupportedError where the shapes differ.
    """
    if original is not None and original.shape != x.shape:
        raise UnsupportedError(f"The columns of the pruned and of the original network belong to the same pixels, and "
                               f"their shapes are {x.shape} and {original.shape}")
    real = x.astype(np.float64)
    before = real if original is None else original.astype(np.float64)
    gram = real.T @ real
    return Moments(len(real), real.sum(axis=0), before.sum(axis=0), gram,
                   gram if original is None else before.T @ real)
