"""What a training cost and what the trained network asks of a lattice: MACs, index bytes, cycles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.legalise import legalise
from espalier.compiler.lists import blocks_of
from espalier.compiler.machine_choice import Constraints, choose_machine, estimated_cycles
from espalier.compress.schedule import CubicSchedule
from espalier.cost.macs import ConvolutionSize, useful_macs
from espalier.flow.design import Design
from espalier.ir.differentiate import differentiate
from espalier.ir.ops import Conv2d, Conv2dInputGrad, Linear, LinearInputGrad
from espalier.numerics.window import Window
from espalier.train.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """The useful MACs of one layer for one image in each of its phases: a live weight, and a tap inside the image.

    Parameters
    ----------
    weights : int
        All of the layer's, dead ones too.
    dense, live : int
        MACs of one phase with all weights, and with the live ones alone.
    backward : bool
        Whether the layer has a BP: no gradient is made for images.
    """

    weights: int
    dense: int
    live: int
    backward: bool


@dataclass(frozen=True, slots=True)
class OnLattice:
    """A trained network as a machine trains it on.

    Members
    -------
    step_cycles : int
        Of a training step, as the compiler estimates them: without pipeline fills and barriers.
    """

    design: Design
    step_cycles: int

    @property
    def machine(self) -> Machine:
        return self.design.machine

    @property
    def index_bytes(self) -> int:
        """Of the index lists and segment pointers of the Program, which this compiles."""
        return self.design.network().program.index_bytes


def layer_work(checkpoint: Checkpoint) -> dict[str, LayerWork]:
    """The work of each layer, by the weight's name, of any network in fixed point or float."""
    graph, live = checkpoint.graph, checkpoint.live
    step = differentiate(graph, checkpoint.config.loss, checkpoint.gradient_formats)
    backward = {op.w.name for op in step.ops if isinstance(op, Conv2dInputGrad | LinearInputGrad)}
    return {layer.w.name: LayerWork(weights=live[layer.w.name].size, backward=layer.w.name in backward,
                                    dense=_macs(layer, np.ones_like(live[layer.w.name])),
                                    live=_macs(layer, live[layer.w.name])) for layer in graph.layers()}


def _macs(layer: Conv2d | Linear, live: NDArray[np.bool_]) -> int:
    """Useful MACs of one phase for one image."""
    match layer:
        case Conv2d(x=x, out=out, window=window):
            source, result = x.shape[1:], out.shape[1:]
        case Linear():
            window, source, result, live = Window((1, 1)), (1, 1), (1, 1), live[..., np.newaxis, np.newaxis]
        case _:
            assert_never(layer)
    return sum(useful_macs(_tap(window, source, result, ky, kx), [(0, 0, int(weights))])
               for (ky, kx), weights in np.ndenumerate(live.sum(axis=(0, 1))))


def _tap(window: Window, source: tuple[int, ...], result: tuple[int, ...], ky: int, kx: int) -> ConvolutionSize:
    """One tap as a convolution of stride 1 of its own, over that phase of the map which its strides reach."""
    sizes, pads = [], []
    for axis, tap in enumerate((ky, kx)):
        stride = window.stride[axis]
        ahead, phase = divmod(tap * window.dilation[axis] - window.pad[axis], stride)
        sizes.append(-(-(source[axis] - phase) // stride))
        pads.append(-ahead)
    return ConvolutionSize(in_shape=(1, sizes[0], sizes[1]), out_shape=(1, result[0], result[1]), kernel=(1, 1),
                           pad=(pads[0], pads[1]))


def training_macs(checkpoint: Checkpoint, work: dict[str, LayerWork], images: int) -> int:
    """The useful MACs of all steps of a finished training on ``images`` images.

    From the live weights that the log has after each epoch; within an epoch they follow the pruning schedule, or
    change in equal parts where widths do (in the first epoch they are as at its end), and each weight counts with its
    layer's mean over borders. An exchange of weights adds a pass over its batch with the gradients of dead weights,
    too, and a change of widths one for each batch it looks at. Steps after which weights are tracked (Procrustes) have
    all weights. The steps that only choose formats are not counted.
    """
    config = checkpoint.config
    batch, steps, prune, structure = config.batch, images // config.batch, config.prune, config.structure
    exchanges = prune.exchange.due_steps(steps) if prune is not None and prune.exchange is not None else {}
    widening = {} if structure is None else structure.due_steps(steps)
    tracked = () if config.tracking is None else config.tracking.due_steps(steps, config.epochs)
    before: dict[str, float] = {name: checkpoint.log[0].live[name] if widening else layer.weights
                                for name, layer in work.items()}
    total = 0.0
    for epoch, entry in enumerate(checkpoint.log):
        changes = [number - epoch * steps for number in widening if epoch * steps <= number < (epoch + 1) * steps]
        share = (float(np.mean([1 - number / steps for number in changes])) if changes else
                 1.0 if prune is None else pruned_share(prune.schedule, epoch, steps))
        exchanged = sum(epoch * steps <= number < (epoch + 1) * steps for number in exchanges)
        looked = 0 if structure is None else sum(min(structure.looks, steps - number) for number in changes)
        whole = sum(epoch * steps <= number < (epoch + 1) * steps for number in tracked)
        for name, layer in work.items():
            live = before[name] + (entry.live[name] - before[name]) * share
            passes, weight_macs = 2 + layer.backward, layer.dense / layer.weights
            taken = (steps - whole) * live + whole * layer.weights
            total += batch * weight_macs * (taken * passes + exchanged * (live * (passes - 1) + layer.weights)
                                            + looked * before[name] * passes)
            before[name] = entry.live[name]
    return round(total)


def pruned_share(schedule: CubicSchedule, epoch: int, steps: int) -> float:
    """How much of an epoch's pruning is done, as a mean over its steps: 0..1; 1 where nothing is pruned in it."""
    due = schedule.due_steps(steps)
    progress = np.array([0.0, *(schedule.progress(time) for time in due.values())])
    numbers = np.arange(epoch * steps - 1, (epoch + 1) * steps)
    done = progress[np.searchsorted(list(due), numbers, side="right")]
    return float((done[1:] - done[0]).mean() / (done[-1] - done[0])) if done[-1] > done[0] else 1.0


def on_lattice(checkpoint: Checkpoint, constraints: Constraints) -> OnLattice:
    """Choose a machine for a trained network and estimate its cycles; a step is of ``constraints.batch`` images.

    Raises UnsupportedError where the engine does not run a layer or the way of training, and FitError where the
    live weights are not whole blocks of its rows or the batch not whole groups of its lanes.
    """
    config, live = checkpoint.config, checkpoint.live
    step = differentiate(checkpoint.graph, config.loss, checkpoint.gradient_formats)
    layers, loss = legalise(step, checkpoint.frozen)
    machine = choose_machine(layers, loss, live, constraints)
    batch = machine.images if constraints.batch is None else constraints.batch
    design = Design(checkpoint, machine, config.sgd.scaled(min(1.0, batch / config.batch)), batch, constraints.name)
    design.rules()  # refuses what the machine does not train
    cycles = sum(estimated_cycles(item, machine.tree_rows)
                 for item in blocks_of(layers, live, machine.rows, elements=machine.elements))
    return OnLattice(design, batch // machine.images * cycles)
