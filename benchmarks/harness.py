"""What the benchmarks share: networks ready for an engine, and the file that each writes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.backward import adds
from espalier.compiler.fit import required_acc_bits, required_depths
from espalier.compiler.legalise import legalise
from espalier.compiler.lists import LayerBlocks, blocks_of
from espalier.compiler.machine_choice import streaming
from espalier.compiler.pipeline import compile_program
from espalier.compiler.place import place
from espalier.compiler.tiling import WHOLE, Grid, tiled
from espalier.compress.magnitude import Magnitude
from espalier.compress.ranking import keep_layer, mean_saliency, rank
from espalier.data import load, normalise
from espalier.engines.base import Network
from espalier.frontend.torch_export import from_torch
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import Fixed, Value
from espalier.ir.view import conv_shape
from espalier.numerics.update import BufferedSgd, Factor
from espalier.records import Bar, Figure, write_json
from espalier.train.calibrate import Quantised, calibrate
from espalier.train.optimise import Optimiser, Sgd, Update, buffered_rule, scalar_rule, state_names
from espalier.zoo import build, input_shape

RESULTS = Path(__file__).parent / "results"
LOSS = "softmax_cross_entropy"
SGD = Sgd(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
UNTOLD = ("--data", "--work", "--output", "--source", "--limit", "--jobs")  #: options that change no result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A zoo network, calibrated and pruned, with its first batch and the machine it was compiled for."""

    network: Network
    blocks: tuple[LayerBlocks, ...]
    state: dict[str, NDArray]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_images: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    float_parameters: dict[str, NDArray]


def prepare(name: str, data: str, *, rows: int, lanes: int, density: float = 1.0, seed: int = 0,
            sgd: Sgd = SGD, probe: int = 256, exceptions: dict[str, float] | None = None,
            dense_depths: bool = True, port_bits: int = 0, stream: bool = False, norms: bool = False,
            grid: Grid = WHOLE, elements: int = 1) -> Prepared:
    """Calibrate zoo network ``name`` on ``data``, prune it at once by magnitude, compile it.

    Pruning is per layer to one density in ``rows × rows`` blocks (``exceptions`` by weight name). The batch is what the
    lanes hold, in a ``grid`` of tiles an image. The machine has exactly the depths and accumulators that the *dense*
    network needs, so that dense and pruned run on one machine; without ``dense_depths`` those that the pruned one
    needs. With a port to external memory all activations are spilled that can be, and if weights ``stream`` the fewest
    are on chip. With ``norms`` batch norms are trained, not folded. Of ``elements`` each has ``rows × lanes``.
    """
    split, batch = normalise(load(data)), lanes // prod(grid)
    graph, parameters = from_torch(build(name, seed=seed), input_shape(name), name, keep_batch_norm=norms)
    chosen = np.random.RandomState(seed).permutation(len(split.train.images))[:probe]
    fixed = calibrate(graph, parameters, split.train.images[chosen], split.train.labels[chosen], loss=LOSS, batch=batch)
    live = prune(fixed, parameters, rows, density, exceptions or {})
    step = differentiate(fixed.graph, LOSS, fixed.gradient_formats)
    rules = {value.name: buffered_rule(sgd, batch, value.format, fixed.gradient_formats[gradient_name(value.name)])
             if isinstance(value.format, Fixed) else scalar_rule(sgd, batch) for value in fixed.graph.learned()}
    dense = {value.name: np.ones(value.shape, dtype=np.bool_) for value in fixed.graph.parameters}
    machine, _ = fitted_machine(step, dense if dense_depths else live, rows, lanes, port_bits, stream=stream, grid=grid,
                                elements=elements)
    program = compile_program(fixed.graph, loss=LOSS, gradient_formats=fixed.gradient_formats, live=live, rules=rules,
                              machine=machine)
    state = {key: np.where(live[parameter], fixed.state[key], 0) for parameter in live
             for key in state_names(parameter, Update.BUFFERED).values() if key in fixed.state}
    image_format = fixed.graph.inputs[0].format
    assert isinstance(image_format, Fixed)
    return Prepared(
        network=Network(graph=step, program=program, rules=rules, live=live),
        blocks=fitted_machine(step, live, rows, lanes, port_bits, grid=grid, elements=elements)[1], state=state,
        images=image_format.quantise(split.train.images), labels=split.train.labels,
        test_images=image_format.quantise(split.test.images), test_labels=split.test.labels,
        float_parameters=parameters)


