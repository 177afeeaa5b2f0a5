"""When weights die: gradual pruning over the course of training."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class CubicSchedule:
    """The cubic schedule of Zhu and Gupta, "To prune, or not to prune" (2017).

    The sparsity rises from 0 at ``start`` to its final value at ``end`` as
    ``1 - (1 - (t - start) / (end - start))**3``: fast while many weights are redundant, then slowly.
    Times are in epochs and need not be whole.

    Parameters
    ----------
    start, end : float
        First and last time at which weights die; equal for one shot.
    frequency : int
        How many times per epoch, at least 1, weights die between start and end.
    """

    start: float
    end: float
    frequency: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < float("inf"):
            raise UnsupportedError(f"A pruning schedule starts at 0 or later and ends no earlier than it starts, not "
                                   f"{self.start}..{self.end} epochs")
        if self.frequency < 1:
            raise UnsupportedError(f"A pruning schedule prunes at least once per epoch, not {self.frequency} times")

    def progress(self, time: float) -> float:
        """The part, 0..1, of the final sparsity that is due at ``time`` (in epochs)."""
        if time < self.start:
            return 0.0
        if time >= self.end:
            return 1.0
        return 1.0 - (1.0 - (time - self.start) / (self.end - self.start)) ** 3

    def density(self, time: float, final: float) -> float:
        """The density due at ``time`` on the way from 1 to ``final``."""
        return 1.0 - self.progress(time) * (1.0 - final)

    def due_steps(self, steps_per_epoch: int) -> dict[int, float]:
        """The steps (counted from 0 over all epochs) before which to prune, and the time to prune for."""
        first, last = round(self.start * steps_per_epoch), round(self.end * steps_per_epoch)
        every = max(1, steps_per_epoch // self.frequency)
        due = {step: step / steps_per_epoch for step in range(first, last, every)}
        return {**due, last: self.end}
