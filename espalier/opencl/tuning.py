"""The search for schedules: of every kernel of a network, on a device, the choice that runs fastest.

Each round compiles the whole network, every kernel with another of its choices, and times the kernels one by one where
they stand: what lies in caches is what will lie there. Kernels of one kind, shape and types search together, and try no
choice twice. What was measured is kept in a journal (JSON lines, by Optuna), by device: another run goes on from there,
and a network whose layers were seen in another one finds them known. Nothing else is in it, so that a search may be
killed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState, create_trial

from espalier.errors import DataError
from espalier.ir.graph import Graph
from espalier.opencl.bundle import Bundle
from espalier.opencl.choice import Choice
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.optimisations import Optimisations
from espalier.opencl.runtime import Session

RUNS = 5   #: of a network, of which each kernel's shortest time counts
RANK = "rank"  #: what a search is for: a choice's number, the shortest by estimate first
MOST = 32  #: choices that are looked at
RANDOM = 5  #: choices that are drawn before what was measured says where to look
RECORD = b'{"op_code":'  #: how each line of a journal begins
SIDES = 9  #: runs of each of two networks that are compared


@dataclass(frozen=True, slots=True)
class Tuned:
    """A network with the choices that were found.

    Parameters
    ----------
    bundle : Bundle
        The one of the two that is faster.
    device : str
    estimated, seconds : float
        Of an image, medians of runs in turns: with the choices of the estimate, and with those found.
    rounds : int
        Networks compiled and timed.
    kernels : dict
        By a kernel's name: its choice, its time, and that of the estimate's choice if it was measured.
    """

    bundle: Bundle
    device: str
    estimated: float
    seconds: float
    rounds: int
    kernels: dict[str, tuple[Choice, float, float | None]]


@dataclass(slots=True)
class _Search:
    """Of all kernels that are alike.

    Parameters
    ----------
    study : optuna.Study
        Of the journal: measurements alone.
    choices : sequence of Choice
    guesses : optuna.Study
        Of this process: what was measured says in it where to look.
    running : dict
        By kernel, the choices' numbers that are being measured.
    """

    study: optuna.Study
    choices: Sequence[Choice]
    guesses: optuna.Study
    running: dict[str, int] = field(default_factory=dict)

    @classmethod
    def known(cls, study: optuna.Study, choices: Sequence[Choice]) -> _Search:
        """One that goes on from what ``study`` has."""
        found = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        guesses = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=len(found)))
        guesses.add_trials(found)
        return cls(study, choices, guesses)

    @property
    def done(self) -> dict[int, float]:
        """The shortest time of each choice that was tried."""
        found: dict[int, float] = {}
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            if trial.value is not None:
                found[trial.params[RANK]] = min(trial.value, found.get(trial.params[RANK], trial.value))
        return found

    @property
    def tried(self) -> set[int]:
        """The numbers of the choices that were measured, or are."""
        return {*self.done, *self.running.values()}

    def ask(self, name: str) -> Choice:
        """A choice that was not tried: at first that of the estimate, later one that is likely to be good."""
        assert name not in self.running, "each kernel that is asked for is measured"
        left = sorted(set(range(len(self.choices))) - self.tried)
        guess = 0 if left[0] == 0 else self._guess()
        self.running[name] = rank = min(left, key=lambda rank: abs(rank - guess))
        return self.choices[rank]

    def _guess(self) -> int:
        trial = self.guesses.ask()
        rank = trial.suggest_int(RANK, 0, len(self.choices) - 1)
        self.guesses.tell(trial, state=TrialState.FAIL)  # measured may be a neighbour
        return rank

    def tell(self, name: str, seconds: float) -> None:
        if name in self.running:
            measured = create_trial(params={RANK: self.running.pop(name)}, value=seconds,
                                    distributions={RANK: IntDistribution(0, len(self.choices) - 1)})
            self.study.add_trial(measured)
            self.guesses.add_trial(measured)

    @property
    def best(self) -> Choice:
        done = self.done
        return self.choices[min(done, key=lambda rank: done[rank])] if done else self.choices[0]


class _Searches:
    """Of a network's kernels, on a device."""

    def __init__(self, storage: JournalStorage, device: str, trials: int) -> None:
        self.storage, self.device, self.trials = storage, device, trials
        self.by_signature: dict[str, _Search] = {}
        self.by_kernel: dict[str, _Search] = {}

    def ask(self, name: str, signature: str, choices: Sequence[Choice]) -> Choice:
        search = self._of(name, signature, choices)
        return search.best if self._is_over(search) else search.ask(name)

    def best(self, name: str, signature: str, choices: Sequence[Choice]) -> Choice:
        return self._of(name, signature, choices).best

    def left(self) -> bool:
        """Whether any kernel has choices to try."""
        return any(not self._is_over(search) for search in self.by_signature.values())

    def _is_over(self, search: _Search) -> bool:
        return len(search.choices) == 1 or len(search.tried) >= min(self.trials, len(search.choices))

    def _of(self, name: str, signature: str, choices: Sequence[Choice]) -> _Search:
        choices = choices[:MOST]
        key = hashlib.sha256(f"{self.device} {signature} {choices}".encode()).hexdigest()[:20]
        if key not in self.by_signature:
            study = optuna.create_study(storage=self.storage, study_name=key, load_if_exists=True)
            self.by_signature[key] = _Search.known(study, choices)
        self.by_kernel[name] = self.by_signature[key]
        return self.by_kernel[name]


