"""The search for schedules, on a device whose times are made up."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from espalier.errors import DataError
from espalier.ir.graph import Graph
from espalier.ir.ops import Conv2d
from espalier.ir.types import FLOAT, TensorType, Value
from espalier.numerics.window import Window
from espalier.opencl.bundle import Bundle
from espalier.opencl.optimisations import ALL
from espalier.opencl.runtime import KernelTime, Session
from espalier.opencl.tuning import RANK, Tuned, tune

CHOICES = 6  #: that the kernels of ``network`` have: the divisors of 2 times those of 4


@dataclass
class Device:
    """What ``tune`` needs of one; it dies when session number ``dies`` is opened."""

    dies: int = -1
    opened: int = 0

    def open(self, bundle: Bundle) -> Session:
        if self.opened == self.dies:
            raise RuntimeError("killed")
        self.opened += 1
        times = [KernelTime(launch.layer, 1.0 / launch.loop.sums, launch.multiplications) for launch in bundle.launches]

        def nothing(*images: NDArray) -> None:
            pass

        return cast("Session", SimpleNamespace(
            bundle=bundle, kernel_times=lambda: times, run=nothing,
            device=SimpleNamespace(platform=SimpleNamespace(version="1.2"), name="abacus", max_compute_units=1)))


def network(layers: int = 1) -> tuple[Graph, dict[str, NDArray]]:
    """Convolutions that are all alike, of 16 channels of 2 × 4 pixels."""
    values = [Value(f"x{number}", TensorType((16, 2, 4), FLOAT)) for number in range(layers + 1)]
    weights = [Value(f"w{number}", TensorType((16, 16, 1, 1), FLOAT)) for number in range(layers)]
    steps = [Conv2d(out, read, weight, None, Window((1, 1)))
             for read, weight, out in zip(values, weights, values[1:], strict=False)]
    return (Graph("net", (values[0],), tuple(weights), tuple(steps), (values[-1],)),
            {weight.name: np.ones(weight.shape, np.float32) for weight in weights})


def search(journal: Path, trials: int, device: Device | None = None, layers: int = 1) -> Tuned:
    return tune(*network(layers), ALL, (device or Device()).open, journal, trials=trials)


def measured(journal: Path) -> list[int]:
    """The number of each choice that was measured, in order."""
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    return [record["params"][RANK] for record in records if record.get("params")]


@pytest.mark.parametrize("layers", [1, 2])
def test_every_choice_is_tried_once(layers: int, tmp_path: Path) -> None:
    found = search(tmp_path / "j", 99, layers=layers)
    assert sorted(measured(tmp_path / "j")) == list(range(CHOICES)) and measured(tmp_path / "j")[0] == 0
    assert found.rounds == -(-CHOICES // layers)
    assert {best for _, best, _ in found.kernels.values()} == {1 / (16 * 8)}  # the largest tile


def test_no_choice_is_tried_twice_where_few_are(tmp_path: Path) -> None:
    search(tmp_path / "j", 3)
    assert measured(tmp_path / "j")[0] == 0 and set(Counter(measured(tmp_path / "j")).values()) == {1}
    assert search(tmp_path / "j", 3).rounds == 0
    assert search(tmp_path / "j", 5).rounds == 2


def test_a_search_that_was_killed_in_its_first_round_begins_with_the_estimate(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^killed$"):
        search(tmp_path / "j", 1, Device(dies=1))
    found = search(tmp_path / "j", 1)
    assert found.rounds == 1 and measured(tmp_path / "j") == [0]
    assert [estimate for _, _, estimate in found.kernels.values()] == [pytest.approx(found.kernels["k0_x1"][1])]


def test_what_earlier_versions_left_running_does_not_count(tmp_path: Path) -> None:
    """Records of two trials that were asked for, and of one in waiting, in every study."""
    search(tmp_path / "j", 0)
    lines = (tmp_path / "j").read_text().splitlines()
    worker, studies = json.loads(lines[0])["worker_id"], len(lines)
    for study in range(studies):
        for state in (0, 0, 4):
            lines.append(json.dumps({"op_code": 4, "worker_id": worker, "study_id": study, "datetime_start": None,
                                     "state": state, "value": None, "values": None, "distributions": {}, "params": {},
                                     "user_attrs": {}, "system_attrs": {"fixed_params": {RANK: 1}},
                                     "intermediate_values": {}}))
    (tmp_path / "j").write_text("\n".join(lines) + "\n")
    found = search(tmp_path / "j", 1)
    assert found.rounds == 1 and found.kernels and measured(tmp_path / "j")[-1] == 0


@pytest.mark.parametrize("cut", [1, 30, "all but one", "zeros"])
def test_a_journal_whose_last_line_was_cut_goes_on(cut: int | str, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    search(journal, 2)
    whole = journal.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    journal.write_bytes(whole[:-last] + bytes(last) if cut == "zeros" else
                        whole[:-cut] if isinstance(cut, int) else whole[:1 - last])
    assert search(journal, 2).rounds == 1  # the one whose record was cut
    assert search(journal, 2).rounds == 0 and journal.read_bytes().startswith(whole[:-last])


@pytest.mark.parametrize("text", ["a diary", "a diary\n", "a diary\nof two lines", "a diary\nof two lines\n"])
def test_what_is_no_journal_stays_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(DataError, match=r"is no journal of a search \(.*\): name another file, or remove it$"):
        search(tmp_path / "j", 1)
    assert (tmp_path / "j").read_text() == text and [path.name for path in tmp_path.iterdir()] == ["j"]
