"""The summary line of ONNX's own node cases."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest


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


@pytest.fixture
def node_case_tally(request: pytest.FixtureRequest) -> NodeCaseTally:
    return request.config.stash.setdefault(TALLY, NodeCaseTally())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if TALLY in config.stash:
        terminalreporter.section("ONNX node cases")
        for line in config.stash[TALLY].lines():
            terminalreporter.write_line(line)
