"""Benchmarks that take hours: jobs, each with a folder of its own, resumable, and whatever is done merged.

A job that is done (its ``result.json`` is there) is not done again; a training that was broken off goes on where it
stopped. ``--limit`` breaks off all jobs after so many seconds; ``--limit 0`` only merges.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from harness import command_of, write_results

from espalier.data import Split, load
from espalier.errors import EspalierError
from espalier.flow.network import import_network
from espalier.records import Bar, Figure, write_json
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.loop import TrainingInterrupted, train

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Job:
    """A folder, and what to do in it: it returns the content of ``result.json``. Both go to another process.

    ``command`` is added to the result, where it is given.
    """

    folder: Path
    work: Callable[[Path], dict]
    command: str = ""

    @property
    def result(self) -> Path:
        return self.folder / RESULT


@dataclass(frozen=True, slots=True)
class Outcome:
    """A line for the terminal, and why the job cannot be done, if so."""

    told: str
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the results of all jobs amount to."""

    figures: Sequence[Figure]
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a data set is: a name or path, the folder of the named ones, and how many images to take (0: all)."""

    data: str
    root: str | None = None
    images: int = 0

    def split(self) -> Split:
        return _split(self)


@cache
def _split(place: Place) -> Split:
    """Loaded once per process."""
    split = load(place.data, Path(place.root) if place.root else None)
    return shortened(split, place.images) if place.images else split


def shortened(split: Split, images: int) -> Split:
    """The first so many images of both sets, for a trial."""
    return Split(*(replace(part, images=part.images[:images], labels=part.labels[:images])
                   for part in (split.train, split.test)))


def trained(config: TrainConfig, split: Split, folder: Path) -> Checkpoint:
    """Train a network of the zoo as told, or go on with it. Raises TrainingInterrupted, and what train raises."""
    network = import_network(config.network, split, config.seed, keep_batch_norm=config.trains_batch_norm)
    return train(config, split, network.graph, network.parameters, folder, fixed=network.fixed)


def do(job: Job, deadline: float) -> Outcome:
    """Do one job in this process and write its result."""
    name = job.folder.name
    if job.result.exists():
        return Outcome(f"{name}: done before")
    if time.time() >= deadline:
        return Outcome(f"{name}: not begun, out of time")
    torch.set_num_threads(1)
    started = time.time()
    signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, max(0.1, deadline - time.time()))
    try:
        found = job.work(job.folder)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        return Outcome(f"{name}: {str(stop) or 'interrupted'}")
    except EspalierError as error:
        return Outcome(f"{name}: left out: {error}", str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    write_json(job.result, {**found, "command": job.command} if job.command else found)
    reached = f"{found['test_accuracy']:.2%}" if "test_accuracy" in found else "done"
    return Outcome(f"{name}: {reached} after {time.time() - started:.0f} s")


def do_all(jobs: Sequence[Job], limit: float, processes: int) -> dict[str, str]:
    """Do the jobs in order, at most ``processes`` at a time. Returns why some cannot be done, by the folder's name."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    deadline, failures = time.time() + limit, {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(do, job, deadline): job for job in jobs if not job.result.exists() and limit > 0}
        for future in as_completed(waiting):
            outcome = future.result()
            print(outcome.told, flush=True)
            if outcome.failure:
                failures[waiting[future].folder.name] = outcome.failure
    return failures


def results_of(jobs: Iterable[Job]) -> list[dict]:
    """The results of the jobs that are done."""
    return [json.loads(job.result.read_text()) for job in jobs if job.result.exists()]


def numbers(text: str) -> list[int]:
    """``0,1,2``."""
    return [int(number) for number in text.split(",")]


def parser(name: str, description: str) -> ArgumentParser:
    """The options that every benchmark of jobs has."""
    options = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--data", help="folder of the data sets (default: ESPALIER_DATA)")
    options.add_argument("--work", type=Path, default=Path("build") / name, help="folder of the jobs")
    options.add_argument("--output", type=Path, help=f"instead of benchmarks/results/{name}.json")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--jobs", type=int, default=1, help="processes at a time")
    options.add_argument("--limit", type=float, default=1e9, help="seconds after which jobs break off; 0 only merges")
    options.add_argument("--probe-steps", type=int, default=300, help="float steps over which formats are chosen")
    options.add_argument("--seeds", type=numbers, default=[0], help="such as 0,1,2")
    options.add_argument("--images", type=int, default=0, help="take only so many images of each set, for a trial")
    return options


def carry_out(name: str, options: Namespace, jobs: Sequence[Job], findings: Callable[[list[dict]], Findings]) -> int:
    """Do the jobs and write the findings from *all* results under ``--work``; 0 if every job asked for is done."""
    command = command_of(sys.argv[1:])
    failures = do_all([replace(job, command=command) for job in jobs], options.limit, options.jobs)
    results = [json.loads(path.read_text()) for path in sorted(options.work.glob(f"*/{RESULT}"))]
    found = findings(results)
    left_out = [f"{job} is left out: {reason}" for job, reason in failures.items()]
    short = [f"Cut short for a trial: only the first {count:,} images of each set"
             for count in sorted({result["images"] for result in results} - {0})]
    write_results(name, seeds=sorted({result["seed"] for result in results}), figures=found.figures, bars=found.bars,
                  notes=". ".join([*found.notes, *short, *left_out]), output=options.output,
                  command="; ".join(dict.fromkeys(result["command"] for result in results)) or command,
                  runs=results, **found.more)
    for figure in found.figures:
        print(f"{figure.name:90} {figure.value:>12} {figure.unit}")
    done = sum(job.result.exists() for job in jobs)
    print(f"{done} of {len(jobs)} jobs asked for are done, {len(results)} in all")
    return 0 if done == len(jobs) else 1
