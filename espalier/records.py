"""Every result as a frozen record: a value, its unit, and where it came from.

A figure without provenance cannot be printed: reports and benchmarks take only these.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any


class Provenance(Enum):
    """Where a figure came from."""

    ESTIMATED = "estimated"      #: computed from a model
    SIMULATED = "simulated"      #: counted in a simulation of the RTL
    SYNTHESISED = "synthesised"  #: read from a synthesis or place-and-route tool's own report
    MEASURED = "measured"        #: observed while the real thing ran


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: ``value`` in ``unit``, with its :class:`Provenance`."""

    name: str
    value: float | int
    unit: str
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "provenance": self.provenance.value}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Figure:
        return cls(fields["name"], fields["value"], fields["unit"], Provenance(fields["provenance"]))


@dataclass(frozen=True, slots=True)
class Bar:
    """A mark that a figure is held against: ``value op bound``."""

    name: str
    value: float | int
    op: str
    bound: float | int

    @property
    def met(self) -> bool:
        return {">=": self.value >= self.bound, "<=": self.value <= self.bound,
                "<": self.value < self.bound, ">": self.value > self.bound,
                "==": self.value == self.bound}[self.op]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never a part.

    On any failure (a full disk, an interrupt) the old file stays as it was.
    """
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Like :func:`write_text_atomically`, for bytes."""
    write_all_atomically({path: content})


def write_all_atomically(contents: Mapping[Path, bytes]) -> None:
    """Like :func:`write_bytes_atomically`, for several files: all are on the disk before the first is in its place."""
    staged: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            staged[path] = Path(temporary)
            os.chmod(temporary, 0o666 & ~umask())
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary_path in staged.items():
            os.replace(temporary_path, path)
    except BaseException:
        for temporary_path in staged.values():
            temporary_path.unlink(missing_ok=True)
        raise


def umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as stable, readable JSON, atomically."""
    write_text_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
