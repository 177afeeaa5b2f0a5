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
    """What a pipeline does once it is full.

    Parameters
    ----------
    batch_seconds : float
        From one batch to the next.
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


def predict(parts: Sequence[Part], link: Link, scheme: Scheme, micro_batches: int = 1) -> Prediction:
    """What ``parts``, in order, do together. ``micro_batches`` is of the synchronous scheme."""
    if not parts or micro_batches < 1:
        raise UnsupportedError(f"A pipeline has at least 1 part and 1 micro-batch, not {len(parts)} and "
                               f"{micro_batches}")
    alone = sum(part.seconds for part in parts)
    under_way = [2 * (len(parts) - 1 - number) + 1 for number in range(len(parts))]  # batches or micro-batches
    copies = under_way if scheme is Scheme.STASHED else [1] * len(parts)
    if scheme is Scheme.SYNCHRONOUS:
        batch, divided = _synchronous(parts, link, micro_batches), micro_batches
        under_way = [min(count, micro_batches) for count in under_way]
    else:
        batch, divided = _full(parts, link), 1
    return Prediction(
        batch, alone / batch, tuple(1 - part.seconds / batch for part in parts),
        tuple(count * part.kept // divided for count, part in zip(under_way, parts, strict=True)),
        tuple(count * part.weights for count, part in zip(copies, parts, strict=True)))


def _full(parts: Sequence[Part], link: Link) -> float:
    """A cycle: the slowest part, or message."""
    return max(*(part.seconds for part in parts), *(link.seconds(part.sent) for part in parts[:-1]), 0.0)


def _synchronous(parts: Sequence[Part], link: Link, micro_batches: int) -> float:
    """Forward in order and back, all micro-batches, by when each pass of each part can start at the earliest."""
    free = [0.0] * len(parts)
    there = [0.0] * micro_batches
    for number, part in enumerate(parts):
        for micro in range(micro_batches):
            free[number] = max(free[number], there[micro]) + part.forward / micro_batches
            onward = link.seconds(part.sent / micro_batches) if number + 1 < len(parts) else 0.0
            there[micro] = free[number] + onward
    for number, part in reversed([*enumerate(parts)]):
        for micro in range(micro_batches):
            free[number] = max(free[number], there[micro]) + part.backward / micro_batches
            there[micro] = free[number] + (link.seconds(parts[number - 1].sent / micro_batches) if number else 0.0)
    return max(free)
