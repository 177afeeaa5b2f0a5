"""From torch to Verilog, Program and memory images, in seconds; and the size of the Verilog.

    python benchmarks/compile_time.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from harness import LOSS, fitted_machine, write_results

from espalier.compiler.pipeline import compile_program
from espalier.engines import host
from espalier.frontend.torch_export import from_torch
from espalier.gateware.verilog import verilog
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.records import Bar, Figure, Provenance
from espalier.train.calibrate import calibrate
from espalier.train.optimise import Sgd, buffered_rule
from espalier.zoo import build, input_shape

NETWORKS = ("cnn1x", "cnn2x", "cnn4x")
ROWS, LANES = 8, 16
RUNS = 3


def compile_once(name: str) -> tuple[dict[str, float], int]:
    """Seconds of each part, and bytes of Verilog. Calibration data are random: their values do not matter here."""
    module, shape = build(name), input_shape(name)
    random = np.random.RandomState(0)
    images = random.uniform(-1, 1, (16, *shape)).astype(np.float32)
    labels = random.randint(0, 10, 16)
    verilog.cache_clear()  # each run writes it anew
    seconds, began = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[what], began = now - began, now

    graph, parameters = from_torch(module, shape, name)
    lap("import")
    fixed = calibrate(graph, parameters, images, labels, loss=LOSS, batch=LANES)
    lap("calibrate")
    live = {value.name: np.ones(value.shape, dtype=np.bool_) for value in fixed.graph.parameters}
    rules = {value.name: buffered_rule(Sgd(), LANES, value.format, fixed.gradient_formats[gradient_name(value.name)])
             for value in fixed.graph.parameters}
    machine, _ = fitted_machine(differentiate(fixed.graph, LOSS, fixed.gradient_formats), live, ROWS, LANES)
    lap("choose machine")
    program = compile_program(fixed.graph, loss=LOSS, gradient_formats=fixed.gradient_formats, live=live, rules=rules,
                              machine=machine)
    lap("compile")
    host.joined(host.program_writes(program), host.state_writes(program, fixed.state))
    lap("images")
    source = verilog(machine)
    lap("verilog")
    return seconds, len(source)


def main() -> None:
    torch.set_num_threads(2)
    figures, bars, sizes = [], [], {}
    for name in NETWORKS:
        runs = [compile_once(name) for _ in range(RUNS)]
        sizes[name] = runs[0][1]
        totals = [sum(seconds.values()) for seconds, _ in runs]
        for part in runs[0][0]:
            figures.append(Figure(f"{name} {part}", float(np.median([seconds[part] for seconds, _ in runs])), "s",
                                  Provenance.MEASURED))
        figures += [Figure(f"{name} total, median of {RUNS}", float(np.median(totals)), "s", Provenance.MEASURED),
                    Figure(f"{name} Verilog for {ROWS}×{LANES}", sizes[name], "bytes", Provenance.MEASURED)]
        print(name, totals, sizes[name], flush=True)
        if name == "cnn4x":
            bars.append(Bar("cnn4x: from torch to Verilog, Program and images", float(np.median(totals)), "<", 10))
    bars.append(Bar("Verilog of cnn4x over that of cnn1x", sizes["cnn4x"] / sizes["cnn1x"], "<=", 1.01))
    write_results("compile_time", seeds=[0], figures=figures, bars=bars)


if __name__ == "__main__":
    main()
