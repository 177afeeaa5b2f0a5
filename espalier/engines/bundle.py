"""One training step on disk: all that is needed to compile it and run it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from espalier.arch.machine import Machine
from espalier.compiler.emit import Rules
from espalier.compiler.pipeline import compile_program
from espalier.engines.base import Network, State
from espalier.errors import DataError, FormatError
from espalier.ir import text
from espalier.ir.differentiate import LOSSES, differentiate, gradient_name, slope_name, without_backward
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm, BatchNormInputGrad, LossOp
from espalier.ir.types import Format
from espalier.numerics.fixed import Fixed
from espalier.numerics.scalar import scalar
from espalier.numerics.update import BufferedSgd, Factor, ScalarSgd
from espalier.records import write_bytes_atomically, write_json, write_text_atomically

MACHINE = "machine.json"
FACTORS = ("momentum", "rate", "decay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A compiled network, a parameter state, and one group of images (N, C, H, W) with labels (N,)."""

    network: Network
    state: State
    images: NDArray[np.int64]
    labels: NDArray[np.int64]


def write_bundle(folder: Path, network: Network, state: State, images: NDArray[np.int64],
                 labels: NDArray[np.int64]) -> None:
    """Write ``machine.json``, ``step.graph``, ``rules.json`` and ``tensors.safetensors`` into ``folder``."""
    graph = network.graph
    tensors = {"images": images, "labels": labels,
               **{f"live/{value.name}": network.live[value.name] for value in graph.learned()},
               **{f"state/{key}": state[key] for key in _state_names(graph)}}
    write_json(folder / MACHINE, network.program.machine.to_json())
    write_text_atomically(folder / "step.graph", text.dump(network.graph))
    write_json(folder / "rules.json", {name: _rule_to_json(rule) for name, rule in sorted(network.rules.items())})
    write_bytes_atomically(folder / "tensors.safetensors", save(
        {name: np.ascontiguousarray(tensor, dtype=tensor.dtype if tensor.dtype in (bool, np.float32) else np.int64)
         for name, tensor in tensors.items()}))


def read_bundle(folder: Path) -> Bundle:
    """Read and recompile what :func:`write_bundle` wrote.

    Raises DataError where a file is missing or is not what it must be, and what the compiler raises.
    """
    try:
        machine = Machine.from_json(json.loads((folder / MACHINE).read_text()))
        graph = text.load((folder / "step.graph").read_text())
        rules = {name: _rule_from_json(rule) for name, rule in json.loads((folder / "rules.json").read_text()).items()}
        tensors = load((folder / "tensors.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DataError(f"{folder} is not a whole verification bundle: {error}") from None
    missing = sorted(_tensor_names(graph) - set(tensors))
    if missing:
        raise DataError(f"{folder} is not a whole verification bundle: tensors.safetensors has no {missing[0]!r}")
    live = {value.name: tensors[f"live/{value.name}"] for value in graph.learned()}
    network = recompiled(graph, machine, rules, live)
    state = {name.removeprefix("state/"): tensor for name, tensor in tensors.items() if name.startswith("state/")}
    return Bundle(network=network, state=state, images=tensors["images"], labels=tensors["labels"])


def _tensor_names(graph: Graph) -> set[str]:
    return {"images", "labels", *(f"live/{value.name}" for value in graph.learned()),
            *(f"state/{name}" for name in _state_names(graph))}


def _state_names(graph: Graph) -> list[str]:
    """What a state holds: of scalars no master, of statistics themselves alone."""
    names = [value.name for value in graph.parameters]
    names += [f"{value.name}.momentum" for value in graph.learned()]
    return names + [f"{value.name}.master" for value in graph.learned() if isinstance(value.format, Fixed)]


def recompiled(graph: Graph, machine: Machine, rules: Rules,
               live: Mapping[str, NDArray[np.bool_]]) -> Network:
    """Compile the network of a training graph. Raises DataError where it is not one that ``differentiate`` makes."""
    inference, loss, formats = undifferentiated(graph)
    if differentiate(inference, loss, formats) != graph:
        raise DataError(f"The training graph {graph.name!r} is not what differentiating its network gives: "
                        f"it was changed, or another version wrote it")
    program = compile_program(inference, loss=loss, gradient_formats=formats, live=live, rules=rules, machine=machine)
    return Network(graph=graph, program=program, rules=rules, live=live)


def undifferentiated(graph: Graph) -> tuple[Graph, str, dict[str, Format]]:
    """The network, the loss and the gradient formats that a training graph was made from."""
    if not any(isinstance(op, LossOp) for op in graph.ops):
        raise DataError(f"Graph {graph.name!r} has no loss: it is not a training graph")
    *forward, op = without_backward(graph).ops
    assert isinstance(op, LossOp)
    loss = next(name for name, (kind, _) in LOSSES.items() if isinstance(op, kind))
    inference = Graph(graph.name, graph.inputs[:1], graph.parameters, tuple(forward), (op.logits,))
    known = {value.name: value.format for value in graph.values()}
    wanted = (gradient_name(value.name) for value in inference.values())
    slopes = {other.scale: other.slope for other in graph.ops if isinstance(other, BatchNormInputGrad)}
    return inference, loss, {
        **{name: known[name] for name in wanted if name in known},
        **{slope_name(norm.out.name): slope for norm in forward if isinstance(norm, BatchNorm)
           for slope in (slopes.get(norm.scale),) if slope is not None}}


def _rule_to_json(rule: BufferedSgd | ScalarSgd) -> dict[str, object]:
    factors = {name: getattr(rule, name) for name in FACTORS}
    if isinstance(rule, ScalarSgd):
        return {name: float(factor) for name, factor in factors.items()}
    return {"weight": str(rule.weight), **{name: [factor.word, factor.shift] for name, factor in factors.items()}}


def _rule_from_json(fields: dict[str, Any]) -> BufferedSgd | ScalarSgd:
    if set(fields) == set(FACTORS):
        return ScalarSgd(**{name: scalar(fields[name]) for name in FACTORS})
    if set(fields) != {"weight", *FACTORS}:
        raise FormatError(f"an update rule has the fields weight, {', '.join(FACTORS)}, not {', '.join(fields)}")
    return BufferedSgd(weight=Fixed.parse(fields["weight"]), **{name: Factor(*fields[name]) for name in FACTORS})
