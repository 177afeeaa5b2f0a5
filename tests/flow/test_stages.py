"""Simulation, verification and report of one build, and what they say when the engines do not agree."""

import json
import shutil
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from bench.builds import config, write_data

from espalier.engines.rtl import RtlEngine
from espalier.errors import DataError, MismatchError
from espalier.flow import SimulateRequest, VerifyRequest, simulate, train_network, verify, write_report
from espalier.flow.cycles import dense_machine, layers_of
from espalier.flow.design import load_design
from espalier.flow.verify import BUNDLE
from espalier.report.cycles import Cycles
from espalier.report.model import Verification
from espalier.report.serial import decode
from espalier.train.checkpoint import Checkpoint


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


def test_verification_counts_every_tensor(build):
    record = verify(build, VerifyRequest(steps=2))
    assert record.passed and record.steps == 2
    names = [tensor.name for tensor in record.tensors]
    assert {"loss", "fc.grad", "conv.weight.grad", "conv.weight.master", "fc.bias.momentum"} <= set(names)
    assert decode(Verification, json.loads((build / "verify.json").read_text()), "verify") == record


@pytest.fixture
def wrong_engine(monkeypatch):
    """The RTL with one bit of one word turned over, whenever it is looked at."""
    traced, state = RtlEngine.traced_step, RtlEngine.state

    def turned(words):
        words = words.copy()
        words.reshape(-1)[3] ^= 1
        return words

    monkeypatch.setattr(RtlEngine, "traced_step", lambda self, images, labels: {
        **(found := traced(self, images, labels)), "fc": turned(found["fc"])})
    monkeypatch.setattr(RtlEngine, "state", lambda self: {
        **(found := state(self)), "conv.weight": turned(found["conv.weight"])})


def test_a_mismatch_is_located_and_bundled_wrong(build, wrong_engine):
    with pytest.raises(MismatchError, match=r"the first is fc\[0, 3\] is .* by the reference and .* by the candidate "
                                            r"\(rerun it with: python -m espalier\.engines\.verify "):
        verify(build, VerifyRequest())
    record = decode(Verification, json.loads((build / "verify.json").read_text()), "verify")
    assert not record.passed and record.differing == 2
    assert (build / BUNDLE / "tensors.safetensors").is_file()


def test_a_mismatch_after_simulated_steps_wrong(build, wrong_engine):
    with pytest.raises(MismatchError, match=r"^After 2 steps 1 of 36 words of 'conv\.weight' differ between RTL and "
                                            r"interpreter: `espalier verify --steps 2` finds the first$"):
        simulate(build, SimulateRequest(steps=2, traced=0, test_images=0, dense=False))
    assert not (build / "simulate.json").exists()


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: SimulateRequest(steps=0), r"^A simulation must train for at least one step or epoch$"),
    (lambda: SimulateRequest(seed=-1), r"^seed of a simulation must be at least 0, not -1$"),
    (lambda: VerifyRequest(steps=0), r"^Steps must be at least 1 and the seed at least 0, not 0 and 0$"),
])
def test_requests_wrong(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


@pytest.fixture(scope="module")
def float32(made, tmp_path_factory):
    """A training in float32 without pruning."""
    folder = tmp_path_factory.mktemp("float32")
    train_network(config(made, quantise=None, prune=None, epochs=1), folder)
    return folder


def test_a_report_of_everything(made, build, float32, tmp_path):
    verify(build, VerifyRequest())
    simulate(build, SimulateRequest(steps=1, test_images=8))
    report = write_report([made / "train", build], tmp_path / "r.html", baseline=float32)
    page = (tmp_path / "r.html").read_text()
    accuracy = Checkpoint.load(float32 / "checkpoint.safetensors").log[-1].test_accuracy
    assert report.training.baseline_accuracy == accuracy
    assert "Not synthesised" in page and "Not simulated" not in page and "Not verified" not in page
    assert len(report.estimates) == 5 and all(abs(estimate.error) < 1 for estimate in report.estimates)
    again = write_report([made / "train", build], tmp_path / "r2.html", baseline=float32)
    assert again == report and (tmp_path / "r2.html").read_text() == page


def test_a_report_of_training_alone_says_what_was_not_run(made, tmp_path):
    write_report([made / "train"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Not simulated" in page and "Not verified" in page and "Not synthesised" in page


@pytest.mark.parametrize("name", ["verify.json", "simulate.json", "synth.json"])
def test_a_damaged_result_wrong(build, tmp_path, name):
    (build / name).write_text("{")
    with pytest.raises(DataError, match=rf"{name} is damaged .*: run the command that wrote it again$"):
        write_report([build], tmp_path / "r.html")


def test_nothing_to_report_wrong(tmp_path):
    with pytest.raises(DataError, match=r"^There is nothing to report on in .*: give directories that train "):
        write_report([tmp_path], tmp_path / "r.html")
    with pytest.raises(DataError, match=r"^There is no directory .*nowhere to report on"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html")


def test_of_several_builds_the_last_one_speaks(made, build, tmp_path):
    other = shutil.copytree(build, tmp_path / "other")
    simulate(other, SimulateRequest(steps=1, dense=False, test_images=0))
    both = write_report([made / "train", other, build], tmp_path / "r.html")
    assert both == write_report([made / "train", build], tmp_path / "r2.html")
    assert both.cycles is None and both.estimates == ()


@pytest.mark.parametrize("trained", ["fixed", "unfinished"])
def test_a_baseline_wrong(made, float32, tmp_path, trained):
    folder = made / "train"
    if trained == "unfinished":
        folder = tmp_path
        replace(Checkpoint.load(float32 / "checkpoint.safetensors"), log=()).save(folder / "checkpoint.safetensors")
    with pytest.raises(DataError, match=r"^The baseline is the accuracy in float32 without pruning after at least "):
        write_report([made / "train"], tmp_path / "r.html", baseline=folder)
    assert not (tmp_path / "r.html").exists()


def test_training_and_build_of_different_networks_wrong(made, build, tmp_path):
    found = Checkpoint.load(made / "train" / "checkpoint.safetensors")
    replace(found, graph=replace(found.graph, name="other")).save(tmp_path / "train" / "checkpoint.safetensors")
    with pytest.raises(DataError, match=r"^The training is of network 'other' and the build of 'net': report on each "):
        write_report([tmp_path / "train", build], tmp_path / "r.html")


def test_saturated_words_are_counted_among_all_words_of_their_tensor(made, tmp_path):
    found = Checkpoint.load(made / "train" / "checkpoint.safetensors")
    counts = {"conv": 3, "conv.grad": 2, "fc.weight.grad": 1, "loss": 1}
    log = (*found.log[:-1], replace(found.log[-1], saturated=counts))
    replace(found, log=log).save(tmp_path / "checkpoint.safetensors")
    report = write_report([tmp_path], tmp_path / "r.html")
    shapes = {value.name: value.shape for value in found.graph.values()}
    assert {count.tensor: count.words for count in report.saturation} == {
        "conv": 16 * prod(shapes["conv"]), "conv.grad": 16 * prod(shapes["conv"]),
        "fc.weight.grad": prod(shapes["fc.weight"]), "loss": 16}


@pytest.mark.parametrize("name", ["manifest.html", "simulate.html", "report.json"])
def test_a_page_whose_json_would_replace_something_wrong(build, name):
    before = {path.name: path.read_bytes() for path in build.iterdir()}
    with pytest.raises(DataError, match=r"^The report writes its JSON beside the page, to .*: choose another name "):
        write_report([build], build / name)
    assert {path.name: path.read_bytes() for path in build.iterdir()} == before


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
