"""The usual augmentation of CIFAR images: a random crop of the padded image, and a random mirror image."""

from __future__ import annotations

import numpy as np

from espalier.data.dataset import Images
from espalier.data.draw import draws
from espalier.data.normalise import MIDDLE_GREY


def augment(images: Images, seed: int, epoch: int, batch: int, pad: int = 4) -> Images:
    """A new array: each image moved by up to ``pad`` pixels both ways and mirrored left-right with probability 1/2.

    Pixels from outside are zero in the sense of ``normalise``: 128 in uint8, 0.0 in float32. So augmenting
    and normalising commute. The draw depends on (seed, epoch, batch) alone, where ``batch`` is the number
    of the batch in its epoch, and on the place of the image in the batch.

    Parameters
    ----------
    images : ndarray of uint8 or float32, (N, C, H, W)
    """
    count, _, height, width = images.shape
    random = draws(seed, epoch, batch)
    down, right = random.randint(0, 2 * pad + 1, size=(2, count))
    mirrored = np.asarray(random.randint(0, 2, size=count), bool)
    outside = MIDDLE_GREY if images.dtype == np.uint8 else 0
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=outside)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    crops = windows[np.arange(count), :, down, right]
    return np.where(mirrored[:, np.newaxis, np.newaxis, np.newaxis], crops[..., ::-1], crops)
