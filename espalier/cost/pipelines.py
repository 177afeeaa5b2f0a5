"""How fast a pipeline of accelerators trains, and what each must hold: a model of the schemes of ``train``.

A part's passes take a known time, and messages a link of known speed; a link carries results one way and gradients the
other, each at its full speed, while parts compute. Bytes are those of the activations that wait for their backward
pass, of weights, and of further copies of weights where a scheme stashes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from espalier.errors import UnsupportedError


class Scheme(Enum):
    """How a pipeline is kept full."""

    STALE = "stale"                #: one copy of the weights (Zhang and Abdelrahman, arXiv 1912.12675)
    STASHED = "stashed"            #: the weights of each batch under way kept (PipeDream, SOSP 2019)
    SYNCHRONOUS = "synchronous"    #: micro-batches, and empty after each batch (1F1B, as in PipeDream-Flush)


@dataclass(frozen=True, slots=True)
class Part:
    """What one accelerator does for a batch.

    Parameters
    ----------
    forward, backward : float
        Seconds; ``backward`` with the update.
    sent : int
        Bytes of its result, which are those of the gradient that comes back.
    kept : int
        Bytes of what its backward pass needs of the forward pass.
    weights : int
        Bytes that a copy of its weights takes.
    """

    forward: float
    backward: float
    sent: int
    kept: int
    weights: int

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True, slots=True)
class Link:
    """From one accelerator to the next, each way: bytes a second, and seconds until the first is there."""

    rate: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.latency < 0:
            raise UnsupportedError(f"A link carries more than 0 bytes a second, after 0 seconds or more, not "
                                   f"{self.rate:g} after {self.latency:g}")

    def seconds(self, sent: float) -> float:
        """What a message of so many bytes takes."""
        return self.latency + sent / self.rate


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a pipeline does.

    Parameters
    ----------
    batch_seconds : float
        From one batch to the next, or their mean where it runs empty.
    speed_up : float
        Over one accelerator that does all parts.
    idle : tuple of float
        The part of the time, 0..1, that each part waits.
    activation_bytes, weight_bytes : tuple of int
        What each part holds: of all batches under way, and in all copies.
    """

    batch_seconds: float
    speed_up: float
    idle: tuple[float, ...]
    activation_bytes: tuple[int, ...]
    weight_bytes: tuple[int, ...]


def predict(parts: Sequence[Part], link: Link, scheme: Scheme, micro_batches: int = 1, *, stretch: int | None = None,
            alone: float | None = None) -> Prediction:
    """What ``parts``, in order, do together.

    Parameters
    ----------
    micro_batches : int
        Of the synchronous scheme.
    stretch : int, optional
        Batches after which a pipeline of the other schemes runs empty; by default it stays full.
    alone : float, optional
        Seconds of a batch on one accelerator that does all parts, where that is known; by default their sum. On a
        processor with caches the whole can take longer than its parts.
    """
    if not parts or micro_batches < 1 or (stretch is not None and stretch < 1):
        raise UnsupportedError(f"A pipeline has at least 1 part and 1 micro-batch, and a stretch at least 1 batch, not "
                               f"{len(parts)}, {micro_batches} and {stretch}")
    alone = sum(part.seconds for part in parts) if alone is None else alone
    under_way = [2 * (len(parts) - 1 - number) + 1 for number in range(len(parts))]  # batches or micro-batches
    copies = under_way if scheme is Scheme.STASHED else [1] * len(parts)
    if scheme is Scheme.SYNCHRONOUS:
        batch, divided = _run_empty(parts, link, micro_batches, 1 / micro_batches), micro_batches
        under_way = [min(count, micro_batches) for count in under_way]
    else:
        batch, divided = _full(parts, link) if stretch is None else _run_empty(parts, link, stretch) / stretch, 1
    return Prediction(
        batch, alone / batch, tuple(1 - part.seconds / batch for part in parts),
        tuple(count * part.kept // divided for count, part in zip(under_way, parts, strict=True)),
        tuple(count * part.weights for count, part in zip(copies, parts, strict=True)))


def _full(parts: Sequence[Part], link: Link) -> float:
    """A cycle: the slowest part, or message."""
    return max(*(part.seconds for part in parts), *(link.seconds(part.sent) for part in parts[:-1]), 0.0)


def _run_empty(parts: Sequence[Part], link: Link, count: int, size: float = 1.0) -> float:
    """All of so many batches forward and back, from empty to empty, by when each pass can start at the earliest.

    Each part takes a batch forward and one back in turn, as in :class:`espalier.train.pipeline.Schedule`; ``size`` of
    each is the fraction of a whole batch.
    """
    free = [0.0] * len(parts)
    result_there, gradient_there = ([[0.0] * count for _ in parts] for _ in range(2))
    for cycle in range(count + 2 * (len(parts) - 1)):
        for number, part in enumerate(parts):
            ahead, back = cycle - number, cycle - 2 * (len(parts) - 1) + number
            if 0 <= ahead < count:
                free[number] = max(free[number], result_there[number][ahead]) + part.forward * size
                if number + 1 < len(parts):
                    result_there[number + 1][ahead] = free[number] + link.seconds(part.sent * size)
            if 0 <= back < count:
                free[number] = max(free[number], gradient_there[number][back]) + part.backward * size
                if number:
                    gradient_there[number - 1][back] = free[number] + link.seconds(parts[number - 1].sent * size)
    return max(free)
