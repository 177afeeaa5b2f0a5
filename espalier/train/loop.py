"""The training loop: in fixed point or float32, with or without pruning, resumable to the bit."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from espalier.data import Split, batches
from espalier.errors import DataError, EspalierError
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.fold import fold_batch_norm
from espalier.ir.graph import Graph
from espalier.ir.view import conv_shape
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import master_format
from espalier.records import write_all_atomically
from espalier.train.balance import even_cuts
from espalier.train.calibrate import initial_state, quantise
from espalier.train.checkpoint import Checkpoint, EpochLog, Position
from espalier.train.config import TrainConfig
from espalier.train.crew import ALONE, Crew, WorkerError
from espalier.train.device_data import DeviceData, draw_moves
from espalier.train.fit import check_fit, frozen_names
from espalier.train.fold import folded
from espalier.train.optimise import Optimiser, Sgd, Update
from espalier.train.pipelined import PipelinedSteps
from espalier.train.probe import probe
from espalier.train.ranges import check_numbers
from espalier.train.sparsity import Sparsity
from espalier.train.step import TrainingStep, accuracy
from espalier.train.structure import changed, named_size, narrowed, saliency
from espalier.train.timeline import Timeline, told, trace

CHECKPOINT, LOG, CONFIG = "checkpoint.safetensors", "log.jsonl", "config.yaml"
TIMELINE = "timeline.json"  #: of a pipeline of several processes


class TrainingInterrupted(EspalierError):
    """The user stopped a run; it is saved and can go on."""


def train(config: TrainConfig, split: Split, graph: Graph, parameters: Mapping[str, NDArray],
          folder: Path | None = None, *, fixed: Collection[str] = (), resume: bool = True, progress: bool = False,
          crew: Crew = ALONE) -> Checkpoint:
    """Train the float network ``graph`` from ``parameters`` on ``split``.

    Parameters
    ----------
    folder : Path or None
        Where ``checkpoint.safetensors``, ``log.jsonl`` (one line an epoch) and ``config.yaml`` (complete) are
        kept, written after each epoch.
    fixed : collection of str
        Parameters that are no weights to train by the network's own definition, besides those that ``config`` freezes.
    resume : bool
        Go on from the checkpoint in ``folder`` if there is one. The outcome is bit for bit that of a
        run without a break, wherever it broke off.
    progress : bool
        Show a bar on the terminal.
    crew : Crew
        The processes of a pipeline; each calls this with the same arguments, and the first writes.

    Raises
    ------
    DataError
        The checkpoint is damaged or of another run, images do not suit the network, weights are not finite,
        training diverged, or a file cannot be written.
    TrainingInterrupted
        Control-C: the state, even within an epoch, is saved first.
    WorkerError
        Another process of a pipeline is gone; what all had trained when it last ran empty is saved.
    """
    check_fit(config, split, graph, fixed)
    start = _resumed(config, folder, crew) if resume and folder is not None else None
    try:
        state = start or prepare(config, split, graph, parameters, fixed)
    except KeyboardInterrupt:
        raise TrainingInterrupted("Training was interrupted before its first step, and nothing was written: run the "
                                  "same command again") from None
    if state.position.epoch >= config.epochs:
        return state
    crew.check_same("options", [np.frombuffer(json.dumps(config.to_json(), sort_keys=True).encode(), np.uint8)])
    crew.check_same("data", (array for part in (split.train, split.test) for array in (part.images, part.labels)))
    crew.check_same("weights to start from", (state.state[name] for name in sorted(state.state)))
    if config.pipeline is not None and not config.pipeline.cuts:
        config = replace(config, pipeline=config.pipeline.with_cuts(even_cuts(state, split.train, crew)))
        state = replace(state, config=config)
    named = (graph, parameters)
    with _bar(progress and not crew.rank, config.epochs) as bar:
        if config.quantise is not None and state.update is Update.FLOAT:
            state = _quantised(_Run(config, split, state, folder, bar, named, crew).train(config.quantise.start), split)
        if config.folds:
            named = fold_batch_norm(graph, parameters)
        return _Run(config, split, state, folder, bar, named, crew).train(config.epochs)


def finished(config: TrainConfig, folder: Path, crew: Crew = ALONE) -> Checkpoint | None:
    """The last checkpoint of this run, if any process has it in ``folder``. Raises DataError as :func:`train` does."""
    found = _resumed(config, folder, crew)
    return found if found is not None and found.position.epoch >= config.epochs else None


def prepare(config: TrainConfig, split: Split, graph: Graph, parameters: Mapping[str, NDArray],
            fixed: Collection[str] = ()) -> Checkpoint:
    """The checkpoint before the first step: in a run that starts in fixed point, quantised."""
    check_numbers(parameters)
    frozen = frozen_names(config, graph, fixed)
    if config.structure is not None and config.structure.seed < 1:
        graph, parameters = narrowed(graph, parameters, frozen, config.structure.seed)
    start = Checkpoint(graph, {}, initial_state(graph, parameters, Update.FLOAT), config, frozen=frozen)
    return start if config.quantise is None or config.quantise.start else _quantised(start, split)


def _quantised(float_: Checkpoint, split: Split) -> Checkpoint:
    """The same in fixed point: formats from the steps to come; weights, momenta and masks taken over.

    Batch norms that are to be are folded before, so that the steps to come are those of the network that is trained on.
    """
    float_ = folded(float_) if float_.config.folds else float_
    config, rule = float_.config, float_.config.quantise
    assert rule is not None, "the run is one in fixed point"
    found = quantise(float_.graph, float_.weights, probe(float_, split.train), rule.widths, config.loss, rule.headroom,
                     rule.update)
    momenta = {} if rule.update is Update.NARROW else {  # whose momentum has another meaning, and starts from zero
        f"{value.name}.momentum": master_format(value.format).quantise(float_.state[f"{value.name}.momentum"])
        for value in found.graph.parameters if isinstance(value.format, Fixed)}
    momenta |= {f"{value.name}.momentum": float_.state[f"{value.name}.momentum"]
                for value in found.graph.learned() if not isinstance(value.format, Fixed)}
    masks = {f"{name}.live": mask for name, mask in float_.live.items()}
    return replace(float_, graph=found.graph, gradient_formats=found.gradient_formats,
                   state={**found.state, **momenta, **masks})


def _resumed(config: TrainConfig, folder: Path, crew: Crew) -> Checkpoint | None:
    """The checkpoint to go on from: where folders are not shared, the one that goes furthest, in all processes."""
    found = _own(config, folder)
    places = crew.gather(None if found is None else (found.position.epoch, found.position.step))
    if all(place == places[0] for place in places):
        return found
    return crew.given(found, max(range(crew.size), key=lambda rank: places[rank] or (-1, 0)))


def _own(config: TrainConfig, folder: Path) -> Checkpoint | None:
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    found = Checkpoint.load(path)
    theirs = found.config.pipeline
    if config.pipeline is not None and not config.pipeline.cuts and theirs and theirs.parts == config.pipeline.parts:
        config = replace(config, pipeline=config.pipeline.with_cuts(theirs.cuts))
    if replace(found.config, device=config.device) != config:
        before, now = found.config.to_json(), config.to_json()
        key = next(key for key in now if key != "device" and now[key] != before[key])
        raise DataError(f"Checkpoint {path} is of a run with {key} = {before[key]!r}, not {now[key]!r}: choose "
                        f"another folder, or do not resume")
    return replace(found, config=config)


@contextmanager
def _bar(shown: bool, epochs: int) -> Iterator[Progress]:
    columns = (TextColumn("epoch {task.fields[epoch]}/" + str(epochs)), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        yield bar


@dataclass(slots=True)
class _Stop:
    """Whether the user has asked to stop."""

    requested: bool = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Turn the first Control-C into a request, so that a step is never cut in two; the second acts at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Run:
    """A run under way, of the ``named`` network and its parameters before the first step."""

    def __init__(self, config: TrainConfig, split: Split, start: Checkpoint, folder: Path | None, bar: Progress,
                 named: tuple[Graph, Mapping[str, NDArray]], crew: Crew = ALONE) -> None:
        self.config, self.split, self.folder, self.bar, self.named, self.crew = config, split, folder, bar, named, crew
        image = start.graph.inputs[0].format
        self.data = DeviceData(split.train, image, config.device, config.augment)
        self.test = DeviceData(split.test, image, config.device)
        self.steps = len(split.train) // config.batch
        self.widening = {} if config.structure is None else config.structure.due_steps(self.steps)
        self.log = list(start.log)
        self.timelines: list[Timeline] = []
        self.pause: tuple[int, int] | None = None  #: epoch and step of the last in which the whole network was there
        self._enter(start)

    def _enter(self, start: Checkpoint) -> None:
        """Take over the network and the state of ``start``, of whatever widths."""
        self.start, self.graph, config = start, start.graph, self.config
        self.optimiser = Optimiser(self.graph.learned(), start.gradient_formats, start.update, config.batch,
                                   config.device, start.frozen, self.graph.statistics())
        self.optimiser.load(start.state)
        self.step_graph = differentiate(self.graph, config.loss, start.gradient_formats, start.frozen)
        self.step = TrainingStep(self.step_graph, self.optimiser, self.data, config.augment)
        self.layers = {layer.w.name: conv_shape(self.graph, layer) for layer in self.graph.layers()}
        self.sparsity = Sparsity(config, self.steps, {name: shape for name, shape in self.layers.items()
                                                      if name not in start.frozen}, self.named[1])
        self.pipelined = None if config.pipeline is None else PipelinedSteps(
            config.pipeline, start, self.optimiser, self.data, self.crew, self.step.tally)

    def train(self, epochs: int) -> Checkpoint:
        """From the start's position on until so many epochs are done in all."""
        position = self.start.position
        self.step.tally.copy_(torch.tensor([position.loss_sum, position.correct], dtype=torch.float64))
        try:
            with _interruptible() as stop:
                for epoch in range(position.epoch, epochs):
                    self._epoch(epoch, position.step if epoch == position.epoch else 0, stop)
                    self._save(Position(epoch + 1))
                    self.pause = epoch + 1, 0
                if self.crew.any(stop.requested and epochs < self.config.epochs):
                    self._interrupt(epochs, 0)
        except WorkerError as error:
            if self.pause is not None:
                self._save_within(*self.pause, everyone=True)  # whoever is left: the first may be the one that is gone
            raise WorkerError(f"{error}; what was trained before is {self._where()}") from None
        return self._checkpoint(Position(epochs))

    def _epoch(self, epoch: int, first: int, stop: _Stop) -> None:
        sgd = self.config.sgd_of(epoch)
        self.optimiser.set(sgd)
        order, moves = self._order(epoch)
        if first == self.steps:  # what is left to do is to look at the test set
            self.step.take(order[-1], None if moves is None else moves[-1])
        task = self.bar.add_task(self._told(), total=self.steps, completed=first, epoch=epoch + 1)
        for number, end in pairwise(self._pauses(epoch, first)):
            self.pause = epoch, number
            if self.crew.any(stop.requested):
                self._interrupt(epoch, number)
            at = epoch * self.steps + number
            if at in self.widening:
                self._change_widths(self.widening[at], order[number:], None if moves is None else moves[number:])
                self.optimiser.set(sgd)
            batch = order[number], None if moves is None else moves[number]
            self.sparsity.before(at, self.optimiser, self.step, batch, sgd.learning_rate)
            if self.pipelined is None:
                self.step(*batch)
            else:
                self._stretch(self.pipelined, order, moves, (epoch, number, end), sgd)
            self.sparsity.after(epoch * self.steps + end - 1, self.optimiser)
            self.bar.advance(task, end - number)
        self.bar.remove_task(task)
        self.pause = epoch, self.steps
        self._record(epoch, sgd.learning_rate)

    def _pauses(self, epoch: int, first: int) -> list[int]:
        """The steps of an epoch, from ``first`` on and its end included, between which the whole network is there."""
        pipeline, later = self.config.pipeline, range(first + 1, self.steps)
        if first == self.steps:
            return [first]
        if pipeline is None:
            return [first, *later, self.steps]
        due = self.sparsity.pauses | self.widening.keys()
        return [first, *(number for number in later if number % pipeline.stretch == 0
                         or epoch * self.steps + number in due), self.steps]

    def _stretch(self, pipelined: PipelinedSteps, order: torch.Tensor, moves: torch.Tensor | None,
                 place: tuple[int, int, int], sgd: Sgd) -> None:
        """Through the pipeline, until it has run empty. ``place``: epoch, first step and the one after the last."""
        epoch, first, end = place
        assert self.config.pipeline is not None, "there is one"
        changing = (*self.optimiser.state_tensors, self.step.tally)
        before = [tensor.clone() for tensor in changing]
        try:
            pipelined([*order[first:end]], None if moves is None else [*moves[first:end]], sgd,
                      stale=self.config.pipeline.stale(epoch))
        except WorkerError:
            for tensor, old in zip(changing, before, strict=True):
                tensor.copy_(old)
            raise
        self.step.take(order[end - 1], None if moves is None else moves[end - 1])

    def _order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The indices (and moves) of every batch of an epoch, on the device."""
        seed, device = self.config.seed, self.config.device
        order = np.stack([*batches(self.split.train, self.config.batch, seed, epoch, drop_last=True)])
        if not self.config.augment:
            return torch.from_numpy(order).to(device), None
        moves = np.stack([draw_moves(self.config.batch, seed, epoch, number) for number in range(self.steps)])
        return torch.from_numpy(order).to(device), torch.from_numpy(moves).to(device)

    def _change_widths(self, time: float, order: torch.Tensor, moves: torch.Tensor | None) -> None:
        """Grow or shed units, as is due at ``time``, by their saliency on the next batches of the epoch."""
        structure, real, now = self.config.structure, self.optimiser.real_weights(), self._checkpoint(Position())
        assert structure is not None, "a recipe that changes widths"
        looks, tally = [], self.step.tally
        for number in range(min(structure.looks, len(order))):
            values = self.step.values(order[number], None if moves is None else moves[number])
            looks.append(saliency(now, real, {name: values[gradient_name(name)].cpu().numpy() for name in real}))
        scores = [np.sum(seen, axis=0) for seen in zip(*looks, strict=True)]
        self._enter(changed(now, real, scores, named_size(self.named[0], self.start.frozen), time))
        self.step.tally.copy_(tally)

    def _record(self, epoch: int, learning_rate: float) -> None:
        images = self.steps * self.config.batch
        loss_format = self.step_graph.outputs[0].format
        unit = loss_format.resolution if isinstance(loss_format, Fixed) else 1.0
        self._watch(epoch)
        loss_sum, correct = self.step.tally.tolist()
        if not isfinite(loss_sum):
            raise DataError(f"Training diverged in epoch {epoch + 1}: lower the learning rate")
        reached = accuracy(self.graph, self.optimiser.weights, self.test, crew=self.crew)
        self.step.tally.zero_()
        state = self.optimiser.state()
        self.log.append(EpochLog(
            epoch + 1, learning_rate, loss_sum * unit / images, correct / images, reached,
            {name: int(state[f"{name}.live"].sum()) for name in self.layers}, self.step.saturated()))

    def _watch(self, epoch: int) -> None:
        """Take down what each part did, and when, and tell of the epoch; all processes together."""
        if self.pipelined is not None and not self.crew.alone:
            [timeline] = self.pipelined.timelines
            timeline.end_epoch(epoch + 1)
            self.timelines = self.crew.gather(timeline)
            if not self.bar.disable:
                self.bar.console.print(told(self.timelines, epoch + 1), highlight=False)

    def _told(self) -> str:
        if not self.log:
            return ""
        last = self.log[-1]
        return f"loss {last.loss:.4f}  train {last.train_accuracy:.2%}  test {last.test_accuracy:.2%}"

    def _checkpoint(self, position: Position) -> Checkpoint:
        return replace(self.start, state=self.optimiser.state(), position=position, log=tuple(self.log))

    def _save(self, position: Position, *, everyone: bool = False) -> None:
        if self.folder is None or self.crew.rank and not everyone:
            return
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in self.log)
        try:
            write_all_atomically({  # the checkpoint last: with it an epoch is done
                self.folder / CONFIG: self.config.to_yaml().encode(), self.folder / LOG: lines.encode(),
                **({self.folder / TIMELINE: trace(self.timelines).encode()} if self.timelines else {}),
                self.folder / CHECKPOINT: self._checkpoint(position).to_bytes()})
        except OSError as error:
            raise DataError(f"Checkpoint and log in {self.folder} cannot be written ({error.strerror or error}): what "
                            f"was there before is intact; make room or choose another place") from None

    def _interrupt(self, epoch: int, number: int) -> None:
        self._save_within(epoch, number)
        raise TrainingInterrupted(f"Training was interrupted in epoch {epoch + 1} and is {self._where()}")

    def _save_within(self, epoch: int, number: int, *, everyone: bool = False) -> None:
        loss_sum, correct = self.step.tally.tolist()
        self._save(Position(epoch, number, loss_sum, correct), everyone=everyone)

    def _where(self) -> str:
        if self.folder is None:
            return "not saved, as no folder was given"
        if not (self.folder / CHECKPOINT).exists():
            return "nothing yet: run the same command again"
        return f"saved in {self.folder}: run the same command again to go on"
