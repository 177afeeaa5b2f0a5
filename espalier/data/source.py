"""Where named files come from: a folder or a tar archive, compressed or not."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Protocol

from espalier.errors import DataError

#: Endings of compressed files, and how each is undone.
DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".tgz": gzip.decompress, ".xz": lzma.decompress}

#: What a stored file may carry after its name.
STORED_ENDINGS = ("", ".gz", ".xz")


@dataclass(frozen=True, slots=True)
class Content:
    """The uncompressed bytes of a file and, for messages, the place they came from."""

    place: str
    data: bytes


class Source(Protocol):
    """A place that holds named files."""

    def names(self) -> frozenset[str]:
        """The names of its files, compression endings included, without folders."""

    def stored(self, name: str) -> bytes:
        """The bytes of the file of that name as they are stored. Raises DataError if unreadable."""

    def place(self, name: str) -> str:
        """That file's path, for messages."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The files directly in a folder."""

    path: Path

    def names(self) -> frozenset[str]:
        if not self.path.is_dir():
            return frozenset()
        return frozenset(entry.name for entry in self.path.iterdir() if entry.is_file())

    def stored(self, name: str) -> bytes:
        return read_bytes(self.path / name)

    def place(self, name: str) -> str:
        return str(self.path / name)


@dataclass(frozen=True, slots=True)
class Archive:
    """The regular files of a tar archive, by their last path component. Nothing is ever unpacked to disk."""

    path: Path
    members: dict[str, bytes]

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Read a ``.tar``, ``.tar.gz``, ``.tgz`` or ``.tar.xz``. Raises DataError if it is missing or corrupt."""
        return cls(path, {member.name: content for member, content in tar_members(path).items()})

    def names(self) -> frozenset[str]:
        return frozenset(self.members)

    def stored(self, name: str) -> bytes:
        return self.members[name]

    def place(self, name: str) -> str:
        return f"{self.path}:{name}"


def tar_members(path: Path) -> dict[PurePosixPath, bytes]:
    """The regular files of a ``.tar``, ``.tar.gz``, ``.tgz`` or ``.tar.xz`` by their path in it.

    Raises DataError if it is missing or corrupt.
    """
    content = decompress(str(path), read_bytes(path))
    try:
        with tarfile.open(fileobj=BytesIO(content), mode="r:") as archive:
            return {PurePosixPath(member.name): _extracted(archive, member) for member in archive if member.isfile()}
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"The archive {path} is corrupt or truncated ({error}): get it again") from error


def _extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a regular file has content"
    return file.read()


def stored_name(source: Source, *names: str) -> str | None:
    """Of the spellings ``names``, each plain, ``.gz`` or ``.xz``, the first that ``source`` holds; None if none."""
    present = source.names()
    return next((name + ending for name in names for ending in STORED_ENDINGS if name + ending in present), None)


def read(source: Source, *names: str) -> Content:
    """The uncompressed content of the first of ``names`` (plain, ``.gz`` or ``.xz``) that ``source`` holds.

    Raises DataError if there is none (with the paths tried), or if it is corrupt or empty.
    """
    name = stored_name(source, *names)
    if name is None:
        tried = ", ".join(source.place(name) for name in names)
        raise DataError(f"A file of the data set is missing: tried {tried}, each also with .gz and .xz; put it there")
    return Content(source.place(name), decompress(source.place(name), source.stored(name)))


def decompress(place: str, stored: bytes) -> bytes:
    """``stored`` without the compression that the ending of ``place`` names. Raises DataError if corrupt or empty."""
    ending = next((ending for ending in DECOMPRESSORS if place.endswith(ending)), "")
    try:
        data = DECOMPRESSORS[ending](stored) if ending else stored
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{place} is corrupt or truncated {ending} data ({error}): get the file again") from error
    if not data:
        raise DataError(f"{place} is empty: get the file again")
    return data


def read_bytes(path: Path) -> bytes:
    """The bytes of ``path``. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
