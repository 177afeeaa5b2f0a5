"""Random small networks that use every forward operation, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.ops import (
    Add,
    AveragePool,
    ClippedRelu,
    Concat,
    Conv2d,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Op,
    Relu,
    Reshape,
)
from espalier.ir.types import FLOAT, Fixed, Format, TensorType, Value
from espalier.numerics.update import GRADIENT_BITS
from espalier.numerics.window import Window


class Network:
    """A float network that grows by one random operation at a time; ``x`` is its newest value."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        image = self.value("image", *(int(random.integers(low, high)) for low, high in ((1, 5), (3, 7), (3, 7))))
        self.inputs, self.parameters, self.ops = [image], [], []
        self.x = image
        self.maps = [image]  #: every feature map, for residual connections

    def value(self, name: str, *shape: int) -> Value:
        return Value(name, TensorType(shape, FLOAT))

    def parameter(self, name: str, *shape: int) -> Value:
        self.parameters.append(self.value(f"{name}.{len(self.parameters)}", *shape))
        return self.parameters[-1]

    def put(self, make: Callable[[Value], Op], *shape: int) -> None:
        self.x = self.value(f"v{len(self.ops)}", *shape)
        self.ops.append(make(self.x))
        if len(shape) == 3:
            self.maps.append(self.x)

    def window(self, kernels: tuple[int, int] = (1, 4)) -> Window:
        """A window that fits; padding is smaller than the kernel, so no window sees padding alone."""
        kernel = tuple(min(int(self.random.integers(*kernels)), size) for size in self.x.shape[1:])
        stride = tuple(int(step) for step in self.random.integers(1, 3, 2))
        pad = tuple(int(self.random.integers(0, size)) for size in (*kernel, *kernel))
        dilation = (2, 1) if 2 * (kernel[0] - 1) < self.x.shape[1] and self.random.random() < 0.3 else (1, 1)
        return Window(kernel, stride, pad, dilation)

    def conv2d(self) -> None:
        x, window = self.x, self.window()
        groups = int(self.random.choice([g for g in (1, 2, 3, 4) if x.shape[0] % g == 0]))
        outs = groups * int(self.random.integers(1, 3))
        w = self.parameter("conv.weight", outs, x.shape[0] // groups, *window.kernel)
        b = self.parameter("conv.bias", outs) if self.random.random() < 0.5 else None
        self.put(lambda out: Conv2d(out, x, w, b, window, groups), outs, *window.out_size(*x.shape[1:]))

    def relu(self) -> None:
        x = self.x
        self.put(lambda out: Relu(out, x), *x.shape)

    def clip(self) -> None:
        x, bound = self.x, int(self.random.integers(1, 4))
        self.put(lambda out: ClippedRelu(out, x, bound), *x.shape)

    def concat(self) -> None:
        """Beside any map of as many pixels, which may be ``x`` itself."""
        x, others = self.x, [value for value in self.maps if value.shape[1:] == self.x.shape[1:]]
        other = others[int(self.random.integers(len(others)))]
        self.put(lambda out: Concat(out, x, other), x.shape[0] + other.shape[0], *x.shape[1:])

    def pool(self, kind: type[MaxPool] | type[AveragePool]) -> None:
        x, window = self.x, self.window((2, 4))
        self.put(lambda out: kind(out, x, window), x.shape[0], *window.out_size(*x.shape[1:]))

    def add(self) -> None:
        """A residual connection to any map of this shape, which may be ``x`` itself."""
        x, others = self.x, [value for value in self.maps if value.shape == self.x.shape]
        other = others[int(self.random.integers(len(others)))]
        self.put(lambda out: Add(out, x, other), *x.shape)

    def global_average_pool(self) -> None:
        x = self.x
        self.put(lambda out: GlobalAveragePool(out, x), x.shape[0], 1, 1)

    def linear(self, outs: int) -> None:
        x = self.x
        w = self.parameter("linear.weight", outs, x.shape[0])
        b = self.parameter("linear.bias", outs) if self.random.random() < 0.5 else None
        self.put(lambda out: Linear(out, x, w, b), outs)

    def flatten(self) -> None:
        x = self.x
        self.put(lambda out: Reshape(out, x), int(np.prod(x.shape)))

    def graph(self) -> Graph:
        return Graph("random", tuple(self.inputs), tuple(self.parameters), tuple(self.ops), (self.x,))


def random_network(seed: int) -> Graph:
    """A float inference graph: some convolutions, poolings, rectifiers and residual sums, then linear layers."""
    random = np.random.default_rng(seed)
    network = Network(random)
    network.conv2d()
    for _ in range(int(random.integers(1, 6))):
        step = random.choice(["conv2d", "relu", "max", "average", "add", "clip", "concat"])
        match step:
            case "conv2d":
                network.conv2d()
            case "relu":
                network.relu()
            case "clip":
                network.clip()
            case "concat":
                network.concat()
            case "max":
                network.pool(MaxPool)
            case "average":
                network.pool(AveragePool)
            case _:
                network.add()
    if random.random() < 0.3:
        network.global_average_pool()
    network.flatten()
    if random.random() < 0.5:
        network.linear(int(random.integers(2, 6)))
        network.relu()
    network.linear(int(random.integers(2, 6)))
    return network.graph()


def random_training_step(seed: int) -> Graph:
    """A fixed-point training graph over a random network, with random formats that obey the rules."""
    random = np.random.default_rng(seed)
    network = random_network(seed)
    words: dict[str, Format] = {value.name: Fixed.of(int(random.integers(2, 17)), int(random.integers(4, 8)))
                                for value in network.values()}
    gradients: dict[str, Format] = {gradient_name(name): Fixed.of(int(random.integers(2, 17)),
                                                                  int(random.integers(3, 5))) for name in words}
    gradients |= {gradient_name(parameter.name): Fixed.of(GRADIENT_BITS, int(random.integers(0, 8)))
                  for parameter in network.parameters}
    loss = str(random.choice(["softmax_cross_entropy", "square_hinge"]))
    return differentiate(network.with_formats(words), loss, gradients)


@pytest.fixture(scope="session")
def networks() -> st.SearchStrategy[Graph]:
    """Random float inference graphs."""
    return st.integers(0, 2 ** 32 - 1).map(random_network)


@pytest.fixture(scope="session")
def training_steps() -> st.SearchStrategy[Graph]:
    """Random fixed-point training graphs."""
    return st.integers(0, 2 ** 32 - 1).map(random_training_step)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Torch's threads cost more than they bring on tensors this small, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
