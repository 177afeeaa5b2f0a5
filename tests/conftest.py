"""Builds that tests share, and the summary line of ONNX's own node cases from whichever worker ran them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bench.builds import make_build, make_trained


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with ``net.py``, ``small.npz``, ``train`` and ``build``: read only."""
    folder = make_trained(tmp_path_factory.mktemp("flow"))
    make_build(folder)
    return folder


@pytest.fixture
def build(made, tmp_path) -> Path:
    """A build directory of the test's own."""
    return Path(shutil.copytree(made / "build", tmp_path / "build"))


@dataclass(slots=True)
class NodeCaseTally:
    """What became of each of ONNX's node cases of a claimed operator, by name."""

    run: list[str] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        refused = sum(map(len, self.refused.values()))
        counts = (f"ONNX node cases: {len(self.run)} of {len(self.run) + refused} run for the claimed operators; "
                  f"refused by name: {refused}")
        return [counts, *(f"  {reason}: {', '.join(sorted(names))}" for reason, names in sorted(self.refused.items()))]


TALLY = pytest.StashKey[NodeCaseTally]()
LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def node_case_tally(request: pytest.FixtureRequest) -> NodeCaseTally:
    return request.config.stash.setdefault(TALLY, NodeCaseTally())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist sends its lines to the process that prints the summary."""
    config = session.config
    if TALLY in config.stash and hasattr(config, "workeroutput"):
        config.workeroutput["node_cases"] = config.stash[TALLY].lines()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    lines = getattr(node, "workeroutput", {}).get("node_cases")
    if lines:
        node.config.stash[LINES] = lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[TALLY].lines() if TALLY in config.stash else config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("ONNX node cases")
        for line in lines:
            terminalreporter.write_line(line)
