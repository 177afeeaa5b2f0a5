"""ONNX's training operators, as far as they mean what our update rule means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.frontend import supported
from espalier.frontend.onnx_file import read_model


@dataclass(frozen=True, slots=True)
class MomentumTensors:
    """The names of one optimised tensor in a Momentum node: before, its gradient and momentum, and after."""

    weight: str
    gradient: str
    momentum: str
    new_weight: str
    new_momentum: str


@dataclass(frozen=True, slots=True)
class MomentumUpdate:
    """SGD with momentum as in :class:`espalier.numerics.update.BufferedSgd`, read from ONNX.

    ONNX keeps the momentum before the learning rate; ours is ``learning_rate`` times that.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    tensors: tuple[MomentumTensors, ...]


def momentum_from_onnx(source: onnx.ModelProto, constants: Mapping[str, NDArray]) -> MomentumUpdate:
    """The update that a model of one ``ai.onnx.preview.training.Momentum`` node describes.

    ``constants`` holds at least the learning rate and the step count by input name. Raises
    UnsupportedError for the Nesterov mode, for a ``beta`` other than 1 after the first step, and for
    any other node.
    """
    model = read_model(source)
    node = model.graph.node[0]
    where = f"Node {node.name or node.output[0]!r} ({node.domain}.{node.op_type})"
    if len(model.graph.node) != 1 or f"{node.domain}.{node.op_type}" not in supported.MOMENTUM.onnx:
        raise UnsupportedError(f"{where} is not one Momentum node; give a model of that node alone")
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if found["mode"] != b"standard":
        raise supported.MOMENTUM.refuse(supported.NESTEROV, where)
    rate_name, step_name = node.input[:2]
    if found["beta"] != 1 and np.any(constants[step_name]):
        raise supported.MOMENTUM.refuse(supported.DAMPENING, where, f"beta {found['beta']}")
    count = (len(node.input) - 2) // 3
    names, results = node.input[2:], node.output
    tensors = tuple(MomentumTensors(names[i], names[count + i], names[2 * count + i], results[i], results[count + i])
                    for i in range(count))
    return MomentumUpdate(float(constants[rate_name]), float(found["alpha"]), float(found["norm_coefficient"]), tensors)
