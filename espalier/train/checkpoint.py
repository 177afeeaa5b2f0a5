"""One file that holds a network, its training state and how it came about.

A ``.safetensors`` file: tensors, and beside them one JSON text under the key ``espalier`` of its header, with a
SHA-256 digest of both. Nothing in it can run a program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from espalier.errors import DataError, EspalierError
from espalier.ir.graph import Graph
from espalier.ir.ops import BatchNorm
from espalier.ir.text import dump
from espalier.ir.text import load as load_graph
from espalier.ir.types import FLOAT, Format, Value
from espalier.ir.verify import verify
from espalier.numerics.batch_norm import check_variance
from espalier.numerics.fixed import Fixed
from espalier.numerics.update import master_format, narrow
from espalier.records import write_bytes_atomically
from espalier.train.config import TrainConfig
from espalier.train.optimise import Update, state_names, update_of

KEY = "espalier"
DIGEST = "sha256"
VERSION = 1


@dataclass(frozen=True, slots=True)
class EpochLog:
    """What is told about one epoch.

    Parameters
    ----------
    epoch : int
        From 1.
    learning_rate : float
    loss, train_accuracy : float
        Means over the epoch's training images, as they were when their batch's turn came.
    test_accuracy : float
        In 0..1, after the epoch.
    live : dict of int
        Live weights of each layer, by the weight's name.
    saturated : dict of int
        Words at an end of their range in one batch after the epoch, by tensor; those without are left out.
    """

    epoch: int
    learning_rate: float
    loss: float
    train_accuracy: float
    test_accuracy: float
    live: dict[str, int]
    saturated: dict[str, int]


@dataclass(frozen=True, slots=True)
class Position:
    """How far training has come: whole epochs, and into the next one.

    Parameters
    ----------
    epoch, step : int
        Whole epochs done; steps done in the next.
    loss_sum, correct : float
        Over the images of those steps: loss in units of the format, and images recognised.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A network, its training state and its history.

    Parameters
    ----------
    graph : Graph
        The inference graph, fixed or float.
    gradient_formats : dict of Format
        By name of the gradient; empty in float.
    state : dict of ndarray
        For a parameter ``p``: ``p``, ``p.momentum``, ``p.live`` and, with the accumulation buffer,
        ``p.master``. Words are int64 here, numbers float32, masks bool. For a running statistic: itself.
    config : TrainConfig
        What the run was told: hyper-parameters, seed, loss, schedule.
    position : Position
    log : tuple of EpochLog
    frozen : frozenset of str
        Parameters that are not trained.
    """

    graph: Graph
    gradient_formats: dict[str, Format]
    state: dict[str, NDArray]
    config: TrainConfig
    position: Position = field(default_factory=Position)
    log: tuple[EpochLog, ...] = ()
    frozen: frozenset[str] = frozenset()

    @property
    def update(self) -> Update:
        """How a step reaches the weights as they are: in a run that starts in float32, ``FLOAT`` until then."""
        words = any(isinstance(value.format, Fixed) for value in self.graph.parameters)
        return self.config.update if words else Update.FLOAT

    @property
    def waits(self) -> bool:
        """Whether the run is one in fixed point that may still be in its epochs in float32."""
        quantise, at = self.config.quantise, (self.position.epoch, self.position.step)
        return quantise is not None and at <= (quantise.start, 0)

    @property
    def weights(self) -> dict[str, NDArray]:
        """The weights, biases and running statistics by name: what inference reads."""
        return {value.name: self.state[value.name] for value in self.graph.parameters}

    @property
    def live(self) -> dict[str, NDArray[np.bool_]]:
        """The live masks by the parameter's name; running statistics have none."""
        return {value.name: self.state[f"{value.name}.live"] for value in self.graph.learned()}

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises DataError if it cannot be written; an earlier one stays."""
        try:
            write_bytes_atomically(path, self.to_bytes())
        except OSError as error:
            raise DataError(f"Checkpoint {path} cannot be written ({error.strerror or error}): what was there before "
                            f"is intact; make room or choose another place") from None

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`load` reads."""
        header = {"version": VERSION, "graph": dump(self.graph), "config": self.config.to_json(),
                  "gradient_formats": {name: str(format_) for name, format_ in self.gradient_formats.items()},
                  "position": asdict(self.position), "log": [asdict(entry) for entry in self.log],
                  "frozen": sorted(self.frozen)}
        tensors: dict[str, NDArray] = {name: np.ascontiguousarray(array, dtype=_stored_type(name, array))
                                       for name, array in self.state.items()}
        return save(tensors, metadata={KEY: json.dumps({**header, DIGEST: _digest(header, tensors)})})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and check a file. Raises DataError if it is missing, damaged, or contradicts itself."""
        try:
            with safe_open(path, framework="numpy") as file:
                header = (file.metadata() or {}).get(KEY)
                tensors: dict[str, NDArray] = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except FileNotFoundError:
            raise DataError(f"There is no checkpoint {path}: train one first, or give the right path") from None
        except (OSError, SafetensorError) as error:
            raise DataError(f"Checkpoint {path} is damaged or truncated ({error}): train again or use a copy") from None
        if header is None:
            raise DataError(f"{path} is a safetensors file, but no checkpoint of Espalier: give one that train wrote")
        try:
            return cls._parse(header, tensors)
        except (AttributeError, KeyError, TypeError, ValueError, EspalierError) as error:
            raise DataError(f"Checkpoint {path} contradicts itself ({error}): train again or use a copy") from None

    @classmethod
    def _parse(cls, header: str, tensors: Mapping[str, NDArray]) -> Checkpoint:
        fields = json.loads(header)
        digest = fields.pop(DIGEST, None)  # files of before have none
        if digest not in (None, _digest(fields, tensors)):
            raise DataError("bytes have changed since it was saved: its SHA-256 digest is that of others")
        if fields["version"] != VERSION:
            raise DataError(f"it has version {fields['version']} and this program reads {VERSION}")
        graph = verify(load_graph(fields["graph"]))
        config = TrainConfig.from_json(fields["config"])
        formats: dict[str, Format] = {name: FLOAT if text == "float" else Fixed.parse(text)
                                      for name, text in fields["gradient_formats"].items()}
        position = Position(**fields["position"])
        log = tuple(EpochLog(**entry) for entry in fields["log"])
        frozen = frozenset(fields.get("frozen", ()))  # files of before have none
        found = cls(graph, formats, {}, config, position, log, frozen)
        return replace(found, state=_checked(graph, found.update if found.waits else config.update, tensors))


def _digest(header: Mapping[str, Any], tensors: Mapping[str, NDArray]) -> str:
    """SHA-256 of all that a file says, but for the digest itself."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _stored_type(name: str, array: NDArray) -> type:
    if array.dtype == np.bool_:
        return np.bool_
    if array.dtype.kind == "f":
        return np.float32
    return np.int32 if name.endswith((".master", ".momentum")) else np.int16


