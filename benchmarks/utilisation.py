"""RTL-simulated cycles per layer and phase of a training step, and how much of them the multipliers were of use.

    python benchmarks/utilisation.py [--lanes 8]

A useful multiplication has a live weight and a tap inside the image; utilisation is useful
multiplications / (rows × lanes × cycles). Cycles are those of the whole phase, from the end of the
last phase to the end of this one.
"""

from __future__ import annotations

import argparse

from harness import Prepared, prepare, write_results

from espalier.engines.rtl import RtlEngine
from espalier.flow.cycles import layer_macs
from espalier.program.words import Opcode
from espalier.records import Bar, Figure, Provenance

CASES = (("lenet5", "mnist"), ("cnn1x", "cifar10"))
PHASES = {Opcode.FORWARD: "FP", Opcode.BACKWARD: "BP", Opcode.UPDATE: "WU", Opcode.LOSS: "loss"}


def useful_macs(prepared: Prepared) -> dict[str, int]:
    """Useful multiplications of one image and phase, by layer."""
    return {item.layer.name: layer_macs(item.layer, prepared.network.live) for item in prepared.blocks}


def measure(name: str, data: str, rows: int, lanes: int, density: float) -> tuple[Prepared, dict, dict]:
    """Cycles of one step by (layer, phase), and useful multiplications by layer."""
    prepared = prepare(name, data, rows=rows, lanes=lanes, density=density)
    engine = RtlEngine(prepared.network)
    engine.load(prepared.state)
    engine.train(prepared.images[:lanes], prepared.labels[:lanes], lanes)
    cycles = {(phase.layer, PHASES[phase.opcode]): phase.cycles for phase in engine.phase_cycles()
              if phase.cycles and phase.opcode in PHASES}
    engine.close()
    return prepared, cycles, useful_macs(prepared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=8)
    lanes = parser.parse_args().lanes
    figures: list[Figure] = []
    bars: list[Bar] = []

    def note(what: str, value: float, unit: str) -> None:
        figures.append(Figure(what, value, unit, Provenance.SIMULATED))

    for name, data in CASES:
        for rows in (1, 4, 8):
            totals: dict[float, dict[str, int]] = {}
            for density in (1.0, 0.1):
                prepared, cycles, macs = measure(name, data, rows, lanes, density)
                case = f"{name} rows={rows} lanes={lanes} density={density:g}"
                convolutions = [item.layer.name for item in prepared.blocks if item.layer.name.startswith("conv")]
                useful = 0
                for (layer, phase), count in cycles.items():
                    note(f"{case} {layer} {phase} cycles", count, "cycles")
                    if layer in macs:
                        useful += macs[layer] * lanes
                        used = macs[layer] / (rows * count)
                        note(f"{case} {layer} {phase} utilisation", used, "1")
                        if name == "cnn1x" and density == 1 and layer in convolutions:
                            bars.append(Bar(f"{case} {layer} {phase} utilisation", used, ">=", 0.95))
                whole = useful / (rows * lanes * sum(cycles.values()))
                note(f"{case} step cycles", sum(cycles.values()), "cycles")
                note(f"{case} step utilisation", whole, "1")
                if name == "cnn1x" and density == 1:
                    bars.append(Bar(f"{case} step utilisation", whole, ">=", 0.90))
                totals[density] = {phase: sum(count for (layer, p), count in cycles.items()
                                              if p == phase and layer in convolutions) for phase in ("FP", "BP", "WU")}
                print(case, f"step {sum(cycles.values())} cycles, utilisation {whole:.4f}", flush=True)
            for phase in ("FP", "BP", "WU"):
                speedup = totals[1.0][phase] / totals[0.1][phase]
                note(f"{name} rows={rows} lanes={lanes} convolutions {phase} speed-up at 90 % pruned", speedup, "×")
                if name == "cnn1x":
                    bars.append(Bar(f"{name} rows={rows} lanes={lanes} convolutions {phase} speed-up at 90 % pruned",
                                    speedup, ">=", 8.5))
    write_results("utilisation", seeds=[0], figures=figures, bars=bars)


if __name__ == "__main__":
    main()
