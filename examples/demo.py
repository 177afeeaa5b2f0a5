"""The whole way, once: digits, trained and pruned in fixed point, and an accelerator that goes on training them.

    python examples/demo.py --output-dir runs/demo

takes a few minutes on two cores. Place and route takes much longer than all the rest, so it only runs with
``--route``; without it the report says that no clock is known.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from espalier.errors import EspalierError
from espalier.flow import (
    CompileRequest,
    SimulateRequest,
    Steps,
    SynthRequest,
    TrainFlags,
    VerifyRequest,
    compile_network,
    recipe,
    simulate,
    synth,
    train_network,
    verify,
    write_report,
)

ROWS, LANES = 4, 4
DENSITY = 0.15
EPOCHS, BASELINE_EPOCHS = 12, 6


def main() -> int:
    """Run every stage; the exit status is 0 only if all of them succeed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--epochs-in-simulation", type=int, default=2, help="trained in RTL simulation")
    parser.add_argument("--route", action="store_true", help="place and route, too: adds many minutes")
    options = parser.parse_args()
    begun = time.perf_counter()
    try:
        page = demonstrate(options.output_dir, options.epochs_in_simulation, options.route, Steps(Console()))
    except EspalierError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Done in {time.perf_counter() - begun:.0f} s. Report: {page.resolve()}")
    return 0


def demonstrate(output: Path, epochs: int, route: bool, steps: Steps) -> Path:
    """All stages, into ``output``; the path of the report."""
    trained, baseline, build, page = (output / name for name in ("train", "float32", "build", "report.html"))
    steps.tell("Train: the float32 baseline, and 16-bit fixed point pruned to "
               f"{DENSITY:.0%} in {ROWS}×{ROWS} blocks")
    dense = TrainFlags(epochs=BASELINE_EPOCHS, batch=32, rate="cosine", float32=True)
    pruned = TrainFlags(epochs=EPOCHS, batch=32, rate="cosine", density=DENSITY, block=ROWS)
    train_network(recipe(None, dense), baseline, steps=steps)
    train_network(recipe(None, pruned), trained, steps=steps)
    steps.tell(f"Compile: for an ECP5-85F, {ROWS} rows × {LANES} lanes")
    request = CompileRequest(device="ecp5-85f", rows=ROWS, lanes=LANES, momentum=0.5)
    compile_network(trained, build, request, steps=steps)
    steps.tell("Verify: every tensor of two training steps, RTL against the definition")
    verify(build, VerifyRequest(steps=2), steps)
    steps.tell(f"Simulate: {epochs} epochs of training in the RTL, bit for bit, and cycles against dense")
    simulate(build, SimulateRequest(steps=2, epochs=epochs), steps)
    steps.tell("Synthesise: with Yosys" + (", then place and route" if route else ""))
    synth(build, SynthRequest(route=route), steps)
    steps.tell("Report")
    write_report([trained, build], page, title="Espalier: handwritten digits", baseline=baseline, steps=steps)
    return page


if __name__ == "__main__":
    raise SystemExit(main())
