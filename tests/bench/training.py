"""A tiny network, few data, and Control-C in the middle of a training of it."""

from __future__ import annotations

import signal
from functools import cache

import numpy as np
import pytest
import torch

from espalier.data import Dataset, Split, load
from espalier.ir import ops
from espalier.ir.graph import Graph
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.window import Window
from espalier.train.checkpoint import Checkpoint
from espalier.train.step import TrainingStep


def tiny() -> tuple[Graph, dict[str, np.ndarray]]:
    """6C3–P–FC on 8×8 digits, and He-like weights."""
    def value(name: str, *shape: int) -> Value:
        return Value(name, TensorType(shape, FLOAT))
    image, logits = value("image", 1, 8, 8), value("fc", 10)
    w1, b1, w2, b2 = value("conv.w", 6, 1, 3, 3), value("conv.b", 6), value("fc.w", 10, 96), value("fc.b", 10)
    c, r, p, f = value("conv", 6, 8, 8), value("relu", 6, 8, 8), value("pool", 6, 4, 4), value("flat", 96)
    graph = Graph("tiny", (image,), (w1, b1, w2, b2), (
        ops.Conv2d(c, image, w1, b1, Window((3, 3), pad=(1, 1, 1, 1))), ops.Relu(r, c),
        ops.MaxPool(p, r, Window((2, 2), (2, 2))), ops.Reshape(f, p), ops.Linear(logits, f, w2, b2)), (logits,))
    random = np.random.RandomState(0)
    return graph, {"conv.w": random.randn(6, 1, 3, 3) * 0.4, "conv.b": np.zeros(6), "fc.w": random.randn(10, 96) * 0.1,
                   "fc.b": np.zeros(10)}


@cache
def digits() -> Split:
    return load("digits")


@cache
def few() -> Split:
    """300 training and 60 test images."""
    return Split(*(Dataset(part.name, part.images[:count], part.labels[:count], part.classes)
                   for part, count in ((digits().train, 300), (digits().test, 60))))


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (a.graph == b.graph and a.log == b.log and a.position == b.position and set(a.state) == set(b.state)
            and all(np.array_equal(a.state[name], b.state[name]) for name in a.state))


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Press Control-C in the middle of a step (counting those of calibration), also where a shell has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    call, count = TrainingStep.__call__, iter(range(1, 1000))

    def pressed(self: TrainingStep, index: torch.Tensor, moves: torch.Tensor | None = None) -> None:
        if next(count) == step:
            signal.raise_signal(signal.SIGINT)
        call(self, index, moves)
    patch.setattr(TrainingStep, "__call__", pressed)
