"""Published weights in ``.npz`` files, and how they get into a module."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from espalier.errors import DataError

Arrays = dict[str, NDArray[np.generic]]

#: What reading a damaged archive may raise: the errors of ZIP, of its compressions and of NumPy's array headers.
NPZ_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, KeyError, TypeError,
              ValueError, RuntimeError, OverflowError, MemoryError)


def read_arrays(path: Path) -> Arrays:
    """Every array of an ``.npz`` file. Raises DataError if it is missing, damaged or has pickled objects."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The weights {path} cannot be read ({error.strerror}): check the path") from error
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}
    except NPZ_ERRORS as error:
        raise DataError(f"{path} is no readable .npz file without pickled objects ({error}): get it again") from error


def fill(module: nn.Module, arrays: Mapping[str, NDArray[np.generic]], path: Path) -> None:
    """Copy ``arrays`` into the parameters and buffers of ``module`` that have their names.

    Not looked for are parameters that are not trained and the batch counters of batch norms. Raises
    DataError where any other name is missing or left over, a shape differs, or a number is not finite.
    """
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    wanted = {name: tensor for name, tensor in module.state_dict().items()
              if name not in fixed and not name.endswith(".num_batches_tracked")}
    missing, surplus = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if missing or surplus:
        what = f"lacks {missing[0]!r}" if missing else f"also holds {surplus[0]!r}"
        raise DataError(f"{path} must hold the {len(wanted)} arrays of a {type(module).__name__} of its size, and it "
                        f"{what}: get it again")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(numbers(arrays, name, tuple(tensor.shape), path)))


def numbers(arrays: Mapping[str, NDArray[np.generic]], name: str, shape: tuple[int, ...], path: Path
            ) -> NDArray[np.float32]:
    """The array of that name. Raises DataError unless it has that shape and holds finite floating-point numbers."""
    found = arrays.get(name)
    if found is None or found.shape != shape or found.dtype.kind != "f":
        have = "is missing" if found is None else f"is {found.dtype} of shape {found.shape}"
        raise DataError(f"{name!r} of {path} must be floating-point numbers of shape {shape}, and it {have}: "
                        f"get it again")
    if not np.isfinite(found).all():
        raise DataError(f"{name!r} of {path} must hold finite numbers only: get it again")
    return found.astype(np.float32)
