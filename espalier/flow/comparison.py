"""Compare: a set of recipes -> a training of each with each seed, and one table of what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espalier.arch.machine import MULTIPLIERS_BESIDE_LATTICE, Machine
from espalier.compiler.machine_choice import Constraints
from espalier.compress.cgap import Structure, Times
from espalier.compress.magnitude import Magnitude, Scope
from espalier.data import load
from espalier.errors import DataError, EspalierError
from espalier.flow.directory import require_writable
from espalier.flow.recipes import stretch
from espalier.flow.steps import Steps
from espalier.flow.training import train_network
from espalier.flow.work import layer_work, on_lattice, training_macs
from espalier.records import Figure, write_json, write_text_atomically
from espalier.report.comparison_page import Column, Comparison, Row, Run, render_comparison
from espalier.report.model import Fact
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.loop import finished

COMPARE, COMPARE_PAGE = "compare.json", "compare.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """What recipes are compared on.

    Parameters
    ----------
    network, data : str or None
        In the place of the recipes' own.
    data_root : Path or None
        Folder of the named data sets.
    epochs : int or None
        In the place of the recipes' own; the times in a recipe are stretched.
    seeds : tuple of int
        Each recipe is trained with each; empty for the recipe's own.
    rows, lanes : int
        The lattice on which cycles are counted.
    """

    network: str | None = None
    data: str | None = None
    data_root: Path | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    rows: int = 8
    lanes: int = 16

    def __post_init__(self) -> None:
        Machine(rows=self.rows, lanes=self.lanes, activation_depth=2, gradient_depth=2, weight_depth=2, index_depth=2,
                table_depth=2)  # refuses what no machine has
        if self.epochs is not None and self.epochs < 1:
            raise DataError(f"Recipes are compared over at least one epoch, not {self.epochs}")
        if len(set(self.seeds)) < len(self.seeds):
            raise DataError(f"Each seed is trained once, and one of {', '.join(map(str, self.seeds))} is there twice: "
                            f"give different ones")

    @property
    def multipliers(self) -> int:
        return self.rows * self.lanes


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe by its name, and its configuration for each seed."""

    name: str
    configs: tuple[TrainConfig, ...]

    def folder(self, config: TrainConfig) -> str:
        """Name of the training directory of one of the configurations."""
        return f"{self.name}-{config.seed}"


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """The seeds of ``0,1,2``; none of None. Raises DataError."""
    try:
        return () if text is None else tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise DataError(f"Seeds are whole numbers with commas between them, such as 0,1,2, not {text!r}") from None


def compare(recipes: Sequence[Path], output: Path, request: CompareRequest, *, steps: Steps | None = None
            ) -> Comparison:
    """Train every recipe with every seed into ``output/NAME-SEED``, and write the table and the page of all.

    A training that is there already is not done again, and one that was interrupted goes on. Everything that is
    cheap to check (recipes, data, networks, what ``output`` holds) is checked before the first training.

    Raises
    ------
    DataError
        No recipe, a bad one, two of one name, or a directory that holds another training.
    TrainingInterrupted
        Control-C; what is trained so far is kept.
    """
    steps = steps or Steps()
    plans = plan(recipes, request)
    require_writable(output)
    with steps.step("check"):
        for item in plans:
            done = [finished(config, output / item.folder(config)) is not None for config in item.configs]
            if not all(done):
                train_network(item.configs[0], output, data_root=request.data_root, dry_run=True)
    rows = tuple(Row(name=item.name, settings=settings(item.configs[0]),
                     runs=tuple(_run(item, config, output, request, steps) for config in item.configs))
                 for item in plans)
    comparison = Comparison(machine_rows=request.rows, machine_lanes=request.lanes, rows=rows)
    page = render_comparison(comparison)
    write_json(output / COMPARE, comparison.to_json())
    write_text_atomically(output / COMPARE_PAGE, page)
    steps.wrote(output / COMPARE, output / COMPARE_PAGE)
    return comparison


def plan(recipes: Sequence[Path], request: CompareRequest) -> tuple[Plan, ...]:
    """The trainings that are asked for, in order. Raises DataError before anything is trained."""
    if not recipes:
        raise DataError("There is nothing to compare: give at least one recipe, a .yaml, .toml or .json file")
    files: dict[str, Path] = {}
    for file in recipes:
        if file.stem in files:
            raise DataError(f"Two recipes are called {file.stem!r} ({files[file.stem]} and {file}), and trainings are "
                            f"kept by the recipe's name: rename one")
        files[file.stem] = file
    return tuple(Plan(name, _configs(file, request)) for name, file in files.items())


def _configs(file: Path, request: CompareRequest) -> tuple[TrainConfig, ...]:
    fields = TrainConfig.load(file).to_json()
    if request.epochs is not None:
        stretch(fields, request.epochs)
    given = {"network": request.network, "data": request.data}
    fields |= {name: value for name, value in given.items() if value is not None}
    return tuple(TrainConfig.from_json({**fields, "seed": seed}, f"Recipe {file} and the command line")
                 for seed in request.seeds or (fields["seed"],))


def settings(config: TrainConfig) -> tuple[Fact, ...]:
    """What a reader must know of a recipe."""
    numbers = "float32" if config.quantise is None else (
        f"{config.quantise.widths.weight}-bit fixed point"
        + (f" from epoch {config.quantise.start}" if config.quantise.start else "")
        + ("" if config.folds else ", batch norms trained"))
    return (Fact("Network", config.network), Fact("Data", config.data), Fact("Epochs", str(config.epochs)),
            Fact("Batch", str(config.batch)), Fact("Numbers", numbers), Fact("Pruning", _pruning(config)),
            Fact("Widths", _widths(config.structure)), Fact("Frozen", ", ".join(config.frozen) or "none"))


