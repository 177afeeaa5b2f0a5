"""PoCL on processors that its compiler does not know.

PoCL asks its LLVM for the processor's name. One that is newer than LLVM is ``generic`` to it, which Clang takes for the
name of no processor, so that nothing can be built (github.com/pocl/pocl/issues/1049). PoCL has no setting for the name:
where its device says that it is generic, the name in the device's memory is replaced by that of the latest processor
whose vectors this one has, too, of those that Clang knows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyopencl as cl

MEMORY, CPU = Path("/proc/self/mem"), Path("/proc/cpuinfo")
DEVICE_BYTES = 4096  #: in which a device keeps the pointer to its processor's name
POINTER = struct.Struct("<Q")
GENERIC = b"generic\0"
AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"}
AVX512 = AVX2 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "adx"}
NAMES = ((b"skx", AVX512), (b"haswell", AVX2), (b"x86-64", set[str]()))  #: none longer than what it replaces


def give_name(device: cl.Device) -> None:
    """Let PoCL build kernels for ``device`` where it knows no name for the processor; any other stays as it is."""
    if not device.version.endswith("-x86_64-unknown-linux-gnu-generic") or not MEMORY.exists():
        return
    flags = _flags(CPU.read_text(encoding="utf-8") if CPU.exists() else "")
    given = next(name for name, needed in NAMES if needed <= flags)
    with suppress(OSError), MEMORY.open("r+b", buffering=0) as memory:
        for place in _names(memory, device.int_ptr):
            memory.seek(place)
            memory.write(given.ljust(len(GENERIC), b"\0"))


def _names(memory: BinaryIO, device: int) -> Iterator[int]:
    """Where the memory of ``device`` points to the name of no processor."""
    memory.seek(device)
    for pointer, in POINTER.iter_unpack(memory.read(DEVICE_BYTES)):
        with suppress(OSError, OverflowError, ValueError):  # most are no pointers
            memory.seek(pointer)
            if memory.read(len(GENERIC)) == GENERIC:
                yield pointer


def _flags(cpuinfo: str) -> set[str]:
    """What the first processor can do."""
    return next((set(value.split()) for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
                 if key.strip() == "flags"), set())
