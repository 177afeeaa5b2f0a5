"""Kernels in files: there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bench.shortcuts import strided_shortcut

from espalier.errors import DataError
from espalier.opencl.bundle import MANIFEST, Bundle
from espalier.opencl.compilation import compile_kernels

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return compile_kernels(*strided_shortcut(7, 9, 0.2)).files()


def changed(files: dict[str, bytes], change: Callable[[Manifest], None]) -> dict[str, bytes]:
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    return {**files, MANIFEST: json.dumps(manifest).encode()}


def test_there_and_back(files: dict[str, bytes]) -> None:
    assert Bundle.from_files(files, "the test").files() == files


def twice(manifest: Manifest) -> None:
    """The last kernel writes what the first one writes, too."""
    first, *_, last = manifest["launches"]
    last["arguments"].append(first["written"])
    last["written"] = first["written"]


@pytest.mark.parametrize(("change", "reason"), [
    (twice, r"kernel \w+ writes \w+, which is no argument of it or is written twice"),
    (lambda manifest: manifest["launches"][0].update(written="nothing"),
     r"kernel \w+ writes nothing, which is no argument of it or is written twice"),
])
def test_manifests_that_are_none(files: dict[str, bytes], change: Callable[[Manifest], None], reason: str) -> None:
    sentence = rf"^The test holds no kernels of this version \({reason}\): compile the network again$"
    with pytest.raises(DataError, match=sentence):
        Bundle.from_files(changed(files, change), "The test")