_SCOPES = {Scope.LAYER: "in each layer", Scope.NETWORK: "in the network",
           Scope.ERDOS_RENYI: "in each layer, densities Erdős–Rényi,"}


def _pruning(config: TrainConfig) -> str:
    prune, tracking = config.prune, config.tracking
    if tracking is not None:
        rule = tracking.rule
        return f"the {rule.density:.0%} that have moved most {_SCOPES[rule.scope]} are tracked (Procrustes)"
    if prune is None:
        return "none"
    schedule, method, rows = prune.schedule, prune.method, prune.method.rows
    what = "single weights" if rows == 1 else f"{rows}×{rows} blocks"
    when = (f"at epoch {schedule.start:g}" if schedule.start == schedule.end
            else f"epochs {schedule.start:g} to {schedule.end:g}")
    scope = f" {_SCOPES[method.scope]}" if isinstance(method, Magnitude) else ""
    text = f"{what} by {method.kind}{scope} to {method.density:.0%}, {when}"
    if isinstance(method, Magnitude) and method.exceptions:
        text += "; other densities of " + ", ".join(
            f"{name} ({density:.0%})" for name, density in method.exceptions.items())
    if prune.lasso is not None:
        text += f"; group lasso of {prune.lasso.weight:g}, epochs {prune.lasso.start:g} to {prune.lasso.end:g}"
    if prune.exchange is not None:
        text += f"; exchange of {prune.exchange.fraction:.0%} until epoch {prune.exchange.end:g}"
    return text


def _widths(structure: Structure | None) -> str:
    if structure is None:
        return "as they are"
    parts = [f"from {structure.seed:.0%} of the units"] if structure.seed < 1 else []
    growth, shedding = structure.growth, structure.shedding
    if growth is not None:
        parts.append(f"{growth.fraction:.0%} of the units split {_times(growth.times)}, up to {growth.bound:.0%} of "
                     f"the weights")
    if shedding is not None:
        what = (("weights", shedding.weights), ("MACs", shedding.macs))
        parts.append("units leave {} until {} are left".format(_times(shedding.times), " and ".join(
            f"{part:.0%} of the {name}" for name, part in what if part < 1)))
    return "; ".join(parts) or "as they are"


def _times(times: Times) -> str:
    all_ = times.all
    return f"at epoch {all_[0]:g}" if len(all_) == 1 else f"{len(all_)} times, epochs {all_[0]:g} to {all_[-1]:g}"


def _run(item: Plan, config: TrainConfig, output: Path, request: CompareRequest, steps: Steps) -> Run:
    """Train one configuration, unless it is trained already, and count."""
    folder = item.folder(config)
    steps.tell(folder)
    own = Steps(steps.console)
    checkpoint = finished(config, output / folder)
    if checkpoint is not None:
        own.tell("  trained already")
    else:
        checkpoint = train_network(config, output / folder, data_root=request.data_root, steps=own)
        steps.wrote(*own.written)
    assert checkpoint is not None and checkpoint.log, "a training of at least one epoch"
    with own.step("count"):
        return outcome(checkpoint, folder, len(load(config.data, request.data_root).train), request)


def outcome(checkpoint: Checkpoint, folder: str, images: int, request: CompareRequest) -> Run:
    """The figures of a finished training on ``images`` images; those that cannot be had, with the reason."""
    config = checkpoint.config
    figures, missing, lattice = work_figures(checkpoint, images), [], ""
    try:
        own = on_lattice(checkpoint, own_lattice(config, request))
        figures += [Column.INDEX.figure(own.index_bytes),
                    Column.OWN_CYCLES.figure(own.step_cycles / own.machine.images)]
        lattice = f"{own.machine.rows}×{own.machine.lanes}"
    except EspalierError as error:
        missing += [Fact(column.value, str(error)) for column in (Column.INDEX, Column.OWN_CYCLES)]
    try:
        given = on_lattice(checkpoint, Constraints(rows=request.rows, lanes=request.lanes, batch=config.batch))
        figures.append(Column.CYCLES.figure(given.step_cycles))
    except EspalierError as error:
        missing.append(Fact(Column.CYCLES.value, str(error)))
    return Run(seed=config.seed, folder=folder, figures=tuple(figures), missing=tuple(missing), lattice=lattice)


def work_figures(checkpoint: Checkpoint, images: int) -> list[Figure]:
    """The figures that need no machine."""
    last, work = checkpoint.log[-1], layer_work(checkpoint)
    forward = sum(layer.live for layer in work.values())
    backward = sum(layer.live for layer in work.values() if layer.backward)
    return [Column.ACCURACY.figure(last.test_accuracy), Column.LIVE.figure(sum(last.live.values())),
            Column.FP.figure(forward), Column.BP.figure(backward), Column.WU.figure(forward),
            Column.TRAINING.figure(training_macs(checkpoint, work, images))]


def own_lattice(config: TrainConfig, request: CompareRequest) -> Constraints:
    """As many multipliers as the given lattice has, in rows of the recipe's blocks, and a step of one group."""
    rows = config.rows or request.rows
    return Constraints(name=f"{request.multipliers} multipliers", rows=rows,
                       multipliers=request.multipliers + MULTIPLIERS_BESIDE_LATTICE)
