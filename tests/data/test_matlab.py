"""MATLAB files, as SciPy writes them."""

from io import BytesIO

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from espalier.data.matlab import parse_matlab
from espalier.data.source import Content
from espalier.errors import DataError

TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def mat(compressed, **variables) -> bytes:
    file = BytesIO()
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@settings(deadline=None, max_examples=100)
@given(st.booleans(), st.data())
def test_what_scipy_writes(compressed, data):
    shapes = hnp.array_shapes(min_dims=2, max_dims=4, max_side=5)
    arrays = {name: data.draw(hnp.arrays(data.draw(st.sampled_from(TYPES)), shapes)) for name in ("X", "a_long_name")}
    read = parse_matlab(Content("x", mat(compressed, **arrays)))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array, equal_nan=array.dtype.kind == "f")


def test_big_endian():
    little = mat(False, y=np.array([[1, 2]], np.uint8))
    big = bytearray(little)
    big[124:126], big[126:128] = little[125:123:-1], b"MI"
    for place in (*range(128, 168, 4), 168, 176):  # tags, flags, dimensions; of the two small elements only the tag
        big[place:place + 4] = little[place:place + 4][::-1]
    assert parse_matlab(Content("x", bytes(big)))["y"].tolist() == [[1, 2]]


def test_other_variables_are_passed_over():
    content = mat(True, text="words", cell=np.array([1, "a"], object), record={"a": 1}, z=np.array([[1j]]), y=np.eye(2))
    assert list(parse_matlab(Content("x", content))) == ["y"]


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_anywhere_is_told_or_harmless(compressed):
    """Whatever bytes are changed, the outcome is a dictionary of arrays or a DataError, nothing else."""
    whole = mat(compressed, X=np.arange(24, dtype=np.uint8).reshape(2, 3, 4), y=np.array([[1], [10]], np.uint16))
    told = 0
    for place in range(len(whole)):
        for value in (0, 1, 9, 0x7F, 0x80, 0xFF):
            damaged = whole[:place] + bytes([value]) + whole[place + 1:]
            try:
                arrays = parse_matlab(Content("x", damaged))
            except DataError as error:
                assert str(error).startswith("x is no readable MATLAB 5 file (")
                told += 1
                continue
            assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert told > 200


@pytest.mark.parametrize(("change", "reason"), [
    (lambda data: data[:60], "its first 128 bytes do not end as those of a Level 5 MAT-file do"),
    (lambda data: data[:132], "it ends within a tag"),
    (lambda data: data[:-8], "it is truncated: an element of 48 bytes has 40"),
    (lambda data: data[:168] + b"\x01\x00\x05\x00" + data[172:], "a small element has more than 4 bytes"),
    (lambda data: data[:156] + b"\x06" + data[157:], "the description of an array is damaged"),
    (lambda data: data[:176] + b"\x10" + data[177:], "there is no type of numbers 16"),
    (lambda data: data[:164] + b"\x07" + data[165:], "an array of shape (1, 7) cannot have 2 bytes"),
])
def test_damage_wrong(change, reason):
    whole = mat(False, y=np.array([[1, 2]], np.uint8))
    with pytest.raises(DataError) as error:
        parse_matlab(Content("x", change(whole)))
    assert str(error.value) == f"x is no readable MATLAB 5 file ({reason}): get the file again"
