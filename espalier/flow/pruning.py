"""The search for the weights that die, without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude, Scope
from espalier.compress.network_reconstruction import Arrays, Evaluate, reconstruct_network
from espalier.compress.ranking import Masks
from espalier.compress.retraining_free import Rule, live_density, live_weights, lowest_density
from espalier.data import normalise
from espalier.errors import UnsupportedError
from espalier.flow.checkpoint_state import live_masks, real_parameters, with_live
from espalier.flow.compress_images import Images, least_accuracy, recognised_of
from espalier.flow.compress_request import CompressRequest, Method
from espalier.flow.steps import Steps
from espalier.ir.graph import Graph
from espalier.ir.types import Format
from espalier.ir.view import conv_shape
from espalier.numerics.fixed import Fixed
from espalier.train.calibrate import initial_state
from espalier.train.checkpoint import Checkpoint
from espalier.train.device_data import DeviceData
from espalier.train.evaluate import run, to_array, to_tensor
from espalier.train.optimise import Update


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """A pruned network; its accuracy is on the selection images, if there are any."""

    method: Method
    checkpoint: Checkpoint
    accuracy: float | None


class PruningSearch:
    """The search for a network's sparse form."""

    def __init__(self, checkpoint: Checkpoint, images: Images, request: CompressRequest, steps: Steps) -> None:
        self.checkpoint, self.images, self.request, self.steps = checkpoint, images, request, steps
        graph = checkpoint.graph
        self.real, self.live = real_parameters(checkpoint), live_masks(checkpoint)
        self.weights = {layer.w.name: self.real[layer.w.name].reshape(conv_shape(graph, layer))
                        for layer in graph.layers()}
        chosen = images.selection
        self.selection = None if chosen is None else DeviceData(chosen, graph.inputs[0].format, "cpu")

    def best(self) -> Pruned:
        """The network at the density asked for, or the sparsest found within the loss."""
        tried = self.request.kind.tried
        if self.request.density is not None:
            density = self.request.density
            return max((self._pruned(method, density) for method in tried), key=lambda found: found.accuracy or 0.0)
        assert self.images.selection is not None and self.request.loss is not None
        count, whole = len(self.images.selection), self._accuracy(self.checkpoint)
        assert whole is not None
        floor = least_accuracy(whole, self.request.loss, count)
        self.steps.tell(f"    all weights: {whole:.2%} of {count:,} training images; at least {floor:.2%} must stay")
        outcomes = [self._sparsest(method, floor) for method in tried]
        present = live_density(self.live)
        good = [found for found in outcomes
                if found is not None and live_density(live_masks(found.checkpoint)) < present]
        if not good:
            raise UnsupportedError(f"No sparser network was found within {self.request.loss:g} accuracy points of the "
                                   f"{whole:.2%} of {count:,} training images that the whole one reaches: allow a "
                                   f"larger loss, or give a density")
        return min(good, key=lambda found: live_density(live_masks(found.checkpoint)))

    def _sparsest(self, method: Method, floor: float) -> Pruned | None:
        return lowest_density(lambda density: self._pruned(method, density),
                              lambda found: found.accuracy is not None and found.accuracy >= floor,
                              highest=live_density(self.live))

    def _pruned(self, method: Method, density: float) -> Pruned:
        if method is Method.RECONSTRUCT:
            checkpoint = self._rebuilt(density)
        else:
            checkpoint = with_live(self.checkpoint, self._masks(method, density))
        found = Pruned(method, checkpoint, self._accuracy(checkpoint))
        reached = "" if found.accuracy is None else f": {found.accuracy:.2%} of the training images looked at"
        self.steps.tell(f"    {method.value} at density {density:.2%}{reached}")
        return found

    def _masks(self, method: Method, density: float) -> Masks:
        rows = self.request.block
        match method:
            case Method.FLAT | Method.TRIANGULAR | Method.RELATIVE:
                return live_weights(Rule(method.value), self.weights, density, rows, self.live)
            case Method.MAGNITUDE:
                return Magnitude(density=density, rows=rows)(self.weights, self.live)
            case Method.ERDOS_RENYI:
                return Magnitude(density=density, rows=rows, scope=Scope.ERDOS_RENYI)(self.weights, self.live)
            case Method.LAMP:
                return Lamp(density=density, rows=rows)(self.weights, self.live)
            case Method.RULES | Method.RECONSTRUCT:
                raise AssertionError(f"{method.value} is no method of masks alone")
            case _:
                assert_never(method)

    def _rebuilt(self, density: float) -> Checkpoint:
        assert self.images.calibration is not None
        graph, update = self.checkpoint.graph, self.checkpoint.update
        images = _stored(normalise(self.images.calibration.images), graph.inputs[0].format)
        found = reconstruct_network(graph, self.real, self.live, density, images, _evaluator(update),
                                    self.request.block)
        state = {**self.checkpoint.state, **initial_state(graph, found.parameters, update)}
        kept = {f"{name}.live": mask for name, mask in self.checkpoint.live.items()}
        return with_live(replace(self.checkpoint, state={**state, **kept}), found.live)

    def _accuracy(self, checkpoint: Checkpoint) -> float | None:
        if self.selection is None:
            return None
        return recognised_of(checkpoint.graph, checkpoint.weights, self.selection, self.request.top)


def _evaluator(update: Update) -> Evaluate:
    """How a part of a network runs, to the bit as in training."""
    def evaluate(part: Graph, values: Arrays) -> dict[str, NDArray]:
        words = initial_state(part, values, update)
        tensors = {value.name: to_tensor((words if value in part.parameters else values)[value.name], value.format)
                   for value in (*part.inputs, *part.parameters)}
        found = run(part, tensors)
        return {value.name: _compact(to_array(found[value.name], value.format)) for value in part.outputs}
    return evaluate


def _compact(array: NDArray) -> NDArray:
    return array.astype(np.int16) if array.dtype.kind == "i" else array


def _stored(numbers: NDArray, format_: Format) -> NDArray:
    return _compact(format_.quantise(numbers)) if isinstance(format_, Fixed) else numbers