def _checked(graph: Graph, update: Update, tensors: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The state in ``tensors``, checked against the graph. Raises DataError."""
    state: dict[str, NDArray] = {}
    scalars = {value for op in graph.ops if isinstance(op, BatchNorm) for value in (op.scale, op.shift)}
    for value in graph.learned():
        if isinstance(value.format, Fixed) == (update is Update.FLOAT) and value not in scalars:
            raise DataError(f"the update is {update.value}, but {value} is not of that kind")
        own = update_of(value, update)
        for name in state_names(value.name, own).values():
            state[name] = _tensor(name, value, tensors)
        _check_parameter(value.name, value.format, own, state)
    state |= {value.name: _tensor(value.name, value, tensors) for value in graph.statistics()}
    for op in graph.ops:
        if isinstance(op, BatchNorm):
            check_variance(f"tensor {op.variance.name!r}", state[op.variance.name], op.epsilon)
    unknown = sorted(set(tensors) - set(state))
    if unknown:
        raise DataError(f"tensor {unknown[0]!r} belongs to no parameter")
    return state


def _tensor(name: str, value: Value, tensors: Mapping[str, NDArray]) -> NDArray:
    """The tensor ``name`` of the state of ``value``."""
    if name not in tensors:
        raise DataError(f"tensor {name!r} is missing")
    if tensors[name].shape != value.shape:
        raise DataError(f"tensor {name!r} has shape {tensors[name].shape} instead of {value.shape}")
    return _widened(name, tensors[name], value.format)


def _widened(name: str, array: NDArray, format_: Format) -> NDArray:
    if name.endswith(".live"):
        if array.dtype != np.bool_:
            raise DataError(f"tensor {name!r} must be bool, not {array.dtype}")
        return array
    kind = "i" if isinstance(format_, Fixed) else "f"
    if array.dtype.kind != kind:
        raise DataError(f"tensor {name!r} must hold {'words' if kind == 'i' else 'float numbers'}, not {array.dtype}")
    if kind == "f" and not np.isfinite(array).all():
        raise DataError(f"tensor {name!r} holds NaN or infinite numbers")
    return array.astype(np.int64) if kind == "i" else array.astype(np.float32)


def _check_parameter(parameter: str, format_: Format, update: Update, state: Mapping[str, NDArray]) -> None:
    """Words lie in their range, the dead are zero, and a weight is its master, rounded."""
    names = state_names(parameter, update)
    dead = ~state[names["live"]]
    for role, name in names.items():
        if role != "live" and state[name][dead].any():
            raise DataError(f"tensor {name!r} has values where weights are dead")
        if role == "live" or not isinstance(format_, Fixed):
            continue
        range_ = format_ if role == "weight" or update is Update.NARROW else master_format(format_)
        if state[name].size and not (range_.low <= state[name].min() and state[name].max() <= range_.high):
            raise DataError(f"tensor {name!r} has words outside {range_}")
    if (isinstance(format_, Fixed) and update is Update.BUFFERED
            and not np.array_equal(narrow(state[names["master"]], format_), state[names["weight"]])):
        raise DataError(f"tensor {parameter!r} is not its master, rounded")
