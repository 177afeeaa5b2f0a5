"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from espalier.errors import DataError


@contextmanager
def whole_directory(target: Path, marker: str) -> Iterator[Path]:
    """A new directory to fill, renamed to ``target`` when the block ends well and removed when it does not.

    A ``target`` that holds the file ``marker`` was made like this and is replaced as a whole.
    Raises DataError if ``target`` is anything else that is not empty, and OSError for a full disk.
    """
    target = target.absolute()
    if target.exists() and not (target / marker).exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"The output directory {target.name!r} holds something that was not made here (there is no "
                        f"{marker} in it): choose another, or empty it")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.new."))
    try:
        yield work
        work.chmod(0o777 & ~_umask())
        _swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(work: Path, target: Path) -> None:
    """Put ``work`` in the place of ``target``; the old directory comes back if that fails."""
    if not target.exists():
        os.replace(work, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    os.replace(target, old)
    try:
        os.replace(work, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
