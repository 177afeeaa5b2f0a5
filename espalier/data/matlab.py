"""MATLAB's Level 5 MAT-files, as far as SVHN needs them: full arrays of real numbers, plain or compressed.

After the published description of the format (MathWorks, "MAT-File Format"). A reader of our own because
a damaged file must give an error, and the usual reader may crash the interpreter on one.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.data.source import Content
from espalier.errors import DataError

Array: TypeAlias = NDArray[np.generic]

HEADER_BYTES = 128
VERSION = 0x0100
MATRIX = 14
COMPRESSED = 15

#: The element types of numbers, and NumPy's name of each.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}

#: The array classes from double to uint64, which hold numbers; their numbers may be stored in any smaller type.
NUMERIC_CLASSES = range(6, 16)
COMPLEX_FLAG = 0x0800


@dataclass(frozen=True, slots=True)
class Element:
    """One tagged piece of a file: its type code and content."""

    code: int
    data: memoryview


def parse_matlab(content: Content) -> dict[str, Array]:
    """The real, full, numeric arrays of a MAT-file by name; other variables are passed over.

    Raises DataError if the file is damaged or of another version.
    """
    try:
        order = _byte_order(content.data)
        matrices = _matrices(memoryview(content.data)[HEADER_BYTES:], order)
        variables = (_array(matrix.data, order) for matrix in matrices)
        return dict(variable for variable in variables if variable is not None)
    except (ValueError, zlib.error) as error:
        raise DataError(f"{content.place} is no readable MATLAB 5 file ({error}): get the file again") from error


def _byte_order(data: bytes) -> str:
    mark = data[HEADER_BYTES - 4:HEADER_BYTES]
    for order, text in (("<", b"IM"), (">", b"MI")):
        if mark[2:] == text and struct.unpack(f"{order}H", mark[:2])[0] == VERSION:
            return order
    raise ValueError(f"its first {HEADER_BYTES} bytes do not end as those of a Level 5 MAT-file do")


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    """The elements that follow one another in ``data``."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it ends within a tag")
        code, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if code >> 16:  # the small form: type and size share a word, the data lies in the next
            code, size, start = code & 0xFFFF, code >> 16, place + 4
            if size > 4:
                raise ValueError("a small element has more than 4 bytes")
        if size > len(data) - start:
            raise ValueError(f"it is truncated: an element of {size} bytes has {len(data) - start}")
        yield Element(code, data[start:start + size])
        place = start + size if code == COMPRESSED else -(-(start + size) // 8) * 8


def _matrices(data: memoryview, order: str) -> Iterator[Element]:
    """The matrices in ``data``, decompressed."""
    for element in _elements(data, order):
        pieces = iter((element,))
        if element.code == COMPRESSED:
            pieces = _elements(memoryview(zlib.decompress(element.data)), order)
        yield from (piece for piece in pieces if piece.code == MATRIX)


def _array(data: memoryview, order: str) -> tuple[str, Array] | None:
    """Name and value of a matrix element; None if it is not an array of real numbers."""
    match list(_elements(data, order)):
        case [Element(data=flags), Element(code=5, data=dimensions), Element(data=name), Element() as numbers]:
            if len(flags) != 8 or len(dimensions) % 4:
                raise ValueError("the description of an array is damaged")
            kind = struct.unpack_from(f"{order}I", flags)[0]
            if kind & 0xFF not in NUMERIC_CLASSES or kind & COMPLEX_FLAG:
                return None
            shape = tuple(np.frombuffer(dimensions, f"{order}i4").tolist())
            return bytes(name).decode("latin1"), _shaped(numbers, order, shape)
        case _:
            return None


def _shaped(numbers: Element, order: str, shape: tuple[int, ...]) -> Array:
    """The numbers as an array; the file has the first axis fastest."""
    if numbers.code not in NUMBERS:
        raise ValueError(f"there is no type of numbers {numbers.code}")
    kind = np.dtype(order + NUMBERS[numbers.code])
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(numbers.data):
        raise ValueError(f"an array of shape {shape} cannot have {len(numbers.data)} bytes")
    return np.frombuffer(numbers.data, kind).reshape(shape, order="F")
