"""Frozen dataclasses to plain JSON data and back, led by their type hints."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from espalier.errors import DataError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def encode(value: object) -> Any:
    """Plain data: dataclasses become objects, tuples lists, enums their values, NaN and infinities words."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    match value:
        case Enum():
            return value.value
        case tuple():
            return [encode(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise AssertionError(f"a report holds no {type(value).__name__}")


def decode(kind: type[T], data: object, place: str) -> T:
    """A ``kind`` from plain data; ``place`` names it in errors.

    Raises
    ------
    DataError
        The data is not what the type says: names the field, what it must be and what it is.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    if not isinstance(data, dict):
        raise _wrong(place, "an object", data)
    required = {name for name, field in known.items() if field.default is MISSING}
    if missing := sorted(required - data.keys()):
        raise DataError(f"The field {place}.{missing[0]} must be there and is missing")
    if extra := sorted(data.keys() - known.keys()):
        raise DataError(f"The field {place}.{extra[0]} is not known; it must be one of {', '.join(known)}")
    return kind(**{name: _decode(hints[name], value, f"{place}.{name}") for name, value in data.items()})


def _decode(hint: Any, data: object, place: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _decode_union(get_args(hint), data, place)
    if origin is tuple:
        return _decode_tuple(get_args(hint), data, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return decode(hint, data, place)
    if issubclass(hint, Enum):
        return _decode_enum(hint, data, place)
    if hint is float and data in ("nan", "inf", "-inf"):
        return float(str(data))
    if (isinstance(data, int) and not isinstance(data, bool) and hint in (int, float)) or type(data) is hint:
        return data
    raise _wrong(place, {int: "a whole number", float: "a number", str: "text"}.get(hint, hint.__name__), data)


def _decode_union(kinds: tuple[Any, ...], data: object, place: str) -> Any:
    if data is None and NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not NoneType]
    return _decode(float if set(rest) == {int, float} else rest[0], data, place)


def _decode_tuple(kinds: tuple[Any, ...], data: object, place: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise _wrong(place, "a list", data)
    if kinds[-1] is not Ellipsis and len(data) != len(kinds):
        raise _wrong(place, f"a list of {len(kinds)}", data)
    return tuple(_decode(kinds[0] if kinds[-1] is Ellipsis else kinds[at], item, f"{place}[{at}]")
                 for at, item in enumerate(data))


def _decode_enum(kind: type[Enum], data: object, place: str) -> Enum:
    for member in kind:
        if member.value == data:
            return member
    raise _wrong(place, f"one of {', '.join(str(member.value) for member in kind)}", data)


def _wrong(place: str, wanted: str, data: object) -> DataError:
    return DataError(f"The field {place} must be {wanted}, not {data!r:.60}")
