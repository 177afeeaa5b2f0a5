"""One kernel for all layers of a shape class: those whose kernels differ in whole numbers alone.

Sizes, strides and offsets stand in OpenCL C as numbers. Kernels whose texts are otherwise the same, once their buffers
have common names, become one; each number that is not the same in all of them becomes an argument, and numbers that
are equal to each other in every one of them the same argument (the least general generalisation of Plotkin, 1970, with
numbers for terms). Lengths of arrays stay numbers: kernels that differ there are of two classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

NUMBER = "number"
_TOKEN = re.compile(r"""
    (?P<array>\[\d+\];)                                # the length of an array
  | (?P<real>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)
  | (?P<number>\b\d+\b)
  | (?P<word>\w+)
  | (?P<other>\s+|[^\w\s])
""", re.VERBOSE)
HEAD = re.compile(r"__kernel void (\w+)\(([^)]*)\)")
_MOST = (1 << 31) - 1  #: of an argument


@dataclass(frozen=True, slots=True)
class Text:
    """A kernel in OpenCL C.

    Parameters
    ----------
    name, source : str
    arguments : tuple of str
        Its buffers, in the order in which it takes them.
    roles : tuple of str
        The same, in the order that kernels of one kind have in common.
    numbers : tuple of int
        What it takes behind its buffers.
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    roles: tuple[str, ...]
    numbers: tuple[int, ...] = ()


def folded(kernels: Sequence[Text]) -> list[Text]:
    """The same kernels in the same order, those of a class with the source of one."""
    classes: dict[tuple[str, ...], list[int]] = {}
    tokens = [_tokens(_common(kernel)) for kernel in kernels]
    for number, found in enumerate(tokens):
        classes.setdefault(tuple(NUMBER if kind == NUMBER else text for kind, text in found), []).append(number)
    result = list(kernels)
    for members in classes.values():
        if len(members) > 1:
            for member, text in zip(members, _one([kernels[k] for k in members], [tokens[k] for k in members]),
                                    strict=True):
                result[member] = text
    return result


def _common(kernel: Text) -> str:
    """The source with a common name, and buffers named by their roles and taken in the order of these."""
    names = {name: f"buffer{number}" for number, name in enumerate(kernel.roles)}
    head = HEAD.search(kernel.source)
    assert head is not None, "TVM writes kernels"
    by_name = {parameter.split()[-1].removesuffix("_ptr"): parameter for parameter in head[2].split(", ")}
    parameters = ", ".join(by_name[name] for name in kernel.roles)
    source = kernel.source.replace(f"({head[2]})", f"({parameters})")
    words = {name + end: common + end for name, common in names.items() for end in ("", "_ptr")}
    return re.sub(r"\w+", lambda word: words.get(word[0], word[0]), source.replace(kernel.name, "common"))


def _tokens(source: str) -> list[tuple[str, str]]:
    """(kind, text) of every token; numbers that no argument holds are words."""
    found = []
    for match in _TOKEN.finditer(source):
        kind = str(match.lastgroup)
        found.append(("word" if kind == NUMBER and int(match[0]) > _MOST else kind, match[0]))
    return found


def _one(kernels: Sequence[Text], tokens: Sequence[list[tuple[str, str]]]) -> list[Text]:
    """Kernels of one class, with one source and their own numbers."""
    columns = {place: tuple(int(own[place][1]) for own in tokens)
               for place, (kind, _) in enumerate(tokens[0]) if kind == NUMBER}
    varying = list(dict.fromkeys(column for column in columns.values() if len(set(column)) > 1))
    names = {column: f"size{number}" for number, column in enumerate(varying)}
    parts = [names.get(columns[place], text) if place in columns else text
             for place, (_, text) in enumerate(tokens[0])]
    taken = "".join(f", int {name}" for name in names.values())
    title = kernels[0].name
    source = re.sub(r"\bcommon\b", title, "".join(parts))
    source = HEAD.sub(lambda head: head[0][:-1] + taken + ")", source)
    return [replace(kernel, name=title, source=source, arguments=kernel.roles,
                    numbers=tuple(column[number] for column in varying)) for number, kernel in enumerate(kernels)]
