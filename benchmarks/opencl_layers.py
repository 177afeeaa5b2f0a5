"""What limits each kind of layer in OpenCL kernels on a processor, dense, float32, one image at a time, one thread.

    python benchmarks/opencl_layers.py

MobileNetV1 and ResNet-34 (224×224, 1000 classes), all optimisations. Each kernel is timed by the device's clock, the
median of ROUNDS runs of the network, and held against two limits measured in turns with them: multiplications and
additions a second of a kernel that does nothing else, and bytes a second that one thread copies in memory (read and
written, from and to arrays larger than its caches). Bytes of a kernel are those of its buffers, each once. A kernel
takes at least as long as the larger of the two; the part of its time that this is, is what it reaches. Kinds are sums
over kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from harness import write_results
from opencl_speed import GROUPS, NETWORKS, SUMS, TURNS, environment, multiply_and_add, seconds_of

from espalier.frontend.torch_export import from_torch
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d, Linear
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.runtime import Session
from espalier.records import Figure, Provenance
from espalier.zoo import build, input_shape

ROUNDS = 15
COPIED_BYTES = 1 << 27
OTHERS = "pools and means"


@dataclass(slots=True)
class Spent:
    """By the kernels of one kind: seconds, multiplications, bytes, and the least seconds by either limit."""

    seconds: float = 0.0
    multiplications: int = 0
    size_bytes: int = 0
    computing: float = 0.0
    moving: float = 0.0
    least: float = 0.0


def kinds(graph: Graph) -> dict[str, str]:
    """The kind of each layer, by the name of its result as kernels have it."""
    found = {}
    for op in graph.ops:
        name = re.sub(r"\W", "_", op.out.name)
        match op:
            case Conv2d(groups=groups) if groups > 1:
                found[name] = "depthwise convolutions"
            case Conv2d(x=x, w=w):
                first = ", the first" if x in graph.inputs else ""
                found[name] = f"{w.shape[2]}×{w.shape[3]} convolutions{first}"
            case Linear():
                found[name] = "fully connected"
    return found


def limits() -> tuple[float, float]:
    """Multiplications, each with an addition, and bytes a second."""
    source, target = np.ones(COPIED_BYTES // 8), np.empty(COPIED_BYTES // 8)
    copy = seconds_of(lambda: np.copyto(target, source), 3)
    return GROUPS * TURNS * SUMS * 16 / seconds_of(multiply_and_add(), 3), 2 * COPIED_BYTES / copy


def figures(name: str) -> list[Figure]:
    """Of one network."""
    graph, parameters = from_torch(build(name, NETWORKS[name]).eval(), input_shape(name), name)
    bundle = compile_kernels(graph, parameters)
    session, sizes = Session(bundle), {buffer.name: buffer.size_bytes for buffer in bundle.buffers}
    session.run(np.random.RandomState(0).standard_normal((1, *input_shape(name))).astype(np.float32))
    runs, measured = [], []
    for _ in range(ROUNDS):
        runs.append([kernel.seconds for kernel in session.kernel_times()])
        measured.append(limits())
    peak, bandwidth = (median(found) for found in zip(*measured, strict=True))
    by_kind: dict[str, Spent] = defaultdict(Spent)
    known = kinds(graph)
    for launch, seconds in zip(bundle.launches, map(median, zip(*runs, strict=True)), strict=True):
        kind = known.get(re.sub(r"^k\d+_", "", launch.layer), OTHERS)
        spent, moved = by_kind[kind], sum(sizes[argument] for argument in set(launch.arguments))
        spent.seconds += seconds
        spent.multiplications += launch.multiplications
        spent.size_bytes += moved
        spent.computing += launch.multiplications / peak
        spent.moving += moved / bandwidth
        spent.least += max(launch.multiplications / peak, moved / bandwidth)
    whole = sum(spent.seconds for spent in by_kind.values())
    found = [Figure(f"{name}: limit of multiplications and additions", round(2 * peak / 1e9, 1), "GFLOP/s",
                    Provenance.MEASURED),
             Figure(f"{name}: limit of memory", round(bandwidth / 1e9, 1), "GB/s", Provenance.MEASURED),
             Figure(f"{name}: all kernels", round(1e3 * whole, 2), "ms", Provenance.MEASURED)]
    for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1].seconds):
        for what, value, unit in (
                ("of the time", 100 * spent.seconds / whole, "%"),
                ("reached", 2e-9 * spent.multiplications / spent.seconds, "GFLOP/s"),
                ("buffers", 1e-9 * spent.size_bytes / spent.seconds, "GB/s"),
                ("least time by multiplications", 100 * spent.computing / spent.seconds, "% of the time"),
                ("least time by memory", 100 * spent.moving / spent.seconds, "% of the time"),
                ("least time", 100 * spent.least / spent.seconds, "% of the time")):
            found.append(Figure(f"{name}, {kind}: {what}", round(value, 1), unit, Provenance.MEASURED))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    wanted = environment(1)
    if os.environ.get("POCL_DEVICES") != wanted["POCL_DEVICES"]:  # chosen when PoCL is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)
    found = [figure for name in ("mobilenetv1_224", "resnet34") for figure in figures(name)]
    write_results("opencl_layers", seeds=[0], figures=found, bars=[], output=options.output)


if __name__ == "__main__":
    main()
