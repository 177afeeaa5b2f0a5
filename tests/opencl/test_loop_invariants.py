"""What does not change in a loop, once before it."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.index_arithmetic import loop_operations
from espalier.opencl.loop_invariants import hoisted
from espalier.opencl.optimisations import Optimisations

HEAD = "__kernel void k0(__global float* restrict a_ptr, __global float* restrict b_ptr, int size0)"
G = "(convert_int(get_group_id(0)))"


def kernel(*body: str) -> str:
    return "\n".join([f"{HEAD};", f"{HEAD} {{", *(f"  {line}" for line in body), "}", ""])


def test_terms_go_as_far_out_as_they_can() -> None:
    before = kernel(
        "for (int i = 0; i < 8; ++i) {",
        "  for (int j = 0; j < 4; ++j) {",
        "    for (int k = 0; k < 3; ++k) {",
        f"      a_ptr[(((({G} * 32) + (i * 4)) + j) + k)] = (b_ptr[((i + (j * 2)) * 16)] "
        "* b_ptr[((k * 8) + (i >> 1))]);",
        "    }",
        "  }",
        "}")
    assert hoisted(before) == kernel(
        f"int base0 = ({G} * 32);",
        "for (int i = 0; i < 8; ++i) {",
        "  int base1 = (base0 + (i * 4));",
        "  int base3 = (i >> 1);",
        "  for (int j = 0; j < 4; ++j) {",
        "    int base2 = (base1 + j);",
        "    float held0 = b_ptr[((i + (j * 2)) * 16)];",
        "    for (int k = 0; k < 3; ++k) {",
        "      a_ptr[(base2 + k)] = (held0 * b_ptr[(base3 + (k * 8))]);",
        "    }",
        "  }",
        "}")


def test_numbers_and_sizes_stay_so_that_the_rest_is_shared() -> None:
    before = kernel(
        "for (int i = 0; i < 8; ++i) {",
        f"  a_ptr[(({G} * 32) + i)] = b_ptr[(({G} * 32) + i)];",
        f"  a_ptr[((({G} * 32) + i) + 8)] = b_ptr[((({G} * 32) - size0) + i)];",
        "}",
        "for (int j = 0; j < size0; ++j) {",
        f"  a_ptr[((j * 2) + ({G} * 32))] = 1.0e+00f;",
        "}")
    assert hoisted(before) == kernel(
        f"int base0 = ({G} * 32);",
        "for (int i = 0; i < 8; ++i) {",
        "  a_ptr[(base0 + i)] = b_ptr[(base0 + i)];",
        "  a_ptr[((base0 + i) + 8)] = b_ptr[((base0 + i) - size0)];",
        "}",
        "for (int j = 0; j < size0; ++j) {",
        "  a_ptr[(base0 + (j * 2))] = 1.0e+00f;",
        "}")


def test_vectors_and_what_is_within_min_and_max() -> None:
    before = kernel(
        "float4 _local_ptr[2];",
        "for (int i = 0; i < 2; ++i) {",
        "  _local_ptr[i] = vload4(0, a_ptr + (i * 4));",
        "  for (int j = 0; j < 2; ++j) {",
        "    vstore4((_local_ptr[i] + vload4(0, (b_ptr + ((i * 4) + 1)))), 0, a_ptr + (max((int)min((int)(((i * 3) + j)"
        " - 1), (int)9), (int)0) * 4));",
        "  }",
        "}")
    assert hoisted(before) == kernel(
        "float4 _local_ptr[2];",
        "for (int i = 0; i < 2; ++i) {",
        "  _local_ptr[i] = vload4(0, a_ptr + (i * 4));",
        "  float4 held0 = vload4(0, (b_ptr + ((i * 4) + 1)));",
        "  int base0 = (i * 3);",
        "  for (int j = 0; j < 2; ++j) {",
        "    vstore4((_local_ptr[i] + held0), 0, a_ptr + (max((int)min((int)((base0 + j) - 1), (int)9), (int)0) * 4));",
        "  }",
        "}")


@pytest.mark.parametrize("body", [
    ("a_ptr[(size0 + (4 * 2))] = b_ptr[0];",),
    ("for (int i = 0; i < 8; ++i) {", "  a_ptr[((i * 4) + 3)] = b_ptr[(i + size0)];", "}"),
    ("for (int i = 0; i < 2; ++i) {", "  for (int j = 0; j < 2; ++j) {", "    a_ptr[(i + (j * 4))] = 0.0e+00f;", "  }",
     "  a_ptr[(i * 4)] = b_ptr[i];", "}")])
def test_nothing_to_do(body: tuple[str, ...]) -> None:
    """Outside loops; where all changes but numbers; where what does not is a name alone."""
    assert hoisted(kernel(*body)) == kernel(*body)


@pytest.mark.parametrize(("line", "count"), [
    ("a_ptr[i] = ((i < 3) ? b_ptr[5] : 0.0e+00f);", "8"), ("a_ptr[i] = a_ptr[5];", "8"),
    ("a_ptr[i] = b_ptr[5];", "(size0 - 4)"), ("a_ptr[i] = b_ptr[(int)x];", "8")])
def test_loads_that_may_not_be_made_or_may_change(line: str, count: str) -> None:
    """If a condition holds; of what the kernel writes; in a loop that may not run; of another kind."""
    before = kernel(f"for (int i = 0; i < {count}; ++i) {{", f"  {line}", "}")
    assert hoisted(before) == before


def test_loads_under_a_condition_stay_and_their_indices_do_not() -> None:
    before = kernel("for (int i = 0; i < 8; ++i) {", "  for (int j = 0; j < 4; ++j) {", "    if (j == 0) {",
                    "      a_ptr[j] = b_ptr[(i * 4)];", "    }", "  }", "}")
    assert hoisted(before) == kernel(
        "for (int i = 0; i < 8; ++i) {", "  int base0 = (i * 4);", "  for (int j = 0; j < 4; ++j) {",
        "    if (j == 0) {", "      a_ptr[j] = b_ptr[base0];", "    }", "  }", "}")


def test_kernels_that_are_not_understood_stay_as_they_are() -> None:
    for line in ("  while (i < 3) {", "  size0 = 3;", "  // a remark", "#pragma unroll"):
        before = kernel("for (int i = 0; i < 8; ++i) {", f"  a_ptr[(({G} * 4) + i)] = b_ptr[(4 * size0)];", line, "}")
        assert hoisted(before) == before
    long = kernel("for (int i = 0; i < 8; ++i) {", "  a_ptr[((convert_long(i) * 4) + (4 * size0))] = 4.0e+00f;", "}")
    assert hoisted(long) == long


def test_names_that_are_taken() -> None:
    found = hoisted(kernel("int base0 = 3;", "for (int i = 0; i < 8; ++i) {", "  a_ptr[((base0 * 4) + i)] = 0.0e+00f;",
                           "}"))
    assert "int base1 = (base0 * 4);" in found and "a_ptr[(base1 + i)]" in found


def test_as_many_kernels_as_without() -> None:
    """Layers of a shape class still share one, and take the same numbers."""
    window = Window((3, 3), pad=(1, 1, 1, 1))
    sizes = (12, 6)
    maps = [[Value(f"{name}{size}", TensorType((16, size, size), FLOAT)) for name in "xab"] for size in sizes]
    weights = [Value(f"w{number}", TensorType((16, 16, 3, 3), FLOAT)) for number in range(4)]
    layers = [Conv2d(out, x, w, None, window) for own, two in zip(maps, (weights[:2], weights[2:]), strict=True)
              for x, out, w in zip(own, own[1:], two, strict=False)]
    halved = Conv2d(maps[1][0], maps[0][2], Value("w", TensorType((16, 16, 3, 3), FLOAT)), None,
                    Window((3, 3), (2, 2), (1, 1, 1, 1)))
    every = (*layers[:2], halved, *layers[2:])
    graph = Graph("net", (maps[0][0],), tuple(op.w for op in every), every, (maps[1][2],))
    random = np.random.RandomState(0)
    parameters = {value.name: random.randn(*value.shape).astype(np.float32) for value in graph.parameters}
    with_, without = (compile_kernels(graph, parameters, Optimisations(loop_invariants=on)) for on in (True, False))
    assert [launch.numbers for launch in with_.launches] == [launch.numbers for launch in without.launches]
    assert [launch.kernel for launch in with_.launches] == [launch.kernel for launch in without.launches]
    assert len({launch.kernel for launch in with_.launches}) < len(with_.launches)
    assert loop_operations(with_.source) < loop_operations(without.source)


def test_operations_of_innermost_loops() -> None:
    """Each once, however often it stands there."""
    before = kernel("for (int i = 0; i < 8; ++i) {", "  a_ptr[(i * 2)] = 1.0e+00f;", "  for (int j = 0; j < 4; ++j) {",
                    "    if (j == 0) {", "      a_ptr[((i * 4) + j)] = b_ptr[((i * 4) + j)];", "    }",
                    "    a_ptr[((i * 4) + j)] = b_ptr[(((i * 4) + j) + 1)];", "  }", "}")
    assert (loop_operations(before), loop_operations(hoisted(before))) == (3, 2)
