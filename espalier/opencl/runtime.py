"""Kernels on a device, through pyopencl."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from espalier.errors import DataError, ToolError
from espalier.ir.types import Fixed, Format
from espalier.opencl.bundle import Bundle, Launch
from espalier.opencl.processors import give_name

POCL = "pocl_binary_distribution"  #: a device for every processor, as a package of Python's
HIDING = ("POCL_DEVICES", "OCL_ICD_VENDORS")  #: of the environment: what can hide PoCL
OTHER = "name another device with --device"
OPTIONS = ["-w"]  #: for the compiler of OpenCL C: its warnings are about code that nobody reads


def devices() -> list[cl.Device]:
    """Every OpenCL device of this machine. Raises ToolError where there is none."""
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        platforms = []
    found = [device for platform in platforms for device in _devices_of(platform)]
    if not found:
        raise ToolError(f"There is no OpenCL device on this machine: {_remedy()}")
    for device in found:
        give_name(device)
    return found


def _devices_of(platform: cl.Platform) -> list[cl.Device]:
    """None where its driver fails, which is no reason to lose those of others."""
    try:
        return platform.get_devices()
    except cl.Error:
        return []


def _remedy() -> str:
    """How to come by a device."""
    hiding = [f"{name}={os.environ[name]}" for name in HIDING if name in os.environ]
    if hiding and importlib.util.find_spec(POCL) is not None:
        return f"PoCL is installed, and {' or '.join(hiding)} in the environment hides it: unset that"
    return "install one: pip install pocl-binary-distribution runs kernels on any x86-64 processor"


def find_device(name: str = "") -> cl.Device:
    """The first device whose name (or whose platform's) has ``name`` in it. Raises ToolError if none has."""
    every = devices()
    for device in every:
        if name.lower() in f"{device.platform.name} {device.name}".lower():
            return device
    raise ToolError(f"No OpenCL device is called {name!r}: name one of "
                    f"{', '.join(repr(device.name.strip()) for device in every)} with --device, or a part of its name")


@dataclass(frozen=True, slots=True)
class KernelTime:
    """What one launch took, in seconds, by the device's own clock."""

    layer: str
    seconds: float
    multiplications: int


class Session:
    """A network on a device, ready to run.

    Raises ToolError where the device cannot hold or build it, DataError where its source has not the kernels that it
    names.
    """

    def __init__(self, bundle: Bundle, device: cl.Device | None = None) -> None:
        self.bundle, self.device = bundle, device or find_device()
        self._require_fit()
        with self._told("hold"):
            self.context = cl.Context([self.device])
            self.queues = [cl.CommandQueue(self.context) for _ in range(1 + max(
                (launch.queue for launch in bundle.launches), default=0))]
            self._buffers = {buffer.name: cl.Buffer(self.context, cl.mem_flags.READ_WRITE, buffer.size_bytes)
                             for buffer in bundle.buffers}
            for buffer in bundle.buffers:
                array = bundle.weights[buffer.name] if buffer.loaded else np.zeros(buffer.elements, buffer.type)
                cl.enqueue_copy(self.queues[0], self._buffers[buffer.name], np.ascontiguousarray(array))
        with self._told("build"):
            program = cl.Program(self.context, bundle.source).build(OPTIONS)
        self._kernels = [self._kernel(program, launch) for launch in bundle.launches]
        self._last = next((launch.queue for launch in bundle.launches if launch.written == bundle.result.buffer), 0)
        self._types = {buffer.name: np.dtype(buffer.type) for buffer in bundle.buffers}
        self._result = np.zeros(bundle.result.layout.array_shape, self._types[bundle.result.buffer])

    def _require_fit(self) -> None:
        """Of the device, all that the network needs."""
        device = f"Device {self.device.name.strip()!r}"
        if not self.device.available:
            raise ToolError(f"{device} is not available at present: try again, or {OTHER}")
        if not self.device.compiler_available:
            raise ToolError(f"{device} comes without a compiler of OpenCL C, which kernels need: install its driver's, "
                            f"or {OTHER}")
        if self.device.profile == "EMBEDDED_PROFILE" and "cles_khr_int64" not in self.device.extensions.split():
            raise ToolError(f"{device} has no 64-bit integers (cles_khr_int64), which kernels need: {OTHER}")
        needed, most = sum(buffer.size_bytes for buffer in self.bundle.buffers), self.device.global_mem_size
        largest, limit = max(self.bundle.buffers, key=lambda buffer: buffer.size_bytes), self.device.max_mem_alloc_size
        if needed > most or largest.size_bytes > limit:
            raise ToolError(f"Network {self.bundle.network!r} needs {needed:,} bytes and a buffer of "
                            f"{largest.size_bytes:,} ({largest.name}); device {self.device.name.strip()!r} has "
                            f"{most:,} and allows {limit:,}: take a smaller network, or {OTHER}")

    def _kernel(self, program: cl.Program, launch: Launch) -> cl.Kernel:
        """A kernel with its arguments."""
        arguments: list[Any] = [*(self._buffers[name] for name in launch.arguments), *map(np.int32, launch.numbers)]
        try:
            kernel = cl.Kernel(program, launch.kernel)
            why = f"it takes {kernel.num_args}"
            if kernel.num_args == len(arguments):
                kernel.set_args(*arguments)
                return kernel
        except cl.Error as error:
            why = str(error).strip(" :")
        raise DataError(f"Device {self.device.name.strip()!r} finds no kernel {launch.kernel!r} of {len(arguments)} "
                        f"such arguments in the source of {self.bundle.network!r} ({why}): compile the network again")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say what the device cannot do, and why; all that its compiler says follows the sentence."""
        try:
            yield
        except cl.Error as error:
            log = str(error).strip()
            remedy = "compile the network again" if what == "build" else "take a smaller network"
            more = f"; the whole log:\n{log}" if "\n" in log else ""
            raise ToolError(f"Device {self.device.name.strip()!r} cannot {what} the kernels of "
                            f"{self.bundle.network!r}: {_first_error(log, self.bundle.source)}: {remedy}, or {OTHER}"
                            f"{more}") from None

    def run(self, *images: NDArray) -> NDArray:
        """The results (N, C, ...) of N images (N, C, H, W): words in fixed point, else real numbers.

        A network with several inputs takes as many arrays. Raises DataError for images of another number, shape or
        kind, and for words that the format has not.
        """
        self._require_images(images)
        found = np.empty((len(images[0]), *self.bundle.result.layout.shape), self._result.dtype)
        for number, each in enumerate(zip(*images, strict=True)):
            found[number] = self._one([image.layout.pack(one, self._types[image.buffer])
                                       for image, one in zip(self.bundle.images, each, strict=True)])
        return found.reshape(len(found), *self.bundle.result.shape)

    def _require_images(self, images: Sequence[NDArray]) -> None:
        network, ends = f"Network {self.bundle.network!r}", self.bundle.images
        if len(images) != len(ends) or not all(isinstance(array, np.ndarray) for array in images):
            raise DataError(f"{network} takes {len(ends)} of NumPy's arrays, not "
                            f"({', '.join(type(array).__name__ for array in images)}): give one for each input, of as "
                            f"many images as the others")
        for image, array in zip(ends, images, strict=True):
            if array.ndim < 1 or array.shape[1:] != image.shape:
                raise DataError(f"{network} takes images of shape {image.shape}, not {array.shape[1:]}: give an array "
                                f"of shape {('N', *image.shape)}, even for one image")
            _require_kind(network, image.format, array)
        if len({len(array) for array in images}) > 1:
            raise DataError(f"{network} takes as many images at one input as at another, not "
                            f"{' and '.join(str(len(array)) for array in images)}: give arrays of one length")

    def _one(self, packed: Sequence[NDArray]) -> NDArray:
        with self._told("run"):
            there = [cl.enqueue_copy(self.queues[0], self._buffers[image.buffer], array, is_blocking=False)
                     for image, array in zip(self.bundle.images, packed, strict=True)]
            self._launch(self.queues, there)
            cl.enqueue_copy(self.queues[self._last], self._result, self._buffers[self.bundle.result.buffer])
        return self.bundle.result.layout.unpack(self._result)

    def _launch(self, queues: Sequence[cl.CommandQueue], there: Sequence[cl.Event] = ()) -> Sequence[cl.Event]:
        """Every kernel in its queue; ``there``: the images."""
        events: list[cl.Event] = []
        for kernel, launch in zip(self._kernels, self.bundle.launches, strict=True):
            waits = [events[number] for number in launch.after] or (there if launch.queue else None)
            events.append(cl.enqueue_nd_range_kernel(queues[launch.queue], kernel, (launch.groups,), (1,),
                                                     wait_for=waits))
        return events

    def kernel_times(self) -> list[KernelTime]:
        """What each kernel takes, in one run on what lies in the buffers."""
        with self._told("run"):
            timed = cl.CommandQueue(self.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
            events = self._launch([timed] * len(self.queues))
            timed.finish()
        return [KernelTime(launch.layer, (event.profile.end - event.profile.start) * 1e-9, launch.multiplications)
                for launch, event in zip(self.bundle.launches, events, strict=True)]


def _require_kind(network: str, format_: Format, array: NDArray) -> None:
    """Elements are what the format means, and no more than it holds: more would wrap around in the device's memory."""
    if not isinstance(format_, Fixed):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{network} takes real numbers, not {array.dtype} ones: convert the images to float32")
    elif array.dtype.kind not in "iu":
        raise DataError(f"{network} takes words of {format_}, not {array.dtype} numbers: quantise the images to that "
                        f"format (Fixed.quantise)")
    elif array.size and (array.min() < format_.low or array.max() > format_.high):
        raise DataError(f"{network} takes words of {format_}, which are in {format_.low}..{format_.high}, not "
                        f"{array.min()}..{array.max()}: limit the images to that range (Fixed.limit), or quantise them "
                        f"to that format")


def _first_error(log: str, source: str) -> str:
    """The first line of a build log that tells an error, after the kernel that it is in, if it says where."""
    lines = log.splitlines() or ["no reason is given"]
    line = next((line for line in lines if "error:" in line), lines[0]).strip()[:500]
    number = re.search(r":(\d+):\d+", line)
    before = source.splitlines()[:int(number.group(1))] if number else []
    kernels = re.findall(r"^__kernel void (\w+)", "\n".join(before), re.MULTILINE)
    return f"kernel {kernels[-1]}: {line}" if kernels else line
