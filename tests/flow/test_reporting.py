"""Reports of trainings and builds: what the page holds, and what cannot be reported on."""

import shutil
from dataclasses import replace
from math import prod

import pytest
from bench.builds import config

from espalier.errors import DataError
from espalier.flow import SimulateRequest, VerifyRequest, simulate, train_network, verify, write_report
from espalier.flow.manifest import load_manifest
from espalier.records import Provenance
from espalier.train.checkpoint import Checkpoint


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
    assert len(report.estimates) == 5 and all(estimate.error == 0 for estimate in report.estimates)
    again = write_report([made / "train", build], tmp_path / "r2.html", baseline=float32)
    assert again == report and (tmp_path / "r2.html").read_text() == page


def test_a_report_of_training_alone_says_what_was_not_run(made, tmp_path):
    write_report([made / "train"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "Not simulated" in page and "Not verified" in page and "Not synthesised" in page


def test_a_build_that_was_not_simulated_has_predicted_cycles(build, tmp_path):
    report = write_report([build], tmp_path / "r.html")
    predicted = {figure.name: figure for figure in report.figures if figure.unit == "cycles"}
    assert [*predicted] == [f"{phase} of a group of images" for phase in ("FP", "BP", "WU")]
    assert {figure.provenance for figure in predicted.values()} == {Provenance.ESTIMATED}
    layers = load_manifest(build).estimated_cycles
    assert predicted["WU of a group of images"].value == sum(layer.WU for layer in layers) > 0


def test_a_build_says_what_it_takes_of_its_part(build, tmp_path):
    report = write_report([build], tmp_path / "r.html")
    taken = {figure.name: figure for figure in report.figures if figure.name.endswith(" of ecp5-85f")}
    resources = load_manifest(build).estimated_resources
    assert [figure.value for figure in taken.values()] == [
        resources.multipliers, resources.block_rams, resources.luts, resources.flip_flops]
    assert {figure.provenance for figure in taken.values()} == {Provenance.ESTIMATED}


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
