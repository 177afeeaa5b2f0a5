"""Parts of a pipeline in processes of their own: the weights of one process, and an end when one is gone."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from bench.networks import Chain
from torch import multiprocessing

from espalier.ir.cut import cut_points, split
from espalier.ir.differentiate import differentiate_parts
from espalier.train import mailbox
from espalier.train.calibrate import initial_state
from espalier.train.crew import Crew, WorkerError
from espalier.train.mailbox import SHARED, Rings
from espalier.train.optimise import Optimiser, Sgd, Update
from espalier.train.pipeline import Given, Schedule, run
from espalier.train.stage import Stage
from espalier.train.worker import take_part

BATCH, PARTS = 4, 3


def pipeline() -> list[Stage]:
    """The same in every process."""
    chain = Chain((2, 8, 8)).conv(4, (3, 3), (1, 1, 1, 1)).relu().pool().conv(6, (3, 3)).relu().linear(5)
    graph, rng = chain.graph(), np.random.default_rng(0)
    state = initial_state(graph, {value.name: rng.normal(0, 0.3, value.shape) for value in graph.parameters},
                          Update.BUFFERED)
    points = [value.name for value in cut_points(graph)]
    parts, made = split(graph, [points[1], points[3]]), []
    for number, (part, step) in enumerate(zip(parts, differentiate_parts(parts, formats=chain.gradient_formats),
                                              strict=True)):
        optimiser = Optimiser(part.parameters, chain.gradient_formats, Update.BUFFERED, BATCH,
                              delay=Schedule(PARTS).delay(number))
        optimiser.set(Sgd(0.05, 0.9, 0.0))
        optimiser.load(state)
        made.append(Stage(step, optimiser))
    return made


def batches(count: int) -> Given:
    rng = np.random.default_rng(1)
    return Given([(torch.tensor(rng.integers(-3000, 3000, (BATCH, 2, 8, 8))).short(),
                   torch.tensor(rng.integers(0, 5, BATCH))) for _ in range(count)])


def work(rank: int, folder: Path, leaving: int, shared: bool) -> None:
    """One process; rank ``leaving`` ends without a word once all have met."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", timedelta(seconds=20), PARTS, rank)
    dist.barrier()  # all have met
    if rank == leaving:
        os._exit(7)
    stage = pipeline()[rank]
    rings = Rings.between(Crew(rank, PARTS), stage, BATCH) if shared else Rings()
    assert (rings.came is None) == (rank == 0 or not shared)
    assert (rings.on is None) == (rank == PARTS - 1 or not shared)
    try:
        take_part(stage, batches(9), rings)
    except WorkerError as error:
        (folder / f"{rank}.txt").write_text(str(error))
        os._exit(3)
    np.savez(folder / f"{rank}.npz", **stage.optimiser.state())
    dist.destroy_process_group()


def start(folder: Path, leaving: int, shared: bool = False) -> list[int | None]:
    """The exit codes of all processes."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(rank, folder, leaving, shared)) for rank in range(PARTS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_no_memory_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages then go through the process group."""
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")
    before = set(SHARED.glob("espalier-*"))
    monkeypatch.setattr(mailbox.os, "posix_fallocate", full)
    assert mailbox._Room.new(pipeline()[0].result, BATCH) is None
    assert set(SHARED.glob("espalier-*")) <= before


@pytest.mark.parametrize("shared", [False, True])
def test_processes_learn_the_weights_of_one(tmp_path: Path, shared: bool) -> None:
    """Through the process group, or through memory that they share, of which nothing is left over."""
    before = set(SHARED.glob("espalier-*"))
    assert start(tmp_path, leaving=-1, shared=shared) == [0] * PARTS
    assert set(SHARED.glob("espalier-*")) <= before
    alone = pipeline()
    run(alone, batches(9))
    for rank, stage in enumerate(alone):
        found = np.load(tmp_path / f"{rank}.npz")
        for name, array in stage.optimiser.state().items():
            assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("leaving", [0, 2])
def test_the_others_end_when_one_is_gone(tmp_path: Path, leaving: int) -> None:
    codes = start(tmp_path, leaving)
    assert codes == [7 if rank == leaving else 3 for rank in range(PARTS)]
    assert (tmp_path / "1.txt").read_text().endswith(" of the pipeline is gone or does not answer")
