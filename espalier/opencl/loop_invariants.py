"""What does not change in a loop, once before it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from espalier.opencl.folding import HEAD
from espalier.opencl.index_arithmetic import Node, Place, Term, added, places, terms

_PARAMETER = re.compile(r"(?:__global (?P<type>\w+)\* restrict|int) (?P<name>\w+)")
_LOOP = re.compile(r"( *)for \(int (?P<name>\w+) = 0; \2 < (?P<count>.+); \+\+\2\) \{")
_BLOCK = re.compile(r" *(?:if \(.*\)|\} else) \{")
_DECLARATION = re.compile(r" *(?P<type>\w+) (?P<name>\w+)(?:\[\d+\]| = .+);")
_STORE = re.compile(r" *(?:(?P<element>\w+)\[.*\] = .+|vstore\d+\(.+, 0, \(?(?P<vector>\w+) \+ .+\));")
_GUARDS = ("?", "&&", "||", "(&")


@dataclass(slots=True)
class _Scope:
    """What lies between two braces: the names that are declared there, and constants, by what they are."""

    header: str = ""
    loop: bool = False
    runs: bool = False  #: once at least
    names: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def hoisted(source: str) -> str:
    """A kernel whose loops compute and load nothing that they computed and loaded before.

    rewrite:
        for (int i = 0; i < 8; ++i) {              int base0 = (g * 32);
          for (int j = 0; j < 4; ++j) {            for (int i = 0; i < 8; ++i) {
            a_ptr[(((g * 32) + (i * 4)) + j)]        int base1 = (base0 + (i * 4));
                = b_ptr[i];                  ->      float held0 = b_ptr[i];
          }                                          for (int j = 0; j < 4; ++j) {
        }                                              a_ptr[(base1 + j)] = held0;
                                                     }
                                                   }

    Of the terms of an index, those that do not change are added up before the loop, as far out as they can be; numbers
    and sizes stay behind, so that indices that differ in them alone share the rest. Loads move from buffers that the
    kernel does not write, if every way through the loop makes them. A kernel with lines that are not TVM's stays as it
    is.
    """
    *_, head = HEAD.finditer(source)  # the definition, after a declaration
    moved = _Moving(source[head.start():].splitlines()).run()
    return source if moved is None else source[:head.start()] + "\n".join(moved) + "\n"


class _Moving:
    """Through a kernel, line by line."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.words = set(re.findall(r"\w+", "\n".join(lines)))
        head, = HEAD.findall(lines[0])
        parameters = [found.groupdict() for found in _PARAMETER.finditer(head[1])]
        self.sizes = {found["name"] for found in parameters if found["type"] is None}
        written = {store["element"] or store["vector"] for line in lines if (store := _STORE.fullmatch(line))}
        self.loaded = {found["name"]: found["type"] for found in parameters if found["type"]
                       and found["name"] not in written}
        self.scopes: list[_Scope] = [_Scope()]

    def run(self) -> list[str] | None:
        """The kernel's new lines; None where some are not understood."""
        understood = all(self._line(line) for line in self.lines) and len(self.scopes) == 1
        return self.scopes[0].lines if understood else None

    def _line(self, line: str) -> bool:
        text = line.strip()
        if text.startswith("}"):
            if line.startswith("}") != (len(self.scopes) == 2):  # the kernel's own
                return False
            inner = self.scopes.pop()
            self.scopes[-1].lines += [inner.header, *inner.lines]
        if loop := _LOOP.fullmatch(line):
            count = loop["count"]
            runs = count in self.sizes or (count.isdecimal() and int(count) > 0)
            self.scopes.append(_Scope(line, True, runs, {loop["name"]: "int"}))
        elif HEAD.match(line):
            self.scopes.append(_Scope(line, names=dict.fromkeys(self.sizes, "int")))
        elif _BLOCK.fullmatch(line):
            self.scopes.append(_Scope(line))
        elif found := _DECLARATION.fullmatch(line):
            self.scopes[-1].lines.append(self._statement(line))
            self.scopes[-1].names[found["name"]] = found["type"]
        elif _STORE.fullmatch(line):
            self.scopes[-1].lines.append(self._statement(line))
        else:
            self.scopes[-1].lines.append(line)
            return text in ("", "}")
        return True

    def _statement(self, line: str) -> str:
        parts, at = [], 0
        if any(scope.loop for scope in self.scopes):
            for place in places(line, self._is_integer):
                held = None if any(guard in line for guard in _GUARDS) else self._held(line, place)
                where = place.whole if held else place.inner
                parts += [line[at:where.start], held or str(self._moved(place.index, self._here))]
                at = where.stop
        return "".join([*parts, line[at:]])

    @property
    def _here(self) -> int:
        return len(self.scopes) - 1

    def _is_integer(self, word: str) -> bool:
        return next((scope.names[word] for scope in reversed(self.scopes) if word in scope.names), "") == "int"

    def _level(self, node: Node) -> int:
        """The innermost scope that something in it is declared in."""
        return max(next((number for number in range(self._here, 1, -1) if word in self.scopes[number].names), 1)
                   for word in node.words())

    def _home(self, node: Node, here: int) -> int:
        """The scope before the first loop in which it may change, outside ``here``."""
        level = self._level(node)
        return next((number - 1 for number in range(level + 1, here + 1) if self.scopes[number].loop), here)

    def _moved(self, node: Node, here: int) -> Node:
        """With constants for what does not change in the loops around ``here``."""
        if not node.parts:
            return node
        by_home: dict[int, list[Term]] = {}
        left: list[Term] = []
        for term in terms(node):
            free = not term.node.parts and (term.node.text.isdecimal() or term.node.text in self.sizes)
            (left if free else by_home.setdefault(self._home(term.node, here), [])).append(term)
        stay = self._parts_moved(by_home.pop(here, []), here)
        if not stay and (by_home or self._home(node, here) != here):
            by_home.setdefault(max(by_home, default=self._home(node, here)), []).extend(left)
            left = []
        carried: list[Term] = []
        for home in sorted(by_home):
            carried = self._constant([*carried, *by_home[home]], home)
        return added([*carried, *stay, *left])

    def _parts_moved(self, found: list[Term], here: int) -> list[Term]:
        return [Term(Node(node.text, tuple(self._moved(part, here) for part in node.parts)), negative)
                for node, negative in found]

    def _constant(self, found: list[Term], home: int) -> list[Term]:
        """A name for the sum of terms; the terms themselves if they are one name, or all negative."""
        if all(negative for _, negative in found) or (len(found) == 1 and not found[0].node.parts):
            return found
        return [Term(Node(self._named("base", "int", str(added(self._parts_moved(found, home))), home)))]

    def _held(self, line: str, place: Place) -> str | None:
        """A name for what is loaded, if no loop between here and there can change it or leave it out."""
        home, level = self._here, self._level(place.index)
        while home > level and self.scopes[home].runs:
            home -= 1
        if home == self._here or not place.lanes or place.buffer not in self.loaded:
            return None
        inner, whole = place.inner, place.whole
        value = line[whole.start:inner.start] + str(self._moved(place.index, home)) + line[inner.stop:whole.stop]
        type_ = self.loaded[place.buffer] + (str(place.lanes) if place.lanes > 1 else "")
        return self._named("held", type_, value, home)

    def _named(self, stem: str, type_: str, value: str, home: int) -> str:
        """The constant of that value in a scope, which is declared there if it is new."""
        scope = self.scopes[home]
        if value not in scope.constants:
            name = next(name for number in range(len(self.words) + 1) if (name := f"{stem}{number}") not in self.words)
            self.words.add(name)
            header = self.scopes[home + 1].header
            scope.lines.append(f"{header[:len(header) - len(header.lstrip())]}{type_} {name} = {value};")
            scope.names[name] = type_
            scope.constants[value] = name
        return scope.constants[value]
