"""Directories that appear whole or not at all, and go likewise."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espalier.errors import DataError
from espalier.records import umask


@contextmanager
def whole_directory(target: Path, marker: str) -> Iterator[Path]:
    """A new directory to fill, renamed to ``target`` when the block ends well and removed when it does not.

    A ``target`` that holds the file ``marker`` was made like this and is replaced as a whole.
    Raises DataError if ``target`` is anything else that is not empty, and OSError for a full disk.
    """
    target = target.resolve()  # what a symbolic link points to is replaced, not the link
    require_replaceable(target, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.new."))
    try:
        yield work
        work.chmod(0o777 & ~umask())
        _swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_replaceable(target: Path, marker: str) -> None:
    """Raise DataError unless ``target`` is free, empty, or a directory made here, which holds ``marker``."""
    if target.exists() and not (target / marker).exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"The output directory {target.name!r} holds something that was not made here (there is no "
                        f"{marker} in it): choose another, or empty it")
    require_writable(target)


def remove_whole(target: Path, marker: str) -> None:
    """Remove ``target`` if it is a directory made here, which holds ``marker``; it goes all at once."""
    if not (target / marker).is_file():
        return
    shutil.rmtree(_put_aside(target), ignore_errors=True)


def require_writable(target: Path) -> None:
    """Raise DataError unless ``target`` is a directory to write in, or one can be made there."""
    place = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    if not place.is_dir():
        raise DataError(f"The output directory {target} cannot be made, as {place} is a file: choose another")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f"The output directory {target} cannot be written to (no permission in {place}): choose "
                        f"another")


def _swap(work: Path, target: Path) -> None:
    """Put ``work`` in the place of ``target``; the old directory comes back if that fails."""
    if not target.exists():
        os.replace(work, target)
        return
    old = _put_aside(target)
    try:
        os.replace(work, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _put_aside(target: Path) -> Path:
    """Rename the directory ``target`` to a hidden one beside it, and return that."""
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    try:
        os.replace(target, old)
    except BaseException:
        old.rmdir()
        raise
    return old
