"""Native code: the C++ compiler, and the folder in which what it made is kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from espalier.errors import ToolError

COMPILER_OPTIONS = ("-std=c++20", "-fPIC", "-w")


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``ESPALIER_CACHE``, else the user's cache folder."""
    base = os.environ.get("ESPALIER_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "espalier"


def find_compiler() -> str | None:
    """The C++ compiler: ``CXX``, else g++; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def run_command(command: list[str], what: str, env: Mapping[str, str] | None = None) -> None:
    """Run a build tool. Raises ToolError with the end of what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise ToolError(f"{what} failed: {(done.stderr or done.stdout).strip()[-800:]}")


def content_key(*parts: str) -> str:
    """A file name for what is compiled from ``parts`` for this processor, which a shared folder may outlive."""
    return hashlib.sha256("\0".join((*parts, *COMPILER_OPTIONS, _processor())).encode()).hexdigest()[:24]


def build_library(source: Path, options: tuple[str, ...]) -> Path:
    """The shared library of one C++ source and the headers beside it; made once and kept in :func:`cache_folder`.

    Raises ToolError where there is no C++ compiler, it fails, or the folder cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise ToolError("Native code needs a C++ compiler: install g++")
    try:
        texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
        library = cache_folder() / f"{content_key(*texts, *options)}.so"
        if library.exists():
            return library
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / "library.so"
            run_command([compiler, *COMPILER_OPTIONS, *options, "-shared", str(source), "-o", str(made), "-pthread"],
                        "The C++ compiler")
            os.replace(made, library)
    except OSError as error:
        raise ToolError(f"The cache folder {cache_folder()} cannot be written ({error.strerror or error}): set "
                        f"ESPALIER_CACHE to another") from None
    return library


def _processor() -> str:
    """The processor's instructions, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
