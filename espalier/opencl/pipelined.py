"""Layers as tasks that run side by side, each on another image, joined by channels.

For Intel's FPGA compiler (``INTELFPGA_CL``) each kernel is a single work-item: it receives the maps that it reads from
channels, a word at a time, keeps them on chip, computes, and sends its own map to each of its readers. A kernel without
weights takes no arguments at all and runs by itself (autorun). Only the image, the result and weights are in memory.
Maps are received in the order in which the network computes them, so that no kernel waits for one that waits for it.
Elsewhere the same source is kernels with maps in memory, run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from espalier.opencl.bundle import TYPES, Buffer, Task
from espalier.opencl.folding import HEAD, Text


def task_of(kernel: Text, kernels: Sequence[Text], ends: Sequence[str]) -> Task:
    """What a kernel takes where there are channels; a kernel writes the last of its roles.

    ``ends`` are the buffers of images and result, which stay in memory as weights do.
    """
    written = {other.roles[-1] for other in kernels}
    *read, out = kernel.roles
    kept = [name for name in read if name not in written] + [out] * (out in ends)
    return Task(tuple(kept), not kept)


def joined(kernels: Sequence[Text], buffers: Mapping[str, Buffer], ends: Sequence[str]) -> list[Text]:
    """Kernels with channels between them, where the compiler has them."""
    order = {kernel.roles[-1]: number for number, kernel in enumerate(kernels)}
    readers: dict[str, list[str]] = {name: [] for name in order}
    for kernel in kernels:
        for name in kernel.roles[:-1]:
            if name in order:
                readers[name].append(kernel.name)
    return [_joined(kernel, task_of(kernel, kernels, ends), order, readers[kernel.roles[-1]], buffers)
            for kernel in kernels]


def _joined(kernel: Text, task: Task, order: Mapping[str, int], readers: Sequence[str], buffers: Mapping[str, Buffer]
            ) -> Text:
    *read, out = kernel.roles
    received = sorted((name for name in read if name in order), key=lambda name: order[name])
    parameters = [f"__global {TYPES[buffers[name].type]}* restrict {name}_{'out' if name == out else 'ptr'}"
                  for name in task.arguments]
    sent = [f"    ESPALIER_WRITE({_channel(out, reader)}, {out}_ptr[i]);" for reader in readers]
    if out in task.arguments:
        sent.append(f"    {out}_out[i] = {out}_ptr[i];")
    head = list(HEAD.finditer(kernel.source))[-1]  # the definition, after a declaration
    body = kernel.source[head.end():]
    lines = [
        "#ifdef ESPALIER_CHANNELS",
        *(f"ESPALIER_CHANNEL({TYPES[buffers[out].type]}, {_channel(out, reader)})" for reader in readers),
        "ESPALIER_AUTORUN" if task.autorun else "ESPALIER_TASK",
        f"__kernel void {kernel.name}({', '.join(parameters)}) {{",
        *(line for name in received
          for line in _array(name, buffers[name], f"ESPALIER_READ({_channel(name, kernel.name)})")),
        *_array(out, buffers[out], "0"),
        "#else",
        f"{head[0]} {{",
        "#endif",
        body[body.index("{") + 1:body.rindex("}")].strip("\n"),
        "#ifdef ESPALIER_CHANNELS",
        f"  for (int i = 0; i < {buffers[out].elements}; ++i) {{", *sent, "  }",
        "#endif",
        "}", ""]
    return replace(kernel, source="\n".join(lines))


def _array(name: str, buffer: Buffer, value: str) -> list[str]:
    """A map on chip, and what is in it."""
    return [f"  {TYPES[buffer.type]} {name}_ptr[{buffer.elements}];",
            f"  for (int i = 0; i < {buffer.elements}; ++i) {name}_ptr[i] = {value};"]


def _channel(name: str, reader: str) -> str:
    return f"{name}_to_{reader}"
