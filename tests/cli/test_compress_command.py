"""``espalier compress`` as a user gives it: what it prints, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from bench.builds import write_data
from bench.commands import fails, run, tree

IMAGES = ["--images", "60"]


@pytest.fixture
def place(made, tmp_path):
    """A folder with a training, and what compress made of it."""
    shutil.copytree(made / "train", tmp_path / "place" / "train")
    return tmp_path / "place"


@pytest.fixture
def leaves_all(capsys, place):
    """Asserts that compressing ``train`` fails with a sentence and leaves every file as it was."""
    def check(sentence, *options, source="train", output="out", status=1):
        before = tree(place)
        fails(capsys, sentence, "compress", place / source, "--output-dir", place / output, *options, status=status)
        assert tree(place) == before
    return check


def test_records_and_files(capsys, place):
    status, out, _ = run(capsys, "compress", place / "train", "--output-dir", place / "out", "--density", "0.2",
                         "--block", "2", "--json")
    printed = json.loads(out)
    assert status == 0
    assert printed["written"] == [str(place / "out" / name) for name in ("checkpoint.safetensors", "compress.json")]
    assert printed["record"] == json.loads((place / "out" / "compress.json").read_text())
    assert printed["record"]["method"] == "reconstruct" and printed["record"]["images"]["calibration"] == 96
    status, out, _ = run(capsys, "compile", place / "out", "--output-dir", place / "build", "--rows", "2", "--lanes",
                         "4", "--dry-run")
    assert status == 0 and not (place / "build").exists()


def test_densities_by_the_shapes_of_layers(capsys, place):
    """Of a network already pruned to a half, alike in every layer."""
    status, out, _ = run(capsys, "compress", place / "train", "--output-dir", place / "out", "--density", "0.2",
                         "--method", "erdos_renyi", "--json")
    record = json.loads(out)["record"]
    densities = {layer["live_weights"] / layer["weights"] for layer in record["layers"]}
    assert status == 0 and record["method"] == "erdos_renyi" and len(densities) > 1


def test_what_is_printed_for_people(capsys, place):
    status, out, err = run(capsys, "compress", place / "train" / "checkpoint.safetensors", "--output-dir",
                           place / "out", "--loss", "30", "--method", "rules", *IMAGES)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 3
    assert lines[0].split(":")[0] in ("flat", "triangular", "relative") and "weights live" in lines[0]
    assert "of 60 training images; at least" in err and "triangular at density" in err
    status, out, _ = run(capsys, "compress", place / "train", "--output-dir", place / "dry", "--density", "0.2",
                         "--dry-run")
    assert (status, out) == (0, "dry run: nothing was compressed\n") and not (place / "dry").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(("options", "sentence"), [
    ([], r"give --density, such as 0\.1, or --loss, such as 1, or for narrower weights --bit-loss, such as 1$"),
    (["--density", "0.3", "--loss", "1"], r"leave one of --density and --loss out$"),
    (["--density", "0"], r"^A density is above 0 and at most 1, and that of the network is 0\.0$"),
    (["--density", "0.9"], r"^Of the network's weights [0-9.]*% live, and dead ones stay dead: give a density of at "),
    (["--loss", "101"], r"^The loss allowed is in 0\.\.100 accuracy points, not 101$"),
    (["--density", "0.3", "--method", "magic"], r"^A method of compression without training is one of rules, .*, "
                                                r"not 'magic'$"),
    (["--density", "0.3", "--block", "0"], r"^The edge of a block is at least 1, not 0$"),
    (["--density", "0.3", "--images", "97"], r"^The images to look at are 1\.\.96 of the training set 'small-train', "
                                             r"not 97$"),
    (["--loss", "1", "--images", "1"], r"^The images to look at are 2\.\.96 of the training set "),
    (["--density", "0.3", "--seed", "-1"], r"^Seed, epoch and batch number must be in 0\.\.4294967295, not -1$"),
    (["--density", "0.3", "--data", "nowhere.npz"], r"^There is no data set 'nowhere\.npz': "),
])
def test_options_wrong(leaves_all, options, sentence, dry):
    leaves_all(sentence, *options, *dry)


def test_places_wrong(leaves_all, place):
    (place / "other").mkdir()
    (place / "other" / "note.txt").write_text("mine")
    leaves_all(r"^The output directory .* holds the network to compress", "--density", "0.3", output="train")
    leaves_all(r"^The output directory 'other' holds something that was not made here", "--density", "0.3",
               output="other")
    leaves_all(r"^There is no checkpoint ", "--density", "0.3", source="nowhere")
    (place / "train" / "checkpoint.safetensors").write_bytes(b"x" * 64)
    leaves_all(r"is damaged or truncated", "--density", "0.3")


def test_data_of_another_shape_wrong(leaves_all, tmp_path):
    large = {name: np.zeros((count, 9, 9), dtype=np.uint8) for name, count in (("x_train", 96), ("x_test", 40))}
    leaves_all(r"takes images of shape \(1, 8, 8\), and those of 'small-train' have \(1, 9, 9\)", "--density", "0.3",
               "--data", write_data(tmp_path, **large))
