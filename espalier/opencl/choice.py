"""What a schedule leaves open, and who decides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Choice = tuple[int, int, int]
Choose = Callable[[str, str, Sequence[Choice]], Choice]
"""Of a kernel's name, of a text that is the same for all kernels of its kind, shape and types, and of the choices that
it has, the shortest by estimate first: one of them."""


def first(name: str, signature: str, choices: Sequence[Choice]) -> Choice:
    """The shortest by estimate."""
    return choices[0]
