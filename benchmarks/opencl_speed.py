"""How fast OpenCL kernels are, single images: each optimisation added to those before it, beside other runtimes.

    python benchmarks/opencl_speed.py

LeNet-5, MobileNetV1 and ResNet-34 (224×224, 1000 classes) in float32 with random weights, by one thread and by two,
each in a process of its own, since PoCL and TVM choose their threads once. All contenders take turns in rounds of one
run each (of as many as take SECONDS, where they are quick) after one that is not timed, since code and weights that
another contender has driven out of the caches are in nobody's way who runs one network; the median of the rounds is
told. Those that need more than SLOW seconds run once. Times are of the whole way from an image in the computer's memory
to its logits there.

- ``base`` ... ``folding``: our kernels on PoCL, from ``Optimisations``' ladder; ``folding`` is all of them but the
  last, ``lists``, which leaves networks alone that are not pruned.
- ``torch``: PyTorch, channels_last. ``onnxruntime``: with the batch norms folded into the layers.
- ``tvm``: TVM's own code for this processor, untuned, batch norms folded; most of its untuned loops use one thread.
  Its threads are not bound to cores: it would bind ours, which the other contenders use, too.

Then the same networks with a tenth of their weights, single ones and blocks of 4 × 4: the smallest of each layer are
zero, in the same part of each but for the first layer and depthwise ones, which stay whole. There the contenders are
``lists``, all others without it (``folding``), and the other runtimes, to which a zero is a number like others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from espalier.records import Bar, Figure, Provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

NETWORKS = {"lenet5": 10, "mobilenetv1_224": 1000, "resnet34": 1000}  #: and their classes
THREADS = (1, 2)
SECONDS, SLOW = 0.02, 0.5
VARIABLES = ("POCL_MAX_PTHREAD_COUNT", "OMP_NUM_THREADS", "TVM_NUM_THREADS")
WHOLE, LISTS = "folding", "lists"
DENSITY = 0.1
PRUNED = {1: "single weights", 4: "blocks of 4 × 4"}
PEAK_SIZE = 1024
SUMS, TURNS, GROUPS = 12, 20_000, 16  #: of the kernel that does nothing but multiply and add: sums of 16, and how often
PEAK = """__kernel void peak(__global float16 *out) {{
  float16 x = (float16)(0.5f + get_group_id(0)), {sums};
  for (int turn = 0; turn < {turns}; turn++) {{ {body} }}
  out[get_group_id(0)] = {total};
}}"""


def contenders(name: str, threads: int, rows: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways to run network ``name`` on one image, by name; each has run once and gives torch's logits.

    ``rows``: the edge of the blocks in which it is pruned, 0 where it is not.
    """
    import numpy as np
    import onnxruntime
    import torch

    from espalier.frontend.onnx_export import to_onnx
    from espalier.frontend.torch_export import from_torch
    from espalier.opencl.compilation import compile_kernels
    from espalier.opencl.optimisations import ladder
    from espalier.opencl.runtime import Session
    from espalier.zoo import build, input_shape

    torch.set_num_threads(threads)
    module, shape = build(name, NETWORKS[name]).eval(), input_shape(name)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if rows:
        prune(module, rows)
    image = np.random.RandomState(0).standard_normal((1, *shape)).astype(np.float32)
    graph, parameters = from_torch(module, shape, name)
    channels_last = module.to(memory_format=torch.channels_last)
    seen = torch.from_numpy(image).to(memory_format=torch.channels_last)
    logits = channels_last(seen).numpy()

    def checked(title: str, run: Callable[[], np.ndarray]) -> tuple[str, Callable[[], object]]:
        error = float(np.abs(run() - logits).max() / np.abs(logits).max())
        assert error < 1e-4, f"{title} gives other logits: {error}"
        return title, run

    for title, options in [item for item in ladder() if item[0] in (WHOLE, LISTS)] if rows else [*ladder()][:-1]:
        yield checked(title, partial(Session(compile_kernels(graph, parameters, options)).run, image))
    yield checked("torch", lambda: channels_last(seen).numpy())
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    other = onnxruntime.InferenceSession(to_onnx(graph, parameters).SerializeToString(), settings,
                                         providers=["CPUExecutionProvider"])
    feed = {other.get_inputs()[0].name: image}
    yield checked("onnxruntime", lambda: other.run(None, feed)[0])
    if not rows:
        yield checked("tvm", tvm_run(module, image))


