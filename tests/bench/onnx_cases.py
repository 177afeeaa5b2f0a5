"""ONNX's own node cases."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from onnx.backend.test.case.test_case import TestCase as NodeCase
from onnx.backend.test.loader import load_model_tests

from espalier.frontend.onnx_import import from_onnx
from espalier.ir.graph import Graph

#: The cases expect float32 results; ours are float64, and sums of up to 64 products of numbers near 1 differ by less.
FLOAT32_TOLERANCE = 1e-5
#: Cases whose images and results stand in ONNX's source with four digits, rounded each by itself.
PRINTED_TOLERANCE = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-4}
#: How many inputs hold data of the images; the others are parameters, bound as constants.
DATA_INPUTS = {"Add": 2, "Concat": 2, "SoftmaxCrossEntropyLoss": 2}


def load_cases() -> list[NodeCase]:
    with warnings.catch_warnings():  # generating the other operators' cases divides by zero on purpose
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def operator_of(case: NodeCase) -> str:
    """The operator that a case of a single node is about; empty for one of several nodes."""
    if len(case.model.graph.node) != 1:
        return ""
    node = case.model.graph.node[0]
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def imported(case: NodeCase) -> tuple[Graph, dict[str, NDArray], dict[str, NDArray], list[NDArray]]:
    """The graph of a case, its parameters, its images, and what is to come out."""
    node = case.model.graph.node[0]
    (inputs, expected), = case.data_sets
    tensors = dict(zip([name for name in node.input if name], inputs, strict=True))
    data = list(tensors)[:DATA_INPUTS.get(node.op_type, 1)]
    graph, state = from_onnx(case.model, {name: array for name, array in tensors.items() if name not in data})
    return graph, state, {name: wide(tensors[name]) for name in data}, expected


def wide(array: NDArray) -> NDArray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