def prune(fixed: Quantised, parameters: dict[str, NDArray], rows: int, density: float, exceptions: dict[str, float]
          ) -> dict[str, NDArray[np.bool_]]:
    """Live masks of all parameters."""
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in fixed.graph.parameters}
    if density >= 1:
        return live
    views = {layer.w.name: parameters[layer.w.name].reshape(conv_shape(fixed.graph, layer))
             for layer in fixed.graph.layers()}
    masks = Magnitude(density=density, rows=rows, exceptions=exceptions)(views)
    return {**live, **{name: mask.reshape(live[name].shape) for name, mask in masks.items()}}


def plain_rules(parameters: Iterable[Value]) -> dict[str, BufferedSgd]:
    """Update rules of any rate, for what depends on none."""
    return {value.name: BufferedSgd(weight=value.format, rate=Factor.nearest(0.1), momentum=Factor.nearest(0.9),
                                    decay=Factor.nearest(1e-4))
            for value in parameters if isinstance(value.format, Fixed)}


def fitted_machine(step: Graph, live: dict[str, NDArray[np.bool_]], rows: int, lanes: int, port_bits: int = 0,
                   *, stream: bool = False, grid: Grid = WHOLE, elements: int = 1
                   ) -> tuple[Machine, tuple[LayerBlocks, ...]]:
    """The smallest machine of ``rows × lanes`` that holds the network, and the network's blocks.

    With ``stream`` the fewest columns of weights are on chip.
    """
    layers = tiled(legalise(step)[0], grid)
    memory = place(layers, rows, spill=port_bits > 0, elements=elements)
    blocks = blocks_of(layers, live, rows, elements=elements)
    depths = required_depths(layers, blocks, memory, rows)
    acc_bits = max(32, required_acc_bits(layers, blocks))
    machine = Machine(rows=rows, lanes=lanes, acc_bits=acc_bits, port_bits=port_bits,
                      clips=any(layer.clip for layer in layers), sums=adds(layers), grid_y=grid[0], grid_x=grid[1],
                      elements=elements, **depths)
    return streaming(layers, live, memory, machine) if stream else machine, blocks


def training_optimiser(prepared: Prepared, sgd: Sgd) -> Optimiser:
    """The training path's optimiser, holding the network's state."""
    graph, network = prepared.network.graph, prepared.network
    gradients = (gradient_name(value.name) for value in graph.learned())
    batch = network.program.machine.images
    optimiser = Optimiser(graph.learned(), {name: graph.value(name).format for name in gradients}, Update.BUFFERED,
                          batch, statistics=graph.statistics())
    optimiser.load({**prepared.state, **{f"{name}.live": live for name, live in network.live.items()}})
    optimiser.set(sgd)
    return optimiser


def command_of(arguments: list[str]) -> str:
    """The command line without the paths of this machine, and without what changes no result."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.split("=")[0] in UNTOLD:
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def write_results(name: str, *, seeds: Iterable[int], figures: Iterable[Figure], bars: Iterable[Bar],
                  notes: str = "", command: str = "", output: Path | None = None, **more: object) -> None:
    """Write ``benchmarks/results/NAME.json`` (or ``output``) and print the bars.

    ``command`` made the figures; by default the one that runs now.
    """
    bars = list(bars)
    command = command or command_of(sys.argv[1:])
    write_json(output or RESULTS / f"{name}.json", {
        "command": command, "seeds": list(seeds), "figures": [figure.to_json() for figure in figures],
        "bars": [bar.to_json() for bar in bars], "notes": notes, **more})
    for bar in bars:
        print(f"{'met ' if bar.met else 'MISS'}  {bar.name}: {bar.value:.6g} {bar.op} {bar.bound:g}")


def write_found(name: str, found: Sequence[Figure | Bar], *, seeds: Iterable[int], notes: str) -> None:
    """As :func:`write_results`, of figures and bars as they come."""
    write_results(name, seeds=seeds, figures=[item for item in found if isinstance(item, Figure)],
                  bars=[item for item in found if isinstance(item, Bar)], notes=notes)


torch.set_num_threads(1)


def largest(weights: NDArray, density: float, rows: int) -> NDArray[np.bool_]:
    """The mask of the largest ``density`` of a layer's weights (O, I, ...), in blocks of ``rows``."""
    square = weights.reshape(*weights.shape, *(1,) * (4 - weights.ndim))
    ranked = rank(mean_saliency(abs(square), rows), np.ones(square.shape, np.bool_), rows)
    return keep_layer(ranked, density * weights.size).reshape(weights.shape)