def tune(graph: Graph, parameters: Mapping[str, NDArray], options: Optimisations, open_session: Callable[
        [Bundle], Session], journal: Path, *, data: str = "", trials: int = 16, seconds: float | None = None,
        told: Callable[[int, float], None] = lambda rounds, best: None) -> Tuned:
    """Search until every kernel has tried ``trials`` choices (or all that it has), or ``seconds`` have passed.

    ``told`` hears of each round: its number, and the seconds of all kernels with the best choices so far. Raises
    DataError where the journal is none.
    """
    began, rounds = time.perf_counter(), 0
    estimated = compile_kernels(graph, parameters, options, data)
    session = open_session(estimated)
    searches = _Searches(_storage(journal), _name(session), trials)
    chosen = compile_kernels(graph, parameters, options, data, searches.best)  # and which kernels there are
    while searches.left() and (seconds is None or time.perf_counter() - began < seconds):
        trial = open_session(compile_kernels(graph, parameters, options, data, searches.ask))
        for name, took in kernel_seconds(trial).items():
            if name in searches.by_kernel:
                searches.by_kernel[name].tell(name, took)
        rounds += 1
        told(rounds, sum(min(search.done.values(), default=0.0) for search in searches.by_kernel.values()))
    if rounds:
        chosen = compile_kernels(graph, parameters, options, data, searches.best)
    kernels = {name: (search.best, min(search.done.values()), search.done.get(0))
               for name, search in searches.by_kernel.items() if search.done}
    before, after = compared(session, open_session(chosen))
    return Tuned(chosen if after < before else estimated, session.device.name.strip(), before, after, rounds, kernels)


def kernel_seconds(session: Session) -> dict[str, float]:
    """The shortest time of each kernel, by its name."""
    runs = [session.kernel_times() for _ in range(RUNS + 1)][1:]
    return {found[0].layer: min(one.seconds for one in found)
            for found in zip(*runs, strict=True)}


def compared(*sessions: Session) -> list[float]:
    """The median seconds of an image of each, in turns."""
    took: list[list[float]] = [[] for _ in sessions]
    for _ in range(SIDES):
        for session, own in zip(sessions, took, strict=True):
            blank = [np.zeros((1, *image.shape), np.int64) for image in session.bundle.images]
            began = time.perf_counter()
            session.run(*blank)
            own.append(time.perf_counter() - began)
    return [median(own) for own in took]


def _name(session: Session) -> str:
    device = session.device
    return f"{device.platform.version} {device.name} {device.max_compute_units}"


def _storage(path: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _mend(path)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no journal of a search ({error}): name another file, or remove it") from None


def _mend(path: Path) -> None:
    """Cut the last line of a journal where it was not written to its end, as a full disk leaves it.

    Raises ValueError where it is no record's.
    """
    lock = JournalFileSymlinkLock(str(path))  # no other search is writing
    lock.acquire()
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        last = lines[-1] if lines else b""
        if last.endswith(b"\n"):
            json.loads(last)
        elif not (last.startswith(RECORD) or RECORD.startswith(last.rstrip(b"\0"))):
            raise ValueError("its last line is no record")
        elif last:
            os.truncate(path, sum(map(len, lines[:-1])))
    finally:
        lock.release()
