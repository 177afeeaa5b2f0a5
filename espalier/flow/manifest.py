"""The manifest of a build directory: what was built from what, with which versions and to what sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from espalier.cost.resources import Resources
from espalier.errors import DataError
from espalier.train.optimise import Sgd

MANIFEST, MACHINE, NETWORK, VERILOG, GRAPH = ("manifest.json", "machine.json", "network.safetensors", "espalier.v",
                                              "graph.txt")
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OnMachine:
    """How the machine trains: ``batch`` is the images of a step."""

    sgd: Sgd
    batch: int
    loss: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Words of a memory that the network uses, and that the machine has."""

    used: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """The memories of a machine, by the name of the parameter that sets their depth."""

    activation_depth: Depth
    gradient_depth: Depth
    weight_depth: Depth
    index_depth: Depth
    table_depth: Depth
    program_depth: Depth
    panel_depth: Depth | None = None
    state_depth: Depth | None = None
    run_depth: Depth | None = None
    norm_depth: Depth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccumulatorBits:
    """Width that the sums were proved to need, and that the machine has."""

    needed: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedCycles:
    """What one layer takes for one group of images, by phase, by the cycle model; 0 where it has no such phase."""

    layer: str
    FP: int
    BP: int
    WU: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """No dates and no places, so that equal input gives equal bytes.

    Parameters
    ----------
    espalier : str
        The version that wrote it.
    network, device : str
    tools : dict of str
        Versions by name of what can change the outcome.
    recipe : dict
        How the network was trained.
    live_weights : dict of int
        By parameter.
    index_bytes : int
        Live-block entries and segment pointers.
    estimated_resources : Resources or None
        What the machine takes of ``device``, by the model; None for a device of no family.
    files : dict of str
        SHA-256 of every other file of the directory.
    """

    espalier: str
    network: str
    device: str
    tools: dict[str, str]
    recipe: dict[str, Any]
    training: OnMachine
    depths: Depths
    acc_bits: AccumulatorBits
    live_weights: dict[str, int]
    index_bytes: int
    estimated_cycles: tuple[EstimatedCycles, ...]
    files: dict[str, str]
    estimated_resources: Resources | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        return {"format": FORMAT, **asdict(self)}


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a build directory. Raises DataError if there is none or it is not one of this version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} is no build directory (there is no {MANIFEST} in it): compile a network first")
    fields = read_object(path)
    if fields.get("format") != FORMAT:
        raise DataError(f"The build directory {folder} has format {fields.get('format')} and this version reads "
                        f"{FORMAT}: compile the network again")
    try:
        manifest = _adapter().validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path} is damaged or was changed ({'.'.join(map(str, first['loc']))}: "
                        f"{first['msg'].removeprefix('Value error, ')}): compile the network again") from None
    unlisted = sorted({MACHINE, NETWORK, VERILOG, GRAPH} - manifest.files.keys())
    if unlisted:
        raise DataError(f"{path} is damaged or was changed (it has no checksum of {unlisted[0]}): compile the network "
                        f"again")
    return manifest


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises DataError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged or cannot be read ({error}): compile the network again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} does not hold a JSON object: compile the network again")
    return found
