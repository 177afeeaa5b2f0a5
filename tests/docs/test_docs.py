"""What the documents say is there: links, commands, options, tables, and every block of numbers of the tour."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from espalier.arch.machine import Machine
from espalier.cli import app
from espalier.cost import latencies
from espalier.program.words import Space, Status, start_fields

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
REPOSITORY_PATH = re.compile(r"\b(?:espalier|benchmarks|examples|tests|docs)/[\w/.-]*\w\.\w+")
TOUR_BLOCK = re.compile(r"<!-- tour: (\w+) -->\n```text\n(.*?)\n```", re.DOTALL)
TOUR_SECTION = re.compile(r"^== (\w+) ==\n(.*?)\n(?=\n== |\n*\Z)", re.DOTALL | re.MULTILINE)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(program: str) -> list[list[str]]:
    """The words of every indented or quoted command line of README that begins with ``program``, without it."""
    lines = re.findall(rf"(?:^ {{4}}|`){program} ([^`\n]*)", text(ROOT / "README.md"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    local = [target for target in LINK.findall(text(page)) if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_exist(page: Path) -> None:
    assert [path for path in REPOSITORY_PATH.findall(text(page)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_paths_of_a_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|root|work|opt|tmp|usr)/\S*", text(page)) == []


def test_make_targets_exist() -> None:
    named = {words[0] for words in commands("make")}
    assert {"demo", "test"} <= named
    assert named <= set(re.findall(r"^([\w-]+):", text(ROOT / "Makefile"), re.MULTILINE))


def test_python_commands_exist() -> None:
    scripts = [words[0] for words in commands("python")]
    assert scripts and [script for script in scripts if not (ROOT / script).is_file()] == []


def test_espalier_commands_take_their_options() -> None:
    main = typer.main.get_command(app)
    kernels = {f"opencl {name}": command for name, command in main.commands["opencl"].commands.items()}
    known = {name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
             for name, command in {**main.commands, **kernels}.items()}
    shown = [[f"opencl {words[1]}", *words[2:]] if words[0] == "opencl" else words for words in commands("espalier")]
    assert {words[0] for words in shown} >= {"train", "compile", "simulate", "verify", "synth", "report"}
    wrong = [(name, word) for name, *words in shown for word in words
             if word.startswith("--") and word not in known[name]]
    assert wrong == []


def test_packages_are_all_named() -> None:
    packages = {path.parent.name for path in (ROOT / "espalier").glob("*/__init__.py")}
    assert packages == set(re.findall(r"\(espalier/(\w+)\)", text(ROOT / "README.md")))


def test_register_map_is_that_of_the_code() -> None:
    page = text(ROOT / "docs" / "engine.md")
    assert re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE) == [
        (str(int(space)), space.name) for space in Space]
    listed = {name: int(number) for number, name in re.findall(r"(\d) `([A-Z_]+)`", page)}
    assert listed == {status.name: int(status) for status in Status}
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([\d, ]+) \|", page, re.MULTILINE)
    fields = [pair for names, bits in rows
              for pair in zip(re.findall(r"\w+", names), map(int, bits.split(", ")), strict=True)]
    assert fields == list(start_fields().items())


def test_cycles_around_a_phase_are_those_of_the_model() -> None:
    machine = Machine(rows=1, lanes=1, activation_depth=2, gradient_depth=2, weight_depth=2, index_depth=2,
                      table_depth=2)
    around = latencies.FILL_CYCLES + latencies.CONTROL_CYCLES - machine.rows
    told = re.findall(r"steps \+ waits \+ (\d+) \+ rows", text(ROOT / "docs" / "engine.md"))
    drain, update = latencies.drain_cycles(machine), latencies.update_cycles(machine) - 1  # a tree of one level
    assert [*map(int, told)] == [around + drain, around + update]


def test_tour_shows_what_its_script_prints() -> None:
    done = subprocess.run([sys.executable, "examples/tour.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    printed = dict(TOUR_SECTION.findall(done.stdout))
    shown = dict(TOUR_BLOCK.findall(text(ROOT / "docs" / "tour.md")))
    assert printed and shown == printed, "write the blocks anew: python examples/tour.py --update"


def recorded_rows() -> list[str]:
    """The rows of the tables of what a machine takes, from the benchmark's results."""
    results = json.loads(text(ROOT / "benchmarks" / "results" / "synth_family.json"))
    figures = {figure["name"]: figure["value"] for figure in results["figures"]}
    rows = []
    for family, device in {record["architecture"]: record["device"] for record in results["machines"]}.items():
        errors = []
        for resource in ("luts", "flip flops"):
            for what in ("left out", "held out"):
                median, worst = (figures.get(f"{family}: {kind} error of {resource}, {what}")
                                 for kind in ("median", "worst"))
                errors.append("–" if median is None else f"{median:.1f} ({worst:.1f}) %")
        per_mac = [f"{figures[f'{family} 4×4: {name} per MAC']:{digits}}" for name, digits in (
            ("luts", ".0f"), ("flip flops", ".0f"), ("multipliers", ".2f"), ("block rams", ".2f"),
            ("luts of lattice and drain", ".0f"))]
        rows += [f"| {device} | {' | '.join(cells)} |" for cells in (errors, per_mac)]
    return rows


def test_what_a_machine_takes_is_what_was_recorded() -> None:
    page = text(ROOT / "docs" / "engine.md")
    assert [row for row in recorded_rows() if row not in page] == []


def test_missed_bars_are_told() -> None:
    found = runpy.run_path(str(ROOT / "benchmarks" / "bars.py"))["page"]()
    assert text(ROOT / "docs" / "bars.md") == found, "write it anew: python benchmarks/bars.py"
