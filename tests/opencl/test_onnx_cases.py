"""ONNX's own node cases on an OpenCL device: every case of every claimed operator that inference has."""

from __future__ import annotations

import numpy as np
import pytest
from bench.onnx_cases import FLOAT32_TOLERANCE, PRINTED_TOLERANCE, imported, load_cases, operator_of
from onnx.backend.test.case.test_case import TestCase as NodeCase

from espalier.errors import UnsupportedError
from espalier.frontend import supported
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.runtime import Session

TRAINING = {"SoftmaxCrossEntropyLoss", "ai.onnx.preview.training.Momentum"}
#: How many cases of each operator are run. The import refuses the others, for reasons that
#: ``tests/frontend/test_onnx_nodes.py`` holds it to.
CASES = {"Add": 1, "AveragePool": 7, "BatchNormalization": 0, "Clip": 1, "Concat": 4, "Constant": 0, "Conv": 6,
         "Dropout": 5, "Flatten": 3, "Gemm": 8, "GlobalAveragePool": 2, "Identity": 2, "MatMul": 1, "MaxPool": 11,
         "Pad": 0, "Relu": 1, "Reshape": 6}
OPERATORS = sorted({operator for layer in supported.LAYERS for operator in layer.onnx} - TRAINING)


@pytest.fixture(scope="module")
def all_cases() -> list[NodeCase]:
    return load_cases()


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_case_of_the_operator(operator: str, all_cases: list[NodeCase]) -> None:
    run = 0
    for case in all_cases:
        if operator_of(case) != operator:
            continue
        try:
            graph, state, images, expected = imported(case)
        except UnsupportedError:
            continue
        got = Session(compile_kernels(graph, state)).run(*images.values())
        np.testing.assert_allclose(got.reshape(expected[0].shape), expected[0], rtol=0,
                                   atol=PRINTED_TOLERANCE.get(case.name, FLOAT32_TOLERANCE), err_msg=case.name)
        run += 1
    assert run == CASES[operator], f"{run} cases of {operator} were run"
