"""A network as OpenCL kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from espalier.errors import UnsupportedError
from espalier.ir.graph import Graph
from espalier.opencl.bundle import Buffer, Bundle, End, Launch, Task
from espalier.opencl.choice import Choose, first
from espalier.opencl.codegen import opencl_text, prelude
from espalier.opencl.folding import folded
from espalier.opencl.loop_invariants import hoisted
from espalier.opencl.lower import lower
from espalier.opencl.optimisations import ALL, Optimisations
from espalier.opencl.pipelined import joined, task_of
from espalier.opencl.queues import Turn, turns
from espalier.opencl.schedule import scheduled


def compile_kernels(graph: Graph, parameters: Mapping[str, NDArray], options: Optimisations = ALL,
                    data: str = "", choose: Choose = first) -> Bundle:
    """The kernels of an inference graph, float (batch norms folded) or fixed, that was trained on ``data``.

    ``choose`` decides what schedules leave open, the estimate by default.

    Raises UnsupportedError for what no kernel does.
    """
    if len(graph.outputs) != 1:
        raise UnsupportedError(f"OpenCL kernels give one result, and network {graph.name!r} has {len(graph.outputs)}")
    lowered = lower(graph, parameters, options, choose)
    arguments = {argument.name: argument for argument in (
        *(lowered.argument(value) for value in graph.inputs),  # one may be the result, or be read by nothing
        *(argument for kernel in lowered.kernels for argument in kernel.arguments))}
    buffers = {name: Buffer(name, argument.type, int(np.prod(argument.shape)), name in lowered.weights)
               for name, argument in sorted(arguments.items())}
    *images, result = (End(lowered.names[value], value.shape, lowered.layouts[value], value.format)
                       for value in (*graph.inputs, graph.outputs[0]))
    found = [scheduled(kernel, options, choose) for kernel in lowered.kernels]
    texts = [opencl_text(one) for one in found]
    tasks: list[Task | None] = [None] * len(found)
    if options.folding and not options.tasks:
        texts = folded(texts)
    if options.loop_invariants:  # once it is known which numbers are arguments
        sources = {source: hoisted(source) for source in dict.fromkeys(text.source for text in texts)}
        texts = [replace(text, source=sources[text.source]) for text in texts]
    if options.tasks:
        ends = [end.buffer for end in (*images, result)]
        tasks = [task_of(text, texts, ends) for text in texts]
        texts = joined(texts, buffers, ends)
    order = turns([(text.roles[:-1], text.roles[-1]) for text in texts]) if options.queues else [Turn()] * len(texts)
    launches = tuple(
        Launch(one.kernel.name, text.name, text.arguments, text.numbers, text.roles[-1], one.groups,
               one.kernel.multiplications, one.loop, turn.queue, turn.after, task)
        for one, text, turn, task in zip(found, texts, order, tasks, strict=True))
    return Bundle(graph.name, data, {**asdict(options), "style": options.style.value},
                  "\n".join([prelude(), *dict.fromkeys(text.source for text in texts)]), tuple(buffers.values()),
                  launches, tuple(images), result, lowered.weights)
