"""What every command shares: common options, errors as one sentence, and results for people or programs."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from rich.console import Console

from espalier.errors import EspalierError

FAILED, INTERRUPTED = 1, 130
Arguments = ParamSpec("Arguments")


class _Late:
    """A module that is imported when an attribute of it is first read.

    Unlike that of ``importlib.util.LazyLoader``, nobody else meets it: what imports the module gets the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    from espalier import flow as flow
else:
    flow = _Late("espalier.flow")  # torch comes with it: seconds that --help and a mistyped flag need not wait

DataRoot = Annotated[Path | None, typer.Option(help="Folder of the named data sets; default: ESPALIER_DATA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable records on standard output.")]
DryRun = Annotated[bool, typer.Option(help="Check everything that is cheap to check; write nothing.")]
DataName = Annotated[str | None, typer.Option(help="Data set, by name or path; default: that of the training.")]


def one_sentence(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn what the user can mend into one sentence on standard error and an exit status."""
    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise _stop("Interrupted; what earlier commands wrote is intact", INTERRUPTED) from None
        except EspalierError as error:
            stopped = isinstance(error, flow.TrainingInterrupted)
            raise _stop(str(error), INTERRUPTED if stopped else FAILED) from None
        except OSError as error:
            place = error.filename2 or error.filename or "A file"  # of a renaming, what it was to become
            raise _stop(f"{place} cannot be read or written ({error.strerror or error}): what was there before is "
                        f"intact; make room, or check path and permissions", FAILED) from None
    return guarded


def _stop(sentence: str, status: int) -> typer.Exit:
    print(f"espalier: {sentence}", file=sys.stderr)
    return typer.Exit(status)


def steps_told() -> flow.Steps:
    """Progress goes to standard error, so that standard output holds results only."""
    return flow.Steps(Console(stderr=True))


def done(steps: flow.Steps, as_json: bool, record: object, lines: list[str]) -> None:
    """Say what came out and what was written, for people or for programs."""
    if as_json:
        written = [str(path) for path in steps.written]
        print(json.dumps({"record": record, "written": written}, indent=1, sort_keys=True))
        return
    for line in [*lines, *(f"wrote {path}" for path in steps.written)]:
        print(line)
