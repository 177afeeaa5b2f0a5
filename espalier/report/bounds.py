"""The one rule of counts: a part is within its whole."""

from __future__ import annotations

from espalier.errors import DataError


def require_within(what: str, name: str, part: int, whole: int) -> None:
    """Raise DataError unless ``part`` is in 0..``whole``; ``what`` of ``name`` is what is counted."""
    if not 0 <= part <= whole:
        raise DataError(f"{what} of {name} must be in 0..{whole}, not {part}")
