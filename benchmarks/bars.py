"""Write docs/bars.md: every bar of every benchmark that its committed figures miss.

    python benchmarks/bars.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[1] / "docs" / "bars.md"
HEAD = """# Bars that are missed

A benchmark holds its figures against bars: what published systems report, or what we set out to reach. These are all
that the figures in `benchmarks/results` miss; `benchmarks/bars.py` writes this page from them.
"""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")).get("bars", [])
             for path in sorted(results.glob("*.json"))}
    return "\n".join([HEAD, *_summary(found), *(line for name, bars in found.items() for line in _missed(name, bars))])


def _summary(found: dict[str, list[dict]]) -> Iterator[str]:
    yield from ("| benchmark | bars | missed |", "|---|---|---|")
    for name, bars in found.items():
        if bars:
            yield f"| `{name}` | {len(bars)} | {sum(not bar['met'] for bar in bars)} |"
    yield ""


def _missed(name: str, bars: list[dict]) -> Iterator[str]:
    missed = [bar for bar in bars if not bar["met"]]
    if missed:
        yield from (f"## {name}", "", "| | measured | bar |", "|---|---|---|")
        yield from (f"| {bar['name']} | {bar['value']:g} | {bar['op']} {bar['bound']:g} |" for bar in missed)
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
