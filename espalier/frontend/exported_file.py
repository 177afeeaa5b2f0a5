"""A network that ``torch.export.save`` wrote: a ``.pt2`` file."""

from __future__ import annotations

import logging
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from espalier.errors import DataError, UnsupportedError
from espalier.frontend.torch_export import BATCH

#: What ``torch.export.load`` raises for what is no program, or only a part of one.
DAMAGE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError,
          zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)


def is_exported_file(network: str) -> bool:
    """Whether ``network`` names a program that was exported."""
    return network.endswith(".pt2")


def module_from_exported(path: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of a ``.pt2`` file as a module that takes any batch, and the shape (C, H, W) of its images.

    ``torch.export.load`` unpickles what the file holds besides tensors, so the file may run code: name only files that
    you trust.

    Raises
    ------
    DataError
        The file is missing or holds no exported program.
    UnsupportedError
        The program takes something else than one batch of images of a fixed size.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no file {path!r}: write one by torch.export.save")
    try:
        with _quiet(), zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look
            program = None if damaged else torch.export.load(path)
    except DAMAGE:
        program = None
    if program is None:
        raise DataError(f"{path!r} is damaged, or no program of torch.export that this version of torch reads: write "
                        f"it by torch.export.save(torch.export.export(module, (images,)), {path!r})")
    batch, *shape = _images_of(program, path)
    module = program.module(check_guards=False)  # which hold batches to the size of that of the export
    for node in module.graph.nodes:
        if isinstance(batch, int) and node.target in _VIEWS and list(node.args[1][:1]) == [batch]:
            node.args = (node.args[0], [BATCH, *node.args[1][1:]])
    module.graph.set_codegen(CodeGen())  # a plain function of the images: torch warns of copies of those of programs
    return GraphModule(module, module.graph), (shape[0], shape[1], shape[2])


def _images_of(program: ExportedProgram, path: str) -> tuple[object, int, int, int]:
    """Of the one thing that a program takes: images (any number, C, H, W)."""
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    found = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else () for value in found]
    match shapes:
        case [(batch, int(channels), int(height), int(width))]:
            return batch, channels, height, width
        case _:
            told = ", ".join(f"({', '.join(map(str, shape))})" for shape in shapes) or "nothing"
            raise UnsupportedError(f"The network of {path!r} must take one batch of images (N, C, H, W), of which only "
                                   f"N may vary, not {told}: export it so")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that torch logs for files that it cannot read, and its warnings of old ones."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
