"""Tensors in buffers: there and back, zeros around."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.opencl.layout import Layout

SIZES = st.integers(1, 9)
HALOS = st.integers(0, 2)


@settings(deadline=None, derandomize=True)
@given(shape=st.tuples(SIZES, SIZES, SIZES), block=st.sampled_from([1, 2, 3, 4, 8, 16]),
       halo=st.tuples(HALOS, HALOS, HALOS, HALOS))
def test_there_and_back(shape: tuple[int, int, int], block: int, halo: tuple[int, int, int, int]) -> None:
    layout = Layout(shape, block, halo)
    tensor = np.arange(1, np.prod(shape) + 1).reshape(shape)
    packed = layout.pack(tensor, np.int32)
    assert packed.shape == layout.array_shape and packed.size == layout.elements and packed.dtype == np.int32
    assert np.array_equal(layout.unpack(packed), tensor)
    assert np.count_nonzero(packed) == tensor.size  # zeros in the halo and where channels are filled up


def test_channels_lie_side_by_side() -> None:
    packed = Layout((3, 1, 2), 2, (0, 1, 0, 0)).pack(np.array([[[1, 2]], [[3, 4]], [[5, 6]]]), np.int16)
    assert packed.tolist() == [[[[0, 0], [1, 3], [2, 4]]], [[[0, 0], [5, 0], [6, 0]]]]
