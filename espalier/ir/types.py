"""Types of the values in a graph."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.numerics.fixed import Fixed as Fixed  # a format, exported with the others


@dataclass(frozen=True, slots=True)
class Float:
    """Real numbers in floating point; what an imported network has before it is quantised."""

    def __str__(self) -> str:
        return "float"


@dataclass(frozen=True, slots=True)
class Index:
    """Whole numbers that are not quantities: class labels and positions."""

    def __str__(self) -> str:
        return "index"


Format = Fixed | Float | Index
MapShape = tuple[int, int, int]  #: (channels, height, width)
FLOAT = Float()
INDEX = Index()


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and element format of a value.

    Parameters
    ----------
    shape : tuple of int
        Of one image, without the batch axis: (C, H, W), (C,) or () for activations, gradients and
        labels; (O, I/groups, KH, KW), (O, I) or (O,) for parameters and their gradients.
    format : Format
        Meaning of an element.
    """

    shape: tuple[int, ...]
    format: Format

    def __str__(self) -> str:
        return f"{self.format}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Value:
    """A named, typed tensor. Names are unique in a graph."""

    name: str
    type: TensorType

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def format(self) -> Format:
        return self.type.format

    @property
    def map_shape(self) -> MapShape:
        """The shape of a value that is a map."""
        channels, height, width = self.shape
        return channels, height, width

    def __str__(self) -> str:
        return f"%{self.name}: {self.type}"
