"""Types of the values in a graph."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.numerics.fixed import Fixed


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

    def __str__(self) -> str:
        return f"%{self.name}: {self.type}"
