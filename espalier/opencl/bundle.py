"""What runs a network on an OpenCL device, without TVM: kernels, weights, and a manifest that says how."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from espalier.errors import DataError, EspalierError
from espalier.ir.types import FLOAT, Fixed, Format
from espalier.opencl.layout import Layout
from espalier.opencl.loops import Loop

KERNELS, MANIFEST, WEIGHTS = "kernels.cl", "manifest.json", "weights.safetensors"
FORMAT = "espalier-opencl-3"
INT_MAX, LONG_MAX = (1 << 31) - 1, (1 << 63) - 1
TYPES = {"int8": "char", "int16": "short", "int32": "int", "int64": "long", "float32": "float"}
"""Of elements, as NumPy has them, and as OpenCL C has."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of the device, zeros before the first run but where weights are loaded."""

    name: str
    type: str  #: of an element, as NumPy has it
    elements: int
    loaded: bool  #: from the weights' file

    @property
    def size_bytes(self) -> int:
        return self.elements * np.dtype(self.type).itemsize


@dataclass(frozen=True, slots=True)
class Task:
    """A kernel where layers are joined by channels (``pipelined.py``): the buffers that it still takes.

    ``autorun``: none, and nobody launches it.
    """

    arguments: tuple[str, ...]
    autorun: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """One run of a kernel, for the work called ``layer``: its arguments in order, buffers and then numbers (int), which
    of the buffers it writes, as no other launch does, and its work-groups, of one work-item each.

    ``multiplications`` are those that it makes, padding included. It runs in order in its ``queue``, and ``after`` the
    launches of those numbers, which are in other queues. ``task``: what it is on a device with channels.
    """

    layer: str
    kernel: str
    arguments: tuple[str, ...]
    numbers: tuple[int, ...]
    written: str
    groups: int
    multiplications: int
    loop: Loop
    queue: int = 0
    after: tuple[int, ...] = ()
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class End:
    """An image or the result: its buffer, its shape and how it lies in there, and what its elements mean."""

    buffer: str
    shape: tuple[int, ...]
    layout: Layout
    format: Format


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A network's kernels.

    Parameters
    ----------
    network : str
    data : str
        The data set that it was trained on, as far as is known.
    optimisations : dict
        What was asked for, by name.
    source : str
        OpenCL C 1.2.
    buffers : tuple of Buffer
    launches : tuple of Launch
        In the order in which they run.
    images : tuple of End
        What it reads, mostly one image.
    result : End
    weights : dict of ndarray
        By buffer.
    """

    network: str
    data: str
    optimisations: dict[str, bool | int | str]
    source: str
    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
    images: tuple[End, ...]
    result: End
    weights: dict[str, NDArray]

    def files(self) -> dict[str, bytes]:
        """The three files by name."""
        manifest = {
            "format": FORMAT, "network": self.network, "data": self.data,
            "optimisations": self.optimisations,
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "launches": [asdict(launch) for launch in self.launches],
            "images": [_end_to_json(image) for image in self.images], "result": _end_to_json(self.result)}
        return {KERNELS: self.source.encode(), MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode(),
                WEIGHTS: save(dict(sorted(self.weights.items())))}

    @classmethod
    def from_files(cls, files: dict[str, bytes], where: str) -> Bundle:
        """The inverse of :meth:`files`. Raises DataError, naming ``where``, for what is no bundle."""
        try:
            manifest: dict[str, Any] = json.loads(files[MANIFEST])
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r}")
            found = cls(
                manifest["network"], manifest["data"], manifest["optimisations"], files[KERNELS].decode(),
                tuple(Buffer(**fields) for fields in manifest["buffers"]),
                tuple(map(_launch_from_json, manifest["launches"])),
                tuple(map(_end_from_json, manifest["images"])), _end_from_json(manifest["result"]),
                load(files[WEIGHTS]))
            found._check()
        except (KeyError, TypeError, ValueError, SafetensorError, EspalierError) as error:
            raise DataError(f"{where} holds no kernels of this version ({error}): compile the network again") from None
        return found

    def _check(self) -> None:
        """Raise ValueError unless buffers, launches, ends and weights agree."""
        if not self.launches or not self.images:
            raise ValueError(f"{len(self.launches)} launches and {len(self.images)} images")
        for buffer in self.buffers:
            if buffer.type not in TYPES or not _are_whole(buffer.elements, least=1):
                raise ValueError(f"buffer {buffer.name} has {buffer.elements!r} elements of type {buffer.type}")
            array = self.weights.get(buffer.name)
            if buffer.loaded and (array is None or array.size != buffer.elements or array.dtype != buffer.type):
                raise ValueError(f"no fitting weights for buffer {buffer.name}")
        sizes = {buffer.name: buffer.elements for buffer in self.buffers}
        if len(sizes) < len(self.buffers):
            raise ValueError(f"{len(self.buffers)} buffers have {len(sizes)} names")
        self._check_launches(sizes)
        for end in (*self.images, self.result):
            _check_layout(end)
            if sizes.get(end.buffer) != end.layout.elements:
                raise ValueError(f"buffer {end.buffer} is missing or has another size")

    def _check_launches(self, names: Collection[str]) -> None:
        """Raise ValueError unless each is one that a device can be given."""
        for number, launch in enumerate(self.launches):
            if unknown := set(launch.arguments) - set(names):
                raise ValueError(f"kernel {launch.kernel} reads unknown buffer {min(unknown)}")
            _check_numbers(number, launch)
        self._check_order()

    def _check_order(self) -> None:
        """Raise ValueError unless each waits for those whose results it reads, and no buffer has two writers."""
        writers: dict[str, int] = {}
        for number, launch in enumerate(self.launches):
            if launch.written not in launch.arguments or launch.written in writers:
                raise ValueError(f"kernel {launch.kernel} writes {launch.written}, which is no argument of it or is "
                                 f"written twice")
            writers[launch.written] = number
        done: list[set[int]] = []  # before each launch: the one before in its queue, those it waits for, and so on
        last: dict[int, int] = {}
        for number, launch in enumerate(self.launches):
            waited = {*launch.after, *({last[launch.queue]} if launch.queue in last else ())}
            done.append(waited.union(*(done[other] for other in waited)))
            last[launch.queue] = number
            for name in launch.arguments:
                if writers.get(name, number) not in {number, *done[-1]}:
                    raise ValueError(f"kernel {launch.kernel} does not wait for the one that writes {name}")


def _are_whole(*numbers: object, least: int = 0, most: int = LONG_MAX) -> bool:
    """Whether all are whole numbers in a range: a manifest can hold anything."""
    return all(isinstance(number, int) and least <= number <= most for number in numbers)


def _check_numbers(number: int, launch: Launch) -> None:
    """Raise ValueError unless all that a launch counts are numbers that it can have as the ``number``-th."""
    if not _are_whole(launch.groups, least=1) or not _are_whole(launch.multiplications):
        raise ValueError(f"kernel {launch.kernel} has {launch.groups!r} work-groups and "
                         f"{launch.multiplications!r} multiplications")
    if not _are_whole(*launch.numbers, least=-INT_MAX, most=INT_MAX):
        raise ValueError(f"kernel {launch.kernel} takes numbers {launch.numbers}")
    loop = launch.loop
    counts = loop.iterations, loop.products, loop.loaded, loop.stored, loop.sums, loop.distance
    if loop.sum_type not in TYPES or not _are_whole(*counts):
        raise ValueError(f"kernel {launch.kernel} has the loop {loop}")
    if not _are_whole(launch.queue, most=number) or not _are_whole(*launch.after, most=number - 1):
        raise ValueError(f"kernel {launch.kernel} waits for one that does not run before")


def _check_layout(end: End) -> None:
    """Raise ValueError unless an image or result fits how it lies."""
    layout = end.layout
    sizes = _are_whole(*end.shape) and _are_whole(*layout.shape, layout.block, least=1) and _are_whole(*layout.halo)
    if not sizes or prod(end.shape) != prod(layout.shape):
        raise ValueError(f"buffer {end.buffer} holds no {end.shape} as {layout}")


def _launch_from_json(fields: dict[str, Any]) -> Launch:
    lists = {name: tuple(fields[name]) for name in ("arguments", "numbers", "after")}
    task = fields["task"] and Task(tuple(fields["task"]["arguments"]), fields["task"]["autorun"])
    return Launch(**{**fields, **lists, "loop": Loop(**fields["loop"]), "task": task})


def _end_to_json(end: End) -> dict[str, Any]:
    return {"buffer": end.buffer, "shape": end.shape, "layout": asdict(end.layout), "format": str(end.format)}


def _end_from_json(fields: dict[str, Any]) -> End:
    text, place = fields["format"], fields["layout"]
    layout = Layout(tuple(place["shape"]), place["block"], tuple(place["halo"]))
    return End(fields["buffer"], tuple(fields["shape"]), layout, FLOAT if text == str(FLOAT) else Fixed.parse(text))
