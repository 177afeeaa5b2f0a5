"""Imports flow one way through the packages, and outside libraries stay in the packages they belong to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "espalier"

#: Every part of the package and the layers left of it, whose parts it may import besides itself. After ``program``
#: the order forks: the learning half (frontend ... train) and the hardware half do not know each other.
LEFT = (("__init__",), ("errors",), ("records", "numerics", "native"), ("ir",), ("arch",), ("program",))
SOURCES = ("frontend", "zoo", "data", "compress")
PARTS = ("targets",)  #: what FPGA parts offer: plain data, which estimates are made from
HARDWARE = ("compiler", "gateware", "opencl", "cost")
RIGHT = (("engines", "synth"), ("explore",), ("report",), ("flow",), ("cli",), ("__main__",))


def left_of() -> dict[str, frozenset[str]]:
    """For each part, the parts that it may import."""
    allowed: dict[str, frozenset[str]] = {}

    def place(parts: tuple[str, ...], left: frozenset[str]) -> frozenset[str]:
        allowed.update(dict.fromkeys(parts, left))
        return left | set(parts)

    left: frozenset[str] = frozenset()
    for parts in LEFT:
        left = place(parts, left)
    learning = place(("train",), place(SOURCES, left))
    left = learning | place(HARDWARE, place(PARTS, left))
    for parts in RIGHT:
        left = place(parts, left)
    return allowed


MAY_IMPORT = left_of()

#: Outside libraries and the packages that may import them.
HOMES: dict[str, frozenset[str]] = {
    "torch": frozenset({"frontend", "zoo", "data", "compress", "train"}),
    "torchvision": frozenset(),
    "torch_pruning": frozenset(),
    "onnx": frozenset({"frontend"}),
    "amaranth": frozenset({"gateware", "targets", "engines", "synth"}),
    "pyopencl": frozenset({"opencl", "engines"}),
    "tvm": frozenset({"opencl"}),
    "jinja2": frozenset({"report"}),
}


def imports(source: str, package: str) -> set[str]:
    """The dotted names that ``source``, a module in ``package``, imports, relative ones resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join([*package.split(".")[: len(package.split(".")) - level + 1 if level else 0],
                                 *([module] if module else [])])
                found.update([f"{base}.{alias.name}" for alias in names] if base == "espalier" else [base])
            case _:
                pass
    return found


def part(name: str) -> str:
    """The package (or top module) of ``espalier`` that the dotted ``name`` is in; "" for espalier itself."""
    return (name.split(".") + [""])[1]


def faults(source: str, module: str, package: str) -> list[str]:
    """What the imports of ``module`` break, one sentence each."""
    here, wrong = part(module), []
    for name in sorted(imports(source, package)):
        top = name.split(".")[0]
        if top == "espalier" and part(name) in MAY_IMPORT.keys() - MAY_IMPORT[here] - {here}:
            wrong.append(f"{module} imports {name}, which does not stand left of it")
        if top in HOMES and here not in HOMES[top]:
            wrong.append(f"{module} imports {name}, which belongs to {sorted(HOMES[top])}")
    return wrong


MODULES = sorted(path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py"))


def test_there_are_modules():
    assert Path("espalier/ir/graph.py") in MODULES


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_flow_one_way(path):
    module = ".".join(path.with_suffix("").parts)
    assert faults((ROOT.parent / path).read_text(), module, ".".join(path.parent.parts)) == []


def test_every_part_has_a_layer():
    assert {path.parts[1].removesuffix(".py") for path in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize(("source", "module", "fault"), [
    ("import espalier.ir.graph", "espalier.numerics.fixed", "espalier.ir.graph, which does not stand left of it"),
    ("from espalier.numerics import fixed", "espalier.records", "espalier.numerics, which does not stand left of it"),
    ("from espalier.zoo import lenet", "espalier.data.idx", "espalier.zoo, which does not stand left of it"),
    ("from espalier import ir", "espalier.numerics.fixed", "espalier.ir, which does not stand left of it"),
    ("from ..ir.graph import Graph", "espalier.numerics.fixed", "espalier.ir.graph, which does not stand left of it"),
    ("from .. import ir", "espalier.numerics.fixed", "espalier.ir, which does not stand left of it"),
    ("def f():\n  from espalier.compiler import x", "espalier.gateware.a",
     "espalier.compiler, which does not stand left of it"),
    ("from espalier.train import x", "espalier.compiler.a", "espalier.train, which does not stand left of it"),
    ("import torch.nn as nn", "espalier.ir.graph", "torch.nn, which belongs to"),
    ("from torch import nn", "espalier.gateware.a", "torch, which belongs to"),
    ("if True:\n  import onnx", "espalier.train.a", "onnx, which belongs to ['frontend']"),
    ("from amaranth.hdl import Module", "espalier.compiler.a", "amaranth.hdl, which belongs to"),
    ("import jinja2", "espalier.cli", "jinja2, which belongs to ['report']"),
])
def test_a_fault_is_found(source, module, fault):
    found = faults(source, module, module.rpartition(".")[0])
    assert [fault in sentence for sentence in found] == [True]


@pytest.mark.parametrize(("source", "module"), [
    ("from espalier.errors import FormatError\nimport numpy", "espalier.numerics.fixed"),
    ("from espalier.numerics.window import Window", "espalier.numerics.convolution"),
    ("from .window import Window\nfrom . import fixed", "espalier.numerics.convolution"),
    ("import torch\nfrom espalier.data import digits", "espalier.train.loop"),
    ("from espalier.gateware.accelerator import Accelerator\nimport amaranth", "espalier.engines.rtl"),
    ("from espalier import __version__", "espalier.cli"),
])
def test_what_is_allowed(source, module):
    assert faults(source, module, module.rpartition(".")[0]) == []
