"""The manifest of a build directory: as it was written, or one sentence."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from espalier.errors import DataError, EspalierError
from espalier.flow import SimulateRequest, simulate, write_report
from espalier.flow.manifest import MANIFEST, load_manifest
from espalier.flow.reporting import collect_report

FILES = ("espalier.v", "graph.txt", "machine.json", "network.safetensors")


def changed(fields: Any) -> Iterator[Any]:
    """``fields`` with one key at any depth left out, or its value of another type."""
    items = list(fields.items()) if isinstance(fields, dict) else list(enumerate(fields))
    for key, value in items:
        yield {k: v for k, v in items if k != key} if isinstance(fields, dict) else fields[:key] + fields[key + 1:]
        others = [None, "x", -1] + (list(changed(value)) if isinstance(value, dict | list) else [])
        for other in others:
            yield {**fields, key: other} if isinstance(fields, dict) else [*fields[:key], other, *fields[key + 1:]]


def test_what_is_written_is_read(build):
    assert json.loads(json.dumps(load_manifest(build).to_json())) == json.loads((build / MANIFEST).read_text())


def test_whatever_is_changed_is_told_or_harmless(build):
    """Every key left out and every value of another type: a design and a report, or one sentence."""
    simulate(build, SimulateRequest(steps=1, traced=0, dense=False, test_images=0))
    whole = json.loads((build / MANIFEST).read_text())
    whole |= {"recipe": {}, "tools": {}, "live_weights": {}, "files": {name: whole["files"][name] for name in FILES}}
    told = 0
    for fields in [*changed(whole), whole]:
        (build / MANIFEST).write_text(json.dumps(fields))
        try:
            collect_report([build], None, None)
        except EspalierError as error:
            told += 1
            assert "\n" not in str(error)
    assert told > 100 and fields == whole  # which came last, and was not told of


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda fields: fields.pop("training"), r"manifest\.json is damaged or was changed \(training: .*\): compile the "),
    (lambda fields: fields["training"].pop("sgd"), r"\(training\.sgd: "),
    (lambda fields: fields["training"]["sgd"].update(momentum=2), r"\(training\.sgd: Momentum must be at least 0 and "),
    (lambda fields: fields["depths"].update(weight_depth="deep"), r"\(depths\.weight_depth: "),
    (lambda fields: fields["estimated_cycles"][0].pop("FP"), r"\(estimated_cycles\.0\.FP: "),
    (lambda fields: fields.update(files=[]), r"\(files: "),
    (lambda fields: fields["files"].pop("graph.txt"), r"\(it has no checksum of graph\.txt\): compile the network "),
])
def test_a_manifest_wrong(build, damage, sentence):
    fields = json.loads((build / MANIFEST).read_text())
    damage(fields)
    (build / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(DataError, match=sentence):
        load_manifest(build)


def test_an_estimate_that_is_missing_wrong(build, tmp_path):
    simulate(build, SimulateRequest(steps=1, traced=0, dense=False, test_images=0))
    fields = json.loads((build / MANIFEST).read_text())
    del fields["estimated_cycles"][0]
    (build / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(DataError, match=r"^simulate\.json has cycles of layer 'conv', and manifest\.json has no "):
        write_report([build], tmp_path / "page.html")
