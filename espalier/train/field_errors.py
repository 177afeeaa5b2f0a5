"""What is wrong with the fields of a configuration, in one sentence: which field, what is allowed, what was found."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

UNKNOWN = "unexpected_keyword_argument"
WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "finite_number"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("dict_type", "dataclass_type", "model_attributes_type"), "a mapping of names to values"),
    "string_type": "text", "tuple_type": "a list"}  #: by pydantic's name of the mistake


def explained(error: ValidationError, root: type[DataclassInstance], found: object) -> str:
    """The first mistake of ``found``, which was to be a ``root``; a misspelt name before what is missing for it."""
    first = min(error.errors(), key=lambda mistake: mistake["type"] != UNKNOWN)
    path = _path(first, found)
    name = f"{'.'.join(path)!r}" if path else "the whole"
    match first["type"]:
        case kind if kind == UNKNOWN:
            owner = _classes(root, first["loc"][:-1])[0]
            return f"{name} is no field: the fields are {', '.join(field.name for field in fields(owner))}"
        case "missing":
            return f"{name} is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            name = f"{'.'.join((*path, 'kind'))!r}"
            kinds = ", ".join(_kind(owner) for owner in _classes(root, first["loc"]))
            if first["type"] == "union_tag_not_found":
                return f"{name} is missing: give one of {kinds}"
            return f"{name} must be one of {kinds}, not {first['ctx']['tag']!r}"
        case "enum":
            return f"{name} must be {first['ctx']['expected']}, not {reprlib.repr(first['input'])}"
        case "value_error":
            return f"{name}: {first['ctx']['error']}"
        case kind if kind in WANTED:
            return f"{name} must be {WANTED[kind]}, not {reprlib.repr(first['input'])}"
        case _:
            return f"{name}: {first['msg']}"


def _path(mistake: ErrorDetails, found: Any) -> list[str]:
    """The names that lead to a mistake, as the file has them: without those that pydantic gives to kinds."""
    path: list[str] = []
    for part in mistake["loc"]:
        here = part in found if isinstance(found, Mapping) else isinstance(found, Sequence) and isinstance(part, int)
        if here:
            found = found[part]
        if here or mistake["type"] == "missing" and part == mistake["loc"][-1]:
            path.append(str(part))
    return path


def _classes(root: type[DataclassInstance], location: Sequence[int | str]) -> list[type[DataclassInstance]]:
    """The configuration classes that may stand at a location."""
    owners = [root]
    for part in location:
        named = [owner for owner in owners if _kind(owner) == part]
        owners = named or [inner for owner in owners for inner in _inside(get_type_hints(owner).get(str(part)))]
    return owners


def _inside(hint: object) -> Iterator[type[DataclassInstance]]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _inside(argument)


def _kind(owner: type[DataclassInstance]) -> str:
    """By which a recipe tells a class from others that may stand in its place."""
    return next((str(field.default) for field in fields(owner) if field.name == "kind"), "")