def prune(module: nn.Module, rows: int) -> None:
    """Keep DENSITY of all weights, in blocks of ``rows``."""
    from harness import largest
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    whole = [layer for layer in layers if layer is layers[0] or getattr(layer, "groups", 1) > 1]
    kept, every = (sum(layer.weight.numel() for layer in some) for some in (whole, layers))
    density = (DENSITY * every - kept) / (every - kept)
    for layer in set(layers) - set(whole):
        weights = layer.weight.numpy()
        weights *= largest(weights, density, rows)


def tvm_run(module: nn.Module, image: NDArray) -> Callable[[], object]:
    """TVM's own way from torch to this processor."""
    import torch
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    exported = torch.export.export(module, (torch.from_numpy(image),))
    found = relax.transform.FoldBatchnormToConv2D()(from_exported_program(exported))
    host = tvm.target.codegen.llvm_get_system_cpu()
    executable = tvm.compile(found, target=tvm.target.Target({"kind": "llvm", "mcpu": str(host)}))
    machine, ready = relax.VirtualMachine(executable, tvm.cpu()), tvm.runtime.tensor(image)

    def run() -> object:
        result = machine["main"](ready)
        return (result if hasattr(result, "numpy") else result[0]).numpy()

    return run


def measured(name: str, threads: int, rows: int, rounds: int) -> dict[str, float]:
    """Median seconds of each contender; and multiplications a second: ``product``, of a matrix product by torch, and
    ``peak``, the most that the kernel of :func:`multiply_and_add` does."""
    import torch

    every = dict(contenders(name, threads, rows))
    once = {title: seconds_of(run, 1) for title, run in every.items()}
    times = {title: [seconds] if seconds > SLOW else [] for title, seconds in once.items()}
    square, peak = torch.ones(PEAK_SIZE, PEAK_SIZE), multiply_and_add()
    products, peaks = [], []
    for _ in range(rounds):
        for title, run in every.items():
            if once[title] <= SLOW:
                run()
                times[title].append(seconds_of(run, max(1, min(100, int(SECONDS / once[title])))))
        products.append(seconds_of(lambda: square @ square, 3))
        peaks.append(seconds_of(peak, 3))
    return {**{title: median(found) for title, found in times.items()}, "product": PEAK_SIZE ** 3 / median(products),
            "peak": GROUPS * TURNS * SUMS * 16 / min(peaks)}


def multiply_and_add() -> Callable[[], object]:
    """As many multiplications and additions as the processor can do, by a kernel that does nothing else."""
    import numpy as np
    import pyopencl as cl

    from espalier.opencl.runtime import find_device

    names = [f"sum{number}" for number in range(SUMS)]
    source = PEAK.format(sums=", ".join(f"{name} = x * {number + 1}" for number, name in enumerate(names)), turns=TURNS,
                         body=" ".join(f"{name} = {name} * x + x;" for name in names), total=" + ".join(names))
    context = cl.Context([find_device()])
    queue, kernel = cl.CommandQueue(context), cl.Kernel(cl.Program(context, source).build(["-w"]), "peak")
    sums = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, GROUPS * 16 * np.dtype(np.float32).itemsize)

    def run() -> object:
        kernel.set_args(sums)
        cl.enqueue_nd_range_kernel(queue, kernel, (GROUPS,), (1,))
        return queue.finish()

    run()
    return run


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Of one run, the median of some."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return median(found)


