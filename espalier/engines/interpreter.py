"""The definition as an engine: the graph's interpreter and the numerics of the update."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from espalier.engines.base import Network, State, Totals
from espalier.ir.differentiate import gradient_name, next_name, without_backward
from espalier.ir.graph import Graph
from espalier.ir.interpret import interpret
from espalier.ir.ops import MaxPool
from espalier.numerics.activation import max_pool
from espalier.numerics.update import ScalarSgd


class InterpreterEngine:
    """Slow, obvious, exact; see :class:`espalier.engines.base.Engine`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._inference = without_backward(network.graph)
        self._state: dict[str, NDArray] = {}

    def load(self, state: State) -> None:
        self._state = {name: np.array(words, dtype=np.float32 if words.dtype.kind == "f" else np.int64)
                       for name, words in state.items() if not name.endswith(".live")}

    def state(self) -> dict[str, NDArray]:
        return dict(self._state)

    def train(self, images: NDArray[np.int64], labels: NDArray[np.int64], batch: int) -> Totals:
        loss = correct = 0
        for start in range(0, len(images), batch):
            found = self.traced_step(images[start: start + batch], labels[start: start + batch])
            loss, correct = loss + int(found["loss"]), correct + int(found["correct"])
        return Totals(loss=loss, correct=correct)

    def infer(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> Totals:
        values = self._run(self._inference, images, labels)
        return Totals(loss=int(values["loss"].sum()), correct=self._correct(values, labels))

    def _run(self, graph: Graph, images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, NDArray]:
        return interpret(graph, {graph.inputs[0].name: images, graph.inputs[1].name: labels, **self._state})

    def _correct(self, values: dict[str, NDArray[np.int64]], labels: NDArray[np.int64]) -> int:
        return int((values[self.network.graph.outputs[1].name].argmax(axis=1) == labels).sum())

    def traced_step(self, images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, NDArray]:
        graph, network = self.network.graph, self.network
        values = self._run(graph, images, labels)
        found = {value.name: values[value.name] for value in graph.values() if value not in graph.parameters}
        for op in graph.ops:
            if isinstance(op, MaxPool):
                found[f"{op.out.name}.code"] = max_pool(values[op.x.name], op.window)[1]
        found["loss"] = np.array(values["loss"].sum())
        found["correct"] = np.array(self._correct(values, labels))
        for value in graph.statistics():
            self._state[value.name] = values[next_name(value.name)]
        for name, rule in network.rules.items():
            live = network.live[name]
            if isinstance(rule, ScalarSgd):
                self._state[name], self._state[f"{name}.momentum"] = rule(
                    self._state[name], self._state[f"{name}.momentum"], values[gradient_name(name)])
                continue
            gradient = np.where(live, values[gradient_name(name)], 0)
            master, momentum, weight = rule(
                self._state[f"{name}.master"], self._state[f"{name}.momentum"], gradient)
            found[gradient_name(name)] = gradient
            self._state[name] = np.where(live, weight, 0)
            self._state[f"{name}.master"] = np.where(live, master, 0)
            self._state[f"{name}.momentum"] = np.where(live, momentum, 0)
        return {**found, **self._state}
