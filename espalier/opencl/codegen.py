"""OpenCL C, by TVM's code generator."""

from __future__ import annotations

import re
from importlib import resources

import tvm
from tvm.tirx.build import split_host_device_mods

from espalier.opencl.folding import Text
from espalier.opencl.kernels import Kernel
from espalier.opencl.schedule import Scheduled

_TARGET = {"kind": "opencl", "max_threads_per_block": 256, "max_shared_memory_per_block": 32768}


def opencl_text(scheduled: Scheduled) -> Text:
    """OpenCL C of a scheduled function; it needs :func:`prelude` before it."""
    target = tvm.target.Target(_TARGET, host="llvm")
    bound = tvm.tirx.transform.BindTarget(target)(scheduled.module)
    pipeline, _, finalize = tvm.tirx.get_default_tir_pipeline(target)
    _, devices = split_host_device_mods(pipeline(bound))
    (device, functions), = devices.items()
    functions = finalize()(functions)
    (name, function), = ((variable.name_hint, function) for variable, function in functions.functions.items())
    source = tvm.get_global_func("target.build.opencl")(functions, device).inspect_source()
    source = re.sub(r"\(__global \w+ \*\)(\w+_ptr)", r"\1", source)  # to what they are; a task's are its own memory
    arguments = tuple(_argument(scheduled.kernel, parameter.name) for parameter in function.params)
    return Text(name, source, arguments, tuple(argument.name for argument in scheduled.kernel.arguments))


def prelude() -> str:
    """What kernels call."""
    return resources.files("espalier.opencl").joinpath("prelude.cl").read_text()


def _argument(kernel: Kernel, parameter: str) -> str:
    name, = (argument.name for argument in kernel.arguments if parameter in (argument.name, f"{argument.name}_ptr"))
    return name
