"""``espalier compare`` as a user gives it."""

import json
import shutil

import pytest
from bench.builds import config
from bench.commands import fails, run, tree


@pytest.fixture
def recipes(made, tmp_path):
    """A folder with a dense recipe and one in float32, of one epoch."""
    folder = tmp_path / "recipes"
    config(made, epochs=1, prune=None).save(folder / "dense.yaml")
    config(made, epochs=1, prune=None, quantise=None).save(folder / "float.yaml")
    return folder


def test_help(capsys):
    status, out, _ = run(capsys, "compare", "--help")
    assert status == 0 and "Usage" in out and "RECIPE..." in out


def test_compare(capsys, recipes, tmp_path):
    arguments = ["compare", recipes / "dense.yaml", recipes / "float.yaml", "--rows", "2", "--lanes", "4",
                 "--output-dir", tmp_path / "out"]
    status, out, err = run(capsys, *arguments)
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines[:4]] == ["Recipe", "dense", "float", "[1]"]
    assert "dense-0" in err and lines[2].count("[1]") == 3
    assert lines[-2:] == [f"wrote {tmp_path / 'out' / name}" for name in ("compare.json", "compare.html")]
    status, out, err = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert status == 0 and err.count("trained already") == 2
    assert found["written"] == [str(tmp_path / "out" / name) for name in ("compare.json", "compare.html")]
    assert found["record"] == json.loads((tmp_path / "out" / "compare.json").read_text())
    before = tree(tmp_path / "out")
    fails(capsys, r"^Checkpoint .*dense-0.* is of a run with epochs = 1, not 2: choose another folder, ", *arguments,
          "--epochs", "2")
    assert tree(tmp_path / "out") == before


def test_recipes_wrong(capsys, recipes, tmp_path):
    output = tmp_path / "out"
    (recipes / "bad.yaml").write_text("epochs: many\n")
    (recipes / "torn.yaml").write_text("epochs: [1\n")
    shutil.copytree(recipes, tmp_path / "others")

    def wrong(sentence, *arguments):
        fails(capsys, sentence, "compare", *arguments, "--output-dir", output)
        assert not output.exists()

    dense = recipes / "dense.yaml"
    wrong(r"^There is nothing to compare: give at least one recipe, ")
    wrong(r"^Configuration .*none\.yaml cannot be read: ", dense, recipes / "none.yaml")
    wrong(r"^Configuration .*bad\.yaml: 'epochs' must be a whole number, not ", dense, recipes / "bad.yaml")
    wrong(r"^Configuration .*torn\.yaml is not well formed: ", dense, recipes / "torn.yaml")
    wrong(r"^Two recipes are called 'dense' \(.*, and trainings are kept by the recipe's name: rename one$", dense,
          tmp_path / "others" / "dense.yaml")
    wrong(r"^Seeds are whole numbers with commas between them, ", dense, "--seeds", "one")
    wrong(r"^Recipe .*dense\.yaml and the command line: The seed is in 0\.\.", dense, "--seeds", "-1")
    wrong(r"^Rows must be one of ", dense, "--rows", "5")
    wrong(r"^There is no data set 'nowhere\.npz'", dense, "--data", "nowhere.npz")
    wrong(r"'nonsense'", dense, "--network", "nonsense")
