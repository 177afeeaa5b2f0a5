"""A training as several processes of this machine, one for each part of its pipeline."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from torch import multiprocessing
from torch.distributed.rendezvous import rendezvous

from espalier.errors import EspalierError
from espalier.train.crew import RANK, SIZE, WorkerError
from espalier.train.loop import TrainingInterrupted

ADDRESS = "127.0.0.1"
GRACE = 30.0  #: seconds
CANNOT, GONE, STOPPED = "cannot", "gone", "stopped"  #: how a process says that it ends, most telling first


@dataclass(frozen=True, slots=True)
class _Ended:
    how: str
    sentence: str

    def error(self) -> EspalierError:
        kinds = {CANNOT: EspalierError, GONE: WorkerError, STOPPED: TrainingInterrupted}
        return kinds[self.how](self.sentence)


def in_processes(count: int, work: Callable[[], object]) -> None:
    """Do ``work``, which can be pickled, in so many processes, whose environment says who each is as torchrun's does.

    Raises what the first of them raised to the user, the one to blame before those that it took with it; WorkerError
    where one ended without a word. Control-C, and SIGTERM likewise, is passed on for them to answer; where this process
    is killed, they take it for Control-C, too.
    """
    store, _, _ = next(rendezvous(f"tcp://{ADDRESS}:0", 0, 1))  # on a port that is free
    spawn, threads = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 1) // count)
    processes, ears, mouths = [], [], []
    for rank in range(count):
        ear, mouth = spawn.Pipe(duplex=False)
        environment = {RANK: str(rank), "LOCAL_RANK": str(rank), SIZE: str(count), "MASTER_ADDR": ADDRESS,
                       "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
                       "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        processes.append(spawn.Process(target=_work, args=(work, environment, mouth)))
        ears.append(ear)
        mouths.append(mouth)
    with _passed_on(processes):
        for process in processes:
            with _held_back():
                process.start()
        for mouth in mouths:
            mouth.close()
        _wait_for(processes)
    ended = [found for ear in ears if (found := _heard(ear)) is not None]
    for how in (CANNOT, STOPPED, GONE):
        for found in ended:
            if found.how == how:
                raise found.error()
    for rank, process in enumerate(processes):
        if process.exitcode:
            raise WorkerError(f"The process of part {rank} ended with status {process.exitcode}: run the same command "
                              f"again, and it goes on from the last checkpoint")


@contextmanager
def _held_back() -> Iterator[None]:
    """Control-C waits; that of a process which is started meanwhile until it says that it may come."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _passed_on(processes: Sequence[SpawnProcess]) -> Iterator[None]:
    """Tell the processes of each Control-C or SIGTERM."""
    def tell(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGINT)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for(processes: Sequence[SpawnProcess]) -> None:
    """Until all have ended. Those that go on, or hang, GRACE seconds after one has failed are killed."""
    deadline = None
    while running := [process for process in processes if process.is_alive()]:
        if deadline is None and any(process.exitcode for process in processes):  # asked of all that run no more
            deadline = time.monotonic() + GRACE
        elif deadline is not None and time.monotonic() >= deadline:
            for process in running:
                process.kill()
        wait([process.sentinel for process in running],
             None if deadline is None else max(0.0, deadline - time.monotonic()))


def _heard(ear: Connection) -> _Ended | None:
    """What a process that is no more has said, if anything."""
    try:
        found = ear.recv()
    except EOFError:
        return None
    assert isinstance(found, _Ended), "as sent below"
    return found


def _work(work: Callable[[], object], environment: dict[str, str], mouth: Connection) -> None:
    os.setpgid(0, 0)  # Control-C of the terminal is for the process that passes it on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    threading.Thread(target=_outlives, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work()
    except TrainingInterrupted as error:
        mouth.send(_Ended(STOPPED, str(error)))
    except KeyboardInterrupt:
        mouth.send(_Ended(STOPPED, "Training was interrupted: run the same command again, and it goes on from the last "
                                   "checkpoint"))
    except WorkerError as error:
        mouth.send(_Ended(GONE, str(error)))
    except EspalierError as error:
        mouth.send(_Ended(CANNOT, str(error)))
    else:
        return
    raise SystemExit(1)


def _outlives() -> None:
    """Where the process that started this one is no more, end as after Control-C, or else after GRACE seconds."""
    parent = parent_process()
    assert parent is not None, "it is started by another"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(1)
