"""The steps of a stage as a person follows them: named, timed, and what each wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


class Steps:
    """Times named steps and collects the files that were written.

    Parameters
    ----------
    console : Console or None
        Where each step is told with its time; None tells nothing.

    Members
    -------
    seconds : dict
        Time of each step by name. Never written to files, so that these depend on inputs alone.
    written : list of Path
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self.written: list[Path] = []

    @property
    def shown(self) -> bool:
        """Whether anybody watches."""
        return self.console is not None

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[None]:
        """Time what is done inside, and tell it when it succeeds. What shows its own progress wants no spinner."""
        start = time.perf_counter()
        if self.console is None or not spinner:
            yield
        else:
            with self.console.status(name):
                yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.tell(f"  {name}: {self.seconds[name]:.2f} s")

    def tell(self, line: str) -> None:
        """Print a line for people, as it is."""
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def wrote(self, *paths: Path) -> None:
        """Remember what was written."""
        self.written += paths
