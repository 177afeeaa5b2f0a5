"""Simulation of one build: equal to the interpreter, counted against dense, and what it says when it is not equal."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bench.builds import write_data

from espalier.arch.memory import MemoryTiming
from espalier.cost.cycles import PhaseCycles
from espalier.cost.traffic import traffic
from espalier.errors import DataError, MismatchError, ToolError
from espalier.flow import CompileRequest, SimulateRequest, compile_network, simulate, write_report
from espalier.flow.cycles import by_phase, dense_machine, layers_of
from espalier.flow.design import load_design
from espalier.flow.manifest import load_manifest
from espalier.program.words import PAGE_SHIFT, Opcode
from espalier.report.cycles import Cycles
from espalier.report.model import Verification
from espalier.report.serial import decode
from espalier.train.checkpoint import Checkpoint


class FailingEngine:
    """An engine whose simulator the tools do not build."""

    def __init__(self, network, timing=None):
        raise ToolError("the simulator cannot be built")


def test_simulated_training_equals_the_interpreter_and_is_counted(build, tmp_path):
    content = simulate(build, SimulateRequest(steps=5, traced=2, save=tmp_path / "after.safetensors"))
    assert json.loads((build / "simulate.json").read_text()) == content
    assert all(decode(Verification, check, "check").passed for check in content["verifications"])
    cycles = decode(Cycles, content["cycles"], "cycles")
    assert cycles.images == 4 and cycles.step_speedup > 1
    assert {(row.layer, row.phase.value) for row in cycles.layers} == {
        ("conv", "FP"), ("fc", "FP"), ("fc", "BP"), ("fc", "WU"), ("conv", "WU")}
    assert [figure["provenance"] for figure in content["figures"]][0] == "measured"
    after, design = Checkpoint.load(tmp_path / "after.safetensors"), load_design(build)
    assert not np.array_equal(after.state["fc.weight"], design.state["fc.weight"])


def test_what_a_machine_with_external_memory_moves_and_waits_for(made, tmp_path):
    folder = tmp_path / "spilling"
    design = compile_network(made / "train", folder, CompileRequest(rows=2, lanes=2, port_bits=32))
    assert design is not None and not traffic(design.network().program).read, "the part has block RAMs for all"
    shallow = replace(design.machine, activation_depth=128).to_json()
    (tmp_path / "machine.json").write_text(json.dumps(shallow))
    compile_network(made / "train", folder, CompileRequest(machine=tmp_path / "machine.json"))
    waits = {}
    for latency in (0, 500):
        content = simulate(folder, SimulateRequest(steps=1, test_images=4, dense=False,
                                                   memory=MemoryTiming(latency=latency)))
        found = {figure["name"]: figure["value"] for figure in content["cycles"]["figures"]}
        moved = traffic(load_design(folder).network().program)
        assert found["Read from external memory"] == moved.read > 0
        assert found["Written to external memory"] == moved.written
        waits[latency] = found["Waits for external memory"]
    assert waits[0] > 0 and waits[0] + 500 <= waits[500]


def test_maps_in_tiles(made, tmp_path):
    """Two groups of two images a batch, each in four lanes; beside the dense network in tiles, too."""
    request = CompileRequest(rows=2, lanes=8, grid=(2, 2), batch=4)
    design = compile_network(made / "train", tmp_path / "tiles", request)
    assert design is not None and (design.machine.images, design.machine.groups) == (2, True)
    content = simulate(tmp_path / "tiles", SimulateRequest(steps=2, test_images=6))
    assert all(decode(Verification, check, "check").passed for check in content["verifications"])
    cycles = decode(Cycles, content["cycles"], "cycles")
    assert cycles.images == 4 and cycles.step_speedup > 1
    single = compile_network(made / "train", tmp_path / "one", CompileRequest(rows=2, lanes=4, grid=(2, 2)))
    assert single is not None and (single.machine.images, single.batch) == (1, 1)


def test_processing_elements(made, tmp_path):
    """Two of two rows: files of each, the time in which each idles, and the dense network beside."""
    folder = tmp_path / "elements"
    design = compile_network(made / "train", folder, CompileRequest(elements=2, rows=2, lanes=2))
    assert design is not None and design.machine.multipliers == 8
    assert {"weights_0.hex", "weights_1.hex", "index_1.hex"} <= {path.name for path in folder.iterdir()}
    content = simulate(folder, SimulateRequest(steps=2, test_images=4))
    assert all(decode(Verification, check, "check").passed for check in content["verifications"])
    cycles = decode(Cycles, content["cycles"], "cycles")
    idle = {figure.name: figure.value for figure in cycles.figures if figure.name.startswith("Idle in ")}
    assert len(idle) == 6 and all(0 < value < 100 for value in idle.values())
    for phase in ("FP", "BP", "WU"):
        assert idle[f"Idle in {phase}"] <= idle[f"Idle in {phase}, the processing element with the least work"]
    assert cycles.step_speedup > 1


def test_weights_that_stream(made, tmp_path):
    """The largest layer's lie in external memory, in files of their own, and the dense network's on its machine too."""
    folder = tmp_path / "streaming"
    compile_network(made / "train", folder, CompileRequest(rows=2, lanes=2, port_bits=32, stream_weights=True))
    machine = load_design(folder).machine
    assert not machine.panel_depth, "two panels would take more than so small a network"
    machine = replace(machine, weight_depth=machine.weight_depth // 4, panel_depth=machine.weight_depth,
                      state_depth=machine.weight_depth // 2, run_depth=256)
    (tmp_path / "machine.json").write_text(json.dumps(machine.to_json()))
    compile_network(made / "train", folder, CompileRequest(machine=tmp_path / "machine.json"))
    design = load_design(folder)
    program = design.network().program
    assert program.external_columns and machine.panel_depth and load_manifest(folder).depths.panel_depth is not None
    files = {path.name: path.stat().st_size for path in folder.glob("external_*.bin")}
    assert files == {f"external_{page << PAGE_SHIFT:08x}.bin": program.external_columns * machine.rows * size
                     for page, size in ((program.weight_page, 2), (program.state_page, 8))}
    content = simulate(folder, SimulateRequest(steps=2, test_images=4))
    assert all(decode(Verification, check, "check").passed for check in content["verifications"])
    cycles = decode(Cycles, content["cycles"], "cycles")
    assert cycles.step_speedup > 1
    assert {"end: all written", "fc: weights put out", "fc: weights asked for, and waited for"} <= {
        row.name for row in cycles.others}
    assert cycles.step_cycles == sum(row.cycles for row in (*cycles.layers, *cycles.others))


def test_useful_macs_do_not_count_padding(build):
    content = simulate(build, SimulateRequest(steps=1, dense=False, test_images=0))
    design = load_design(build)
    live = design.live["conv.weight"]
    inside = np.array([[(8 - abs(y - 1)) * (8 - abs(x - 1)) for x in range(3)] for y in range(3)])
    row = next(row for row in content["cycles"]["layers"] if (row["layer"], row["phase"]) == ("conv", "FP"))
    assert row["useful_macs"] == 4 * (live.sum(axis=(0, 1)) * inside).sum()
    assert row["dense_cycles"] is None and content["cycles"]["dense_step_cycles"] is None


def test_the_dense_machine_holds_the_dense_network(build):
    design = load_design(build)
    live = {name: np.ones_like(mask) for name, mask in design.live.items()}
    design.network(live, dense_machine(design))
    assert [layer.name for layer in layers_of(design)] == ["conv", "fc"]


def test_commands_of_one_phase_are_one_row():
    fp = PhaseCycles(layer="a", opcode=Opcode.FORWARD, cycles=9, steps=(7,))
    bp = PhaseCycles(layer="a", opcode=Opcode.BACKWARD, cycles=5, steps=(3,))
    other = replace(bp, layer="b")
    assert by_phase([fp, bp, other, bp]) == (fp, replace(bp, cycles=10, steps=(6,)), other)


def test_a_mismatch_after_simulated_steps_wrong(build, wrong_engine):
    with pytest.raises(MismatchError, match=r"^After 2 steps 1 of 36 words of 'conv\.weight' differ between RTL and "
                                            r"interpreter: `espalier verify --steps 2` finds the first$"):
        simulate(build, SimulateRequest(steps=2, traced=0, test_images=0, dense=False))
    assert not (build / "simulate.json").exists()


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: SimulateRequest(steps=0), r"^A simulation must train for at least one step or epoch$"),
    (lambda: SimulateRequest(seed=-1), r"^seed of a simulation must be at least 0, not -1$"),
])
def test_requests_wrong(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


def test_epochs_of_too_few_images_wrong(build, tmp_path):
    images, labels = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 9])
    data = write_data(tmp_path, x_train=images, y_train=labels)
    with pytest.raises(DataError, match=r"^Batch size must be in 1\.\.3 \(the images of 'small-train'\), not 4$"):
        simulate(build, SimulateRequest(data=str(data), steps=0, epochs=1))


def test_no_speed_is_told_where_every_step_is_traced(build):
    content = simulate(build, SimulateRequest(steps=1, traced=1, dense=False, test_images=0))
    assert content["figures"] == []


def test_what_was_simulated_is_kept_where_the_state_cannot_be_saved_wrong(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^Checkpoint .* cannot be written"):
        simulate(build, SimulateRequest(steps=1, dense=False, test_images=0, save=tmp_path / "file" / "a.safetensors"))
    assert json.loads((build / "simulate.json").read_text())["steps"] == 1


@pytest.mark.parametrize(("place", "fault", "reason"), [
    ("required_acc_bits", lambda layers, blocks: 63, "Accumulator width must be in 32..62 bits, not 63"),
    ("RtlEngine", FailingEngine, "the simulator cannot be built"),
])
def test_a_dense_machine_that_cannot_be_built_is_told_and_does_not_stop(build, tmp_path, monkeypatch, place, fault,
                                                                        reason):
    monkeypatch.setattr(f"espalier.flow.cycles.{place}", fault)
    content = simulate(build, SimulateRequest(steps=1, test_images=0))
    assert content["cycles"]["dense_step_cycles"] is None and content["cycles"]["dense_missing"] == reason
    write_report([build], tmp_path / "page.html")
    assert f"as its machine cannot be built ({reason}), so there is no speed-up" in (tmp_path / "page.html").read_text()
