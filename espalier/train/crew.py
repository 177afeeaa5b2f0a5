"""The processes that train a pipeline together: one for each part, or one alone that plays all parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from espalier.errors import DataError, EspalierError

T = TypeVar("T")

RANK, SIZE = "RANK", "WORLD_SIZE"  #: of the environment, as torchrun sets them


class WorkerError(EspalierError):
    """Another part of the pipeline is gone."""


@contextmanager
def talking_to(who: str) -> Iterator[None]:
    """Raise WorkerError in place of what the process group raises."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerError(f"{who} of the pipeline is gone or does not answer") from error


@dataclass(frozen=True, slots=True)
class Crew:
    """This process among those of a pipeline.

    Parameters
    ----------
    rank : int
        The part it works on; 0 keeps the records.
    size : int
        1: this process plays all parts, and works as those of a larger crew do together, bit for bit.
    """

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        return self.size == 1

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.alone:
            return flag
        said = torch.tensor([float(flag)])
        with talking_to("Another part"):
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said.item())

    def total(self, number: float) -> float:
        """The sum of what all processes have."""
        if self.alone:
            return number
        found = torch.tensor([number], dtype=torch.float64)
        with talking_to("Another part"):
            dist.all_reduce(found)
        return float(found.item())

    def gather(self, own: T) -> list[T]:
        """What each process has, in order."""
        if self.alone:
            return [own]
        found = [own] * self.size
        with talking_to("Another part"):
            dist.all_gather_object(found, own)
        return found

    def given(self, own: T, rank: int) -> T:
        """What process ``rank`` has."""
        found = [own]
        with talking_to("Another part"):
            dist.broadcast_object_list(found, rank)
        return found[0]

    def check_same(self, what: str, arrays: Iterable[NDArray]) -> None:
        """Raise DataError, in all processes, unless all have the same ``arrays``."""
        if self.alone:
            return
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        found = self.gather(digest.hexdigest())
        for rank, other in enumerate(found):
            if other != found[0]:
                raise DataError(f"Process {rank} of the pipeline has other {what} than the first: give all the same "
                                f"files and the same command")

    def meet(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            with talking_to("Another part"):
                dist.barrier()

    def spread(self, tensor: Tensor, rank: int) -> None:
        """Make ``tensor`` that of process ``rank``, in all."""
        if not self.alone:
            with talking_to("Another part"):
                dist.broadcast(tensor, rank)


ALONE = Crew()


def in_a_group(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``torchrun``, or we, started this process as one of several."""
    return int(environment.get(SIZE, "1")) > 1


def leads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process, of those that were started together, is the one that talks to the user."""
    return int(environment.get(RANK, "0")) == 0


@contextmanager
def joined(parts: int, device: str, patience: float) -> Iterator[Crew]:
    """Meet the other processes, as the environment tells; alone where it tells nothing.

    Parameters
    ----------
    parts : int
        Of the pipeline.
    device : str
        ``"cpu"``; others are refused.
    patience : float
        Seconds after which a process that does not answer counts as gone.

    Raises
    ------
    DataError
        There are not as many processes as parts, they are not to work on CPUs, or they cannot meet.
    """
    if not in_a_group():
        yield ALONE
        return
    size = int(os.environ[SIZE])
    if size != parts:
        raise DataError(f"A pipeline of {parts} parts has one process or {parts}, not {size}")
    if device != "cpu":
        raise DataError(f"Several processes train a pipeline on CPUs, not on {device}: train on the cpu, or in one "
                        f"process")
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=patience))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"The {size} processes of the pipeline cannot meet at "
                        f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
                        f"({str(error).splitlines()[0]}): is the port in use, or a process missing?") from None
    try:
        yield Crew(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
