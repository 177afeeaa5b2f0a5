"""Kernels in files: there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bench.shortcuts import strided_shortcut

from espalier.errors import DataError
from espalier.opencl.bundle import KERNELS, MANIFEST, Bundle
from espalier.opencl.compilation import compile_kernels
from espalier.opencl.runtime import Session

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


def in_queues_of_their_own(manifest: Manifest) -> None:
    """Nothing waits."""
    for number, launch in enumerate(manifest["launches"]):
        launch.update(queue=number, after=[])


def backwards(manifest: Manifest) -> None:
    manifest["launches"].reverse()
    for launch in manifest["launches"]:
        launch.update(queue=0, after=[])


def of_first(name: str, value: object) -> Callable[[Manifest], None]:
    """Another value of the first launch."""
    return lambda manifest: manifest["launches"][0].update({name: value})


def of_image(name: str, value: object) -> Callable[[Manifest], None]:
    """Another value of how the image lies."""
    return lambda manifest: manifest["images"][0]["layout"].update({name: value})


@pytest.mark.parametrize(("change", "reason"), [
    (lambda manifest: manifest.update(images=[]), "5 launches and 0 images"),
    (lambda manifest: manifest.update(launches=[]), "0 launches and 1 images"),
    (of_first("groups", "a"), r"kernel \w+ has 'a' work-groups and \d+ multiplications"),
    (of_first("groups", 0), r"kernel \w+ has 0 work-groups and \d+ multiplications"),
    (of_first("multiplications", None), r"kernel \w+ has \d+ work-groups and None multiplications"),
    (of_first("numbers", ["a"]), r"kernel \w+ takes numbers \('a',\)"),
    (of_first("numbers", [1 << 31]), r"kernel \w+ takes numbers \(2147483648,\)"),
    (lambda manifest: manifest["launches"][0]["loop"].update(iterations="many"), r"kernel \w+ has the loop Loop\(.*\)"),
    (of_first("queue", 1000000), r"kernel \w+ waits for one that does not run before"),
    (of_first("after", [0]), r"kernel \w+ waits for one that does not run before"),
    (of_image("block", 0), r"buffer \w+ holds no \(4, 7, 9\) as Layout\(.*\)"),
    (of_image("shape", [4, 7, 8]), r"buffer \w+ holds no \(4, 7, 9\) as Layout\(.*\)"),
    (lambda manifest: manifest["buffers"].append(manifest["buffers"][0]), r"(\d+) buffers have \d+ names"),
    (in_queues_of_their_own, r"kernel \w+ does not wait for the one that writes \w+"),
    (backwards, r"kernel \w+ does not wait for the one that writes \w+"),
    (twice, r"kernel \w+ writes \w+, which is no argument of it or is written twice"),
    (of_first("written", "nothing"),
     r"kernel \w+ writes nothing, which is no argument of it or is written twice"),
])
def test_manifests_that_are_none(files: dict[str, bytes], change: Callable[[Manifest], None], reason: str) -> None:
    sentence = rf"^The test holds no kernels of this version \({reason}\): compile the network again$"
    with pytest.raises(DataError, match=sentence):
        Bundle.from_files(changed(files, change), "The test")


@pytest.mark.parametrize("source", ["", "__kernel void other(__global char* x) {}\n"])
def test_sources_without_a_kernel(files: dict[str, bytes], source: str) -> None:
    bundle = Bundle.from_files({**files, KERNELS: source.encode()}, "the test")
    with pytest.raises(DataError, match=r"^Device '.*' finds no kernel 'k0_a_kernel' of 6 such arguments in the source "
                                        r"of 'shortcut' \(.*INVALID_KERNEL_NAME\): compile the network again$"):
        Session(bundle)


@pytest.mark.parametrize(("change", "why"), [
    (lambda launch: launch["numbers"].append(1), "it takes 6"),
    (lambda launch: launch["arguments"].pop(), "it takes 6"),
    (lambda launch: launch.update(arguments=launch["arguments"][:-1], numbers=[1]), ".*INVALID_ARG_SIZE.*")])
def test_kernels_with_other_arguments(files: dict[str, bytes], change: Callable[[Manifest], None], why: str) -> None:
    def change_first(manifest: Manifest) -> None:
        launch = manifest["launches"][0]
        launch["arguments"].sort(key=lambda name: bool(name != launch["written"]))
        change(launch)

    bundle = Bundle.from_files(changed(files, change_first), "the test")
    with pytest.raises(DataError, match=rf"finds no kernel 'k0_a_kernel' of \d such arguments in the source of "
                                        rf"'shortcut' \({why}\): compile the network again$"):
        Session(bundle)
