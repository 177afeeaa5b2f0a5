"""How external memory answers."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.errors import FitError


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTiming:
    """The timing of external memory, in cycles of the machine.

    Members
    -------
    latency : int
        From a burst's address to its first beat, and from its last beat to the answer.
    beat_cycles : int
        A beat, read or written, follows another after so many: the inverse of the bandwidth.
    queue : int
        Bursts that it takes before the first of them is done, in each direction.
    refresh_every, refresh_cycles : int
        Every so many (0: never) none moves for so many.
    stalls : tuple of int
        Percent of cycles in which each of the channels AW, W, B, AR, R does not answer.
    seed : int
        Of the stalls.
    errors : int
        Percent of answers that are errors.
    """

    latency: int = 30
    beat_cycles: int = 1
    queue: int = 4
    refresh_every: int = 0
    refresh_cycles: int = 0
    stalls: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    seed: int = 0
    errors: int = 0

    def __post_init__(self) -> None:
        for name, least in (("latency", 0), ("beat_cycles", 1), ("queue", 1), ("refresh_every", 0),
                            ("refresh_cycles", 0), ("seed", 0)):
            if not least <= getattr(self, name) < 1 << 31:
                raise FitError(f"{name} of a memory must be at least {least}, not {getattr(self, name)}")
        if 0 < self.refresh_every <= self.refresh_cycles:
            raise FitError(f"A memory must work between refreshes: every {self.refresh_every} cycles none moves for "
                           f"{self.refresh_cycles}")
        if any(not 0 <= percent < 100 for percent in self.stalls) or not 0 <= self.errors <= 100:
            raise FitError(f"Channels of a memory stall in 0..99 percent of cycles and err in 0..100, not "
                           f"{', '.join(map(str, self.stalls))} and {self.errors}")

    @property
    def slowest(self) -> int:
        """Cycles in which a beat moves, but for very unlikely stalls."""
        cycles = self.latency + self.beat_cycles + self.refresh_cycles
        return 20 * cycles * 100 // (100 - max(self.stalls))

    @property
    def steady(self) -> bool:
        """Whether it answers as fast at any time."""
        return not any((self.refresh_every and self.refresh_cycles, *self.stalls, self.errors))