def environment(threads: int) -> dict[str, str]:
    """Of a process whose runtimes use so many threads; PoCL's for one is another."""
    found = {**os.environ, **dict.fromkeys(VARIABLES, str(threads)), "TVM_BIND_THREADS": "0"}
    return {**found, "POCL_DEVICES": "basic"} if threads == 1 else found


def multiplications(name: str) -> int:
    """For an image, those on padding included."""
    from espalier.frontend.torch_export import from_torch
    from espalier.opencl.lower import lower
    from espalier.opencl.optimisations import ALL
    from espalier.zoo import build, input_shape

    graph, parameters = from_torch(build(name, NETWORKS[name]), input_shape(name), name)
    return sum(kernel.multiplications for kernel in lower(graph, parameters, ALL).kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "THREADS", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, threads, rows = options.one
        print(json.dumps(measured(name, int(threads), int(rows), options.rounds)))
        return
    from harness import write_results

    figures, bars = [], []
    for name in options.networks:
        for threads in THREADS:
            place = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            found = dense_records(place, name, timed(place, name, threads, 0, options.rounds))
            for rows, what in PRUNED.items():
                pruned = f"{place}, {1 - DENSITY:.0%} pruned, {what}"
                found += pruned_records(pruned, name, timed(pruned, name, threads, rows, options.rounds))
            figures += [item for item in found if isinstance(item, Figure)]
            bars += [item for item in found if isinstance(item, Bar)]
    write_results("opencl_speed", seeds=[0], figures=figures, bars=bars, output=options.output)


def timed(place: str, name: str, threads: int, rows: int, rounds: int) -> dict[str, float]:
    """What :func:`measured` finds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, str(threads), str(rows), "--rounds", str(rounds)], check=True,
        stdout=subprocess.PIPE, text=True, env=environment(threads))
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for title, seconds in found.items():
        if title not in ("product", "peak"):
            print(f"{place}: {title} {seconds * 1e3:.3f} ms", flush=True)
    return found


def dense_records(place: str, name: str, times: dict[str, float]) -> list[Figure | Bar]:
    product, peak, ours, work = times.pop("product"), times.pop("peak"), times[WHOLE], multiplications(name)
    found: list[Figure | Bar] = [
        *(Figure(f"{place}: {title}", round(seconds * 1e3, 4), "ms", Provenance.MEASURED)
          for title, seconds in times.items()),
        Figure(f"{place}: base over all", round(times["base"] / ours, 2), "times", Provenance.MEASURED),
        Figure(f"{place}: all", round(2 * work / ours / 1e9, 1), "GFLOP/s", Provenance.MEASURED),
        Figure(f"{place}: a matrix product by torch", round(2 * product / 1e9, 1), "GFLOP/s", Provenance.MEASURED),
        Figure(f"{place}: multiplying and adding alone", round(2 * peak / 1e9, 1), "GFLOP/s", Provenance.MEASURED)]
    if name == "lenet5":
        found.append(Bar(f"{place}: torch over ours", round(times["torch"] / ours, 3), ">", 1))
        if place.endswith("1 thread"):
            found.append(Bar(f"{place}: untuned TVM over ours", round(times["tvm"] / ours, 3), ">=", 3.83))
    else:
        found.append(Bar(f"{place}: ours over ONNX Runtime", round(ours / times["onnxruntime"], 3), "<=", 1.5))
    return found


def pruned_records(place: str, name: str, times: dict[str, float]) -> list[Figure | Bar]:
    """LeNet-5 has no bar here: its launches take longer than its sums."""
    del times["product"], times["peak"]
    found: list[Figure | Bar] = [Figure(f"{place}: {title}", round(seconds * 1e3, 4), "ms", Provenance.MEASURED)
                                 for title, seconds in times.items()]
    ratio = round(times["onnxruntime"] / times[LISTS], 3)
    return [*found, Figure(f"{place}: ONNX Runtime over ours", ratio, "times", Provenance.MEASURED) if name == "lenet5"
            else Bar(f"{place}: ONNX Runtime over ours", ratio, ">", 1)]


if __name__ == "__main__":
    main()
