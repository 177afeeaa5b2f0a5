"""A user's own torch module, named on the command line as ``FILE.py:FACTORY``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from espalier.errors import DataError, UnsupportedError


def is_module_file(network: str) -> bool:
    """Whether ``network`` is written as ``FILE.py:FACTORY``."""
    return ".py:" in network


def module_from_file(network: str, seed: int) -> nn.Module:
    """Call ``FACTORY()`` of ``FILE.py`` with torch's random numbers seeded, and return the module that it makes.

    The file is run: name only files that you trust. torch's random state is put back afterwards.

    Raises
    ------
    DataError
        The file is missing or is not Python, or has no such function without arguments.
    UnsupportedError
        What the function returns is no torch module.
    """
    name, _, factory = network.rpartition(":")
    path = Path(name)
    if not path.is_file():
        raise DataError(f"There is no Python file {name!r}: name a network as FILE.py:FACTORY")
    spec = importlib.util.spec_from_file_location(f"espalier_network_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = source  # dataclasses in the file look their module up
    try:
        spec.loader.exec_module(source)
    except (SyntaxError, ImportError) as error:
        raise DataError(f"The network file {name!r} cannot be run: {error}") from None
    make = getattr(source, factory, None)
    if not callable(make):
        raise DataError(f"{name!r} has no function {factory!r}: name a function that returns a torch module")
    _require_no_arguments(make, name, factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    if not isinstance(module, nn.Module):
        raise UnsupportedError(f"{factory!r} of {name!r} must return a torch module, not a {type(module).__name__}")
    return module


def _require_no_arguments(make: Callable[..., object], name: str, factory: str) -> None:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise DataError(f"{factory!r} of {name!r} must make the network without arguments ({error}): give them "
                        f"defaults, or name a function that fills them in") from None
