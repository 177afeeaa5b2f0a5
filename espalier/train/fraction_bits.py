"""Fraction lengths: the longest that hold numbers, and those that many values share within limits on each."""

from __future__ import annotations

import math

from espalier.numerics.fixed import Fixed

COARSEST, FINEST = -32, 40    #: fraction bits that are ever chosen


class Families:
    """Sets of names that share a fraction length, and upper limits on it."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.limit: dict[str, int] = {}
        self.sums: list[tuple[str, tuple[str, ...], int]] = []

    def root(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """``a`` and ``b`` have one fraction length; to be called before any limit."""
        self.parent[self.root(b)] = self.root(a)

    def at_most(self, name: str, frac: int) -> None:
        root = self.root(name)
        self.limit[root] = min(frac, self.limit.get(root, FINEST))

    def at_most_sum(self, name: str, *parts: str, plus: int = 0) -> None:
        """``name`` is no finer than a product of ``parts`` (and of a value of ``plus`` fraction bits)."""
        self.sums.append((name, parts, plus))

    def frac(self, name: str) -> int:
        return self.limit[self.root(name)]

    def settle(self) -> None:
        """Lower fraction lengths until every limit holds."""
        changed = True
        while changed:
            changed = False
            for name, parts, plus in self.sums:
                most = plus + sum(self.frac(part) for part in parts)
                if self.frac(name) > most >= COARSEST:
                    self.limit[self.root(name)] = most
                    changed = True


def holding_frac(low: float, high: float, width: int, headroom: int = 0) -> int:
    """The most fraction bits with which ``width`` bits hold ``low..high`` after ``headroom`` doublings.

    "Hold" means without more than half a unit of saturation.
    """
    format_ = Fixed.of(width, 0)
    largest = max(-low / (0.5 - format_.low), high / (format_.high + 0.5))
    if largest <= 0:
        return FINEST
    return max(COARSEST, min(FINEST, math.floor(-math.log2(largest)) - headroom))
