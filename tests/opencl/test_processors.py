"""A processor that PoCL's compiler does not know gets the name of one that it knows."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from espalier.opencl import processors

UNKNOWN = "OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-generic"
CPUINFO = "processor\t: 0\nmodel name\t: Any\nflags\t\t: {flags}\nbugs\t\t: many\n\nprocessor\t: 1\n"
AVX2 = "fpu abm f16c fma bmi1 avx2 bmi2 movbe"


@pytest.mark.parametrize(("flags", "name"), [
    (f"{AVX2} avx512f adx avx512dq avx512cd avx512bw avx512vl", b"skx"), (f"{AVX2} adx avx512f avx512cd", b"haswell"),
    (AVX2, b"haswell"), ("fpu avx avx2", b"x86-64"), ("", b"x86-64")])
def test_a_name_in_the_place_of_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, name: bytes) -> None:
    """In memory that looks as a device's does: words that are no pointers, pointers elsewhere, one to the name."""
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(flags=flags))
    monkeypatch.setattr(processors, "CPU", tmp_path / "cpuinfo")
    generic, other = ctypes.create_string_buffer(b"generic", 16), ctypes.create_string_buffer(b"genericity", 16)
    block = (ctypes.c_uint64 * (processors.DEVICE_BYTES // 8))(3, 1 << 63, ctypes.addressof(other), 0,
                                                               ctypes.addressof(generic), 2**64 - 1)
    device = SimpleNamespace(version=UNKNOWN, int_ptr=ctypes.addressof(block))
    processors.give_name(device)
    assert (generic.value, other.value) == (name, b"genericity")


@pytest.mark.parametrize("version", ["OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-znver3", "OpenCL 1.2"])
def test_devices_that_have_a_name_are_left_alone(version: str) -> None:
    """Nothing of them is looked at."""
    processors.give_name(SimpleNamespace(version=version))
