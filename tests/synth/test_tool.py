"""Finding and running outside programs: versions, logs, time-outs, and nothing half-written."""

import os
import sys
import time

import pytest

from espalier.errors import ToolError
from espalier.synth.tool import Tool, find_tool, publish, run_tool, scratch_directory

PYTHON = Tool("python", sys.executable, "3.11")


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def search_path(tmp_path, monkeypatch):
    find_tool.cache_clear()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    yield tmp_path
    find_tool.cache_clear()


def test_a_new_enough_native_tool_is_taken(search_path):
    command = program(search_path, "esp-tool", "echo 'Tool 1.10.2+7 (git 0.1)'")
    assert find_tool("esp-tool", "esp-wheel", (1, 9)) == Tool("esp-tool", command, "1.10.2")


def test_an_old_native_tool_gives_way_to_the_wheel(search_path):
    program(search_path, "esp-tool", "echo 'Tool 0.9'")
    program(search_path, "esp-wheel", "echo '(Version esp-0.11.1)' >&2; exit 1")
    found = find_tool("esp-tool", "esp-wheel", (0, 10))
    assert str(found) == "esp-wheel 0.11.1"


def test_find_tool_wrong(search_path):
    program(search_path, "esp-tool", "echo 'Tool 0.9'")
    with pytest.raises(ToolError, match=r"^esp-tool 0\.10 or newer is needed but esp-tool is version 0\.9 and "
                                        r"esp-wheel is not installed; install it, or the Python package esp-wheel$"):
        find_tool("esp-tool", "esp-wheel", (0, 10))


def test_find_tool_without_a_version_wrong(search_path):
    program(search_path, "esp-tool", "echo hello")
    with pytest.raises(ToolError, match="esp-tool is version unknown"):
        find_tool("esp-tool", "esp-wheel", (0, 10))


def test_a_run_logs_both_streams(tmp_path):
    code = "import sys, os; print('one'); print('two', file=sys.stderr)"
    run_tool(PYTHON, ["-c", code], directory=tmp_path, log=tmp_path / "log", timeout_seconds=60)
    assert sorted((tmp_path / "log").read_text().split()) == ["one", "two"]


def test_run_quotes_the_tool_wrong(tmp_path):
    code = "print('ERROR: no module foo'); print('bye'); raise SystemExit(3)"
    with pytest.raises(ToolError, match=r"^python 3\.11 failed with status 3: ERROR: no module foo \(log: .*log\)$"):
        run_tool(PYTHON, ["-c", code], directory=tmp_path, log=tmp_path / "log", timeout_seconds=60)


def test_run_silent_wrong(tmp_path):
    with pytest.raises(ToolError, match="failed with status 1: it printed nothing"):
        run_tool(PYTHON, ["-c", "raise SystemExit(1)"], directory=tmp_path, log=tmp_path / "log", timeout_seconds=60)


def test_run_too_long_wrong_and_its_children_end(tmp_path):
    shell = Tool("shell", "/bin/sh", "1.0")
    script = "(sleep 3; echo late > late) & sleep 30"
    with pytest.raises(ToolError, match=r"^shell 1\.0 must finish within 0\.3 s and did not; allow more time"):
        run_tool(shell, ["-c", script], directory=tmp_path, log=tmp_path / "log", timeout_seconds=0.3)
    time.sleep(3.2)
    assert not (tmp_path / "late").exists()


def test_scratch_is_removed_however_the_run_ends(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_directory(tmp_path / "new" / "out") as scratch:
        (scratch / "half").write_text("x")
        raise ZeroDivisionError
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_scratch_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolError, match=r"^The output directory .*file must be one that can be written to"), \
            scratch_directory(tmp_path / "file"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("second", [None, ""])
def test_publish_wrong_moves_nothing(tmp_path, second):
    (tmp_path / "out").mkdir()
    (tmp_path / "a").write_text("x")
    if second is not None:
        (tmp_path / "b").write_text(second)
    with pytest.raises(ToolError, match=r"ended without an error but did not write b; see its log"):
        publish(tmp_path, tmp_path / "out", ["a", "b"])
    assert list((tmp_path / "out").iterdir()) == []
