"""Commands as a user gives them, run in this process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from espalier.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], sentence: str, *arguments: object, status: int = 1) -> None:
    """The command ends with ``status`` and one sentence, nothing on standard output and no traceback."""
    got, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("espalier: ")]
    assert (got, out, len(lines)) == (status, "", 1), err
    assert re.search(sentence, lines[0].removeprefix("espalier: ")), lines[0]
    assert "Traceback" not in err


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file under ``folder`` with its content, hidden ones too; directories have None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}
