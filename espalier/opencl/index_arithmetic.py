"""The integers in indices, as TVM prints them: each operation in brackets of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

GROUP = "(convert_int(get_group_id(0)))"
_CALL = re.compile(r"(min|max)\((?:\(int\))?")
_COMMA = re.compile(r", (?:\(int\))?")
_OPERATOR = re.compile(r" (\+|-|\*|/|%|>>|&) ")
_WORD = re.compile(r"\w+")
_MOST = (1 << 31) - 1  #: of an int
_PLACE = re.compile(r"(?P<load>vload(?P<lanes>\d+)\(0, (?P<open>\(?))?\b(?P<buffer>\w*_ptr)(?P<join>\[| \+ )")


@dataclass(frozen=True, slots=True)
class Node:
    """A number, a name or the work-group's number; or of two parts an operator, ``min`` or ``max``."""

    text: str
    parts: tuple[Node, ...] = ()

    def __str__(self) -> str:
        if not self.parts:
            return self.text
        left, right = self.parts
        if self.text in ("min", "max"):
            return f"{self.text}((int){left}, (int){right})"
        return f"({left} {self.text} {right})"

    def operations(self) -> Iterator[Node]:
        """Itself and those of its parts that are operations."""
        if self.parts:
            yield self
            for part in self.parts:
                yield from part.operations()

    def words(self) -> Iterator[str]:
        """What is computed with."""
        if not self.parts:
            yield self.text
        for part in self.parts:
            yield from part.words()


class Term(NamedTuple):
    """One of a sum."""

    node: Node
    negative: bool = False


def terms(node: Node, negative: bool = False) -> list[Term]:
    """Those of a sum, however it is bracketed."""
    if node.text not in ("+", "-"):
        return [Term(node, negative)]
    left, right = node.parts
    return terms(left, negative) + terms(right, negative ^ (node.text == "-"))


def added(found: list[Term]) -> Node:
    """The sum of terms, of which one at least is not negative."""
    (first, _), *rest = sorted(found, key=lambda term: term.negative)
    for node, negative in rest:
        first = Node("-" if negative else "+", (first, node))
    return first


@dataclass(frozen=True, slots=True)
class Place:
    """An index in a statement.

    Parameters
    ----------
    buffer : str
    index : Node
    inner : slice
        Where the index stands.
    whole : slice
        Where the element, or the load of a vector, stands; the index alone if it is neither.
    lanes : int
        Elements of what is loaded; 0 if it is neither.
    """

    buffer: str
    index: Node
    inner: slice
    whole: slice
    lanes: int


def places(statement: str, is_integer: Callable[[str], bool]) -> Iterator[Place]:
    """The indices that can be read, in order; ``is_integer`` tells whether a name is that of an ``int``."""
    at = 0
    while match := _PLACE.search(statement, at):
        at = match.end()
        found = _read(statement, at, is_integer)
        if found is None:
            continue
        index, end = found
        inner = slice(at, end)
        at = end
        if match["join"] == "[":
            yield Place(match["buffer"], index, inner, slice(match.start("buffer"), end + 1), 1)
        elif match["load"]:
            whole = slice(match.start(), end + len(match["open"]) + 1)
            yield Place(match["buffer"], index, inner, whole, int(match["lanes"]))
        else:
            yield Place(match["buffer"], index, inner, inner, 0)


def loop_operations(source: str) -> int:
    """How many different operations the indices of each innermost loop have, over all loops."""
    count = 0
    scopes: list[set[Node] | None] = []  # of loops in which no loop has been met, else None
    for line in source.splitlines():
        if line.strip().startswith("}") and scopes:
            inner = scopes.pop() or set()
            count += len(inner) if inner not in scopes else 0  # which a condition shares with its loop
        if line.lstrip().startswith("for ("):
            scopes = [None] * len(scopes) + [set()]
        elif line.endswith("{"):
            scopes.append(scopes[-1] if scopes else None)
        elif scopes and scopes[-1] is not None:
            scopes[-1].update(found for place in places(line, str.isidentifier) for found in place.index.operations())
    return count


def _read(text: str, at: int, is_integer: Callable[[str], bool]) -> tuple[Node, int] | None:
    """The expression that begins at a place, and where it ends; None if it is of another kind."""
    if text.startswith(GROUP, at):
        return Node(GROUP), at + len(GROUP)
    call = _CALL.match(text, at)
    if call is None and not text.startswith("(", at):
        word = _WORD.match(text, at)
        known = word is not None and (int(word[0]) <= _MOST if word[0].isdecimal() else is_integer(word[0]))
        return (Node(word[0]), word.end()) if word is not None and known else None
    left = _read(text, call.end() if call else at + 1, is_integer)
    if left is None or (call is None and text.startswith(")", left[1])):
        return left and (left[0], left[1] + 1)
    between = (_COMMA if call else _OPERATOR).match(text, left[1])
    right = _read(text, between.end(), is_integer) if between else None
    if between is None or right is None or not text.startswith(")", right[1]):
        return None
    return Node(call[1] if call else between[1], (left[0], right[0])), right[1] + 1
