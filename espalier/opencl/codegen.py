"""OpenCL C, by TVM's code generator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

import tvm
from tvm.tirx.build import split_host_device_mods

from espalier.opencl.kernels import Kernel
from espalier.opencl.loops import Loop
from espalier.opencl.schedule import Scheduled

_TARGET = {"kind": "opencl", "max_threads_per_block": 256, "max_shared_memory_per_block": 32768}


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel as OpenCL has it: its name, its arguments in the order in which it takes them, work-groups and loop."""

    kernel: str
    arguments: tuple[str, ...]
    groups: int
    loop: Loop


def opencl_source(kernels: Iterable[Scheduled]) -> tuple[str, list[Signature]]:
    """OpenCL C of all scheduled functions, and how each is launched, in order."""
    target = tvm.target.Target(_TARGET, host="llvm")
    parts, signatures = [_prelude()], []
    for found in kernels:
        bound = tvm.tirx.transform.BindTarget(target)(found.module)
        pipeline, _, finalize = tvm.tirx.get_default_tir_pipeline(target)
        _, devices = split_host_device_mods(pipeline(bound))
        (device, functions), = devices.items()
        functions = finalize()(functions)
        (name, function), = ((variable.name_hint, function) for variable, function in functions.functions.items())
        parts.append(tvm.get_global_func("target.build.opencl")(functions, device).inspect_source())
        arguments = tuple(_argument(found.kernel, parameter.name) for parameter in function.params)
        signatures.append(Signature(name, arguments, found.groups, found.loop))
    return "\n".join(parts), signatures


def _prelude() -> str:
    return resources.files("espalier.opencl").joinpath("prelude.cl").read_text()


def _argument(kernel: Kernel, parameter: str) -> str:
    name, = (argument.name for argument in kernel.arguments if parameter in (argument.name, f"{argument.name}_ptr"))
    return name

