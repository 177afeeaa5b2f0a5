"""Train: network + data + recipe -> checkpoint and log."""

from __future__ import annotations

import os
from functools import partial
from math import isfinite, prod
from pathlib import Path

from rich.console import Console

from espalier.data import Split, load
from espalier.errors import DataError
from espalier.flow.directory import require_writable
from espalier.flow.network import import_network
from espalier.flow.steps import Steps
from espalier.ir.graph import Graph
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.crew import ALONE, Crew, in_a_group, joined
from espalier.train.fit import check_fit
from espalier.train.loop import CHECKPOINT, CONFIG, LOG, TIMELINE, finished, train
from espalier.train.processes import in_processes

PATIENCE = 600.0  #: seconds after which a process of a pipeline that does not answer counts as gone


def train_network(config: TrainConfig, output: Path, *, data_root: Path | None = None, resume: bool = True,
                  dry_run: bool = False, processes: bool = False, patience: float = PATIENCE,
                  steps: Steps | None = None) -> Checkpoint | None:
    """Train ``config.network`` on ``config.data`` into ``output``; see :func:`espalier.train.loop.train`.

    Parameters
    ----------
    data_root : Path, optional
        Folder of the named data sets.
    resume : bool
        Go on from the checkpoint in ``output`` if there is one; where that is the last, nothing is written.
    dry_run : bool
        Load data and network and check that they suit each other; train and write nothing.
    processes : bool
        Train each part of a pipeline in a process of its own. Under ``torchrun`` these are those it started, all of
        which call this; otherwise they are started here. The weights are those of one process.
    patience : float
        Seconds after which such a process that does not answer counts as gone.
    """
    steps = steps or Steps()
    if not (isfinite(patience) and patience > 0):
        raise DataError(f"Parts wait for each other for seconds above 0, not {patience:g}: give another patience")
    require_writable(output)
    if config.pipeline is None or dry_run or not processes:
        return _train(config, output, data_root, resume, dry_run, steps, ALONE)
    if in_a_group():
        with joined(config.pipeline.parts, config.device, patience) as crew:
            return _train(config, output, data_root, resume, dry_run, Steps() if crew.rank else steps, crew)
    if config.pipeline.parts > (os.cpu_count() or 1):  # what is wrong shows before so many start
        _train(config, output, data_root, resume, True, Steps(), ALONE)
    in_processes(config.pipeline.parts, partial(_one_process, config, output, data_root, resume, patience, steps.shown))
    steps.wrote(*_files(output))
    return finished(config, output)


def _files(output: Path) -> list[Path]:
    return [path for path in (output / CHECKPOINT, output / LOG, output / CONFIG, output / TIMELINE) if path.exists()]


def _one_process(config: TrainConfig, output: Path, data_root: Path | None, resume: bool, patience: float, shown: bool
                 ) -> None:
    """Of those that :func:`train_network` starts."""
    train_network(config, output, data_root=data_root, resume=resume, processes=True, patience=patience,
                  steps=Steps(Console(stderr=True) if shown else None))


def _train(config: TrainConfig, output: Path, data_root: Path | None, resume: bool, dry_run: bool, steps: Steps,
           crew: Crew) -> Checkpoint | None:
    with steps.step("load data"):
        split = load(config.data, data_root)
    with steps.step("import network"):
        network = import_network(config.network, split, config.seed, data_root,
                                 keep_batch_norm=config.trains_batch_norm)
        check_fit(config, split, network.graph, network.fixed)
    steps.tell(_summary(config, split, network.graph))
    if dry_run:
        return None
    done = finished(config, output, crew) if resume else None
    if done is not None:
        return done
    with steps.step("train", spinner=False):
        checkpoint = train(config, split, network.graph, network.parameters, output, fixed=network.fixed,
                           resume=resume, progress=steps.shown, crew=crew)
    steps.wrote(*_files(output))
    return checkpoint


def _summary(config: TrainConfig, split: Split, graph: Graph) -> str:
    weights = sum(prod(value.shape) for value in graph.parameters)
    numbers = "float32" if config.quantise is None else f"{config.quantise.widths.weight}-bit fixed point"
    kept = (f", pruned to {config.prune.method.density:.0%}" if config.prune is not None else
            f", {config.tracking.rule.density:.0%} of them tracked" if config.tracking is not None else "")
    return (f"  {graph.name}: {weights:,} weights in {numbers}{kept}; {len(split.train):,} training and "
            f"{len(split.test):,} test images; {config.epochs} epochs of batches of {config.batch}")
