"""What a training run is told: one frozen value, read from and written back to YAML, TOML or JSON."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from espalier.compress.balanced import Balanced
from espalier.compress.cgap import Structure
from espalier.compress.group_lasso import GroupLasso
from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude
from espalier.compress.procrustes import Tracking
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError, EspalierError
from espalier.ir.differentiate import LOSSES
from espalier.records import write_text_atomically
from espalier.train.calibrate import Headroom, Widths
from espalier.train.field_errors import explained
from espalier.train.optimise import Sgd, Update
from espalier.train.pipelining import Pipeline, Scheme

SEED_LIMIT = 1 << 32  #: NumPy's generators take no larger seed


class RateKind(Enum):
    """How the learning rate falls."""

    CONSTANT = "constant"
    STEP = "step"      #: times ``gamma`` at each milestone
    COSINE = "cosine"  #: half a cosine, from 1 in the first epoch towards ``floor``


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """The learning rate of each epoch, as a factor.

    Parameters
    ----------
    kind : RateKind
    milestones : tuple of int
        Epochs (from 0) from which on the rate is lower, for ``STEP``; from 1 on, rising.
    gamma : float
        What each milestone multiplies by.
    floor : float
        The factor that ``COSINE`` tends to.
    warm_up : int
        Epochs in which the rate rises linearly, to what it is otherwise: in epoch ``k`` (from 0) it is times
        ``(k + 1) / (warm_up + 1)``.
    """

    kind: RateKind = RateKind.CONSTANT
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    floor: float = 0.0
    warm_up: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.gamma <= 1 and 0 <= self.floor <= 1):
            raise DataError(f"What multiplies a learning rate is above 0 and at most 1, and its floor in 0..1, not "
                            f"{self.gamma} and {self.floor}")
        if any(later <= earlier for earlier, later in pairwise((0, *self.milestones))):
            raise DataError(f"Milestones are epochs from 1 on, each later than the one before, not "
                            f"{', '.join(map(str, self.milestones))}")
        if self.warm_up < 0:
            raise DataError(f"A learning rate warms up for 0 epochs or more, not {self.warm_up}")

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor of ``epoch`` (from 0) out of ``epochs``."""
        return min(1.0, (epoch + 1) / (self.warm_up + 1)) * self._fallen(epoch, epochs)

    def _fallen(self, epoch: int, epochs: int) -> float:
        match self.kind:
            case RateKind.CONSTANT:
                return 1.0
            case RateKind.STEP:
                return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
            case RateKind.COSINE:
                return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Norms(Enum):
    """What becomes of batch norms where fixed point begins."""

    FOLDED = "folded"    #: part of the layer before them, by their running statistics
    TRAINED = "trained"  #: trained on, by the statistics of the batch


@dataclass(frozen=True, slots=True)
class Quantise:
    """Training in fixed point.

    Parameters
    ----------
    widths, headroom : Widths, Headroom
    update : Update
        How a step reaches the weights; not ``FLOAT``.
    probe_steps : int
        Steps of float training, thrown away afterwards, over which ranges are observed.
    start : int
        Epochs of training in float32 before; masks, weights and momenta are taken over.
    rate : float
        What multiplies the learning rate from there on. Where batch norms are folded, they bore a rate at which the
        network without them can diverge: try 0.1.
    batch_norm : Norms
    """

    widths: Widths = field(default_factory=Widths)
    headroom: Headroom = field(default_factory=Headroom)
    update: Update = Update.BUFFERED
    probe_steps: int = 100
    start: int = 0
    rate: float = 1.0
    batch_norm: Norms = Norms.FOLDED

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise DataError(f"What multiplies the learning rate in fixed point is above 0 and at most 1, not "
                            f"{self.rate}")
        if self.probe_steps < 0:
            raise DataError(f"Ranges are observed over at least 0 steps, not {self.probe_steps}")
        if self.update is Update.FLOAT:
            raise DataError("Training in fixed point needs a fixed-point update (buffered, unbuffered or narrow): "
                            "leave 'quantise' out to train in float32")


Method = Annotated[Magnitude | Lamp | Balanced, Field(discriminator="kind")]  #: which weights live, given their values


@dataclass(frozen=True, slots=True)
class Prune:
    """Pruning during training: which weights, and when.

    Parameters
    ----------
    method : Magnitude, Lamp or Balanced
    schedule : CubicSchedule
        When weights die. One that ends where it starts prunes at once; at 0, before the first step.
    exchange : ExchangeSchedule or None
        When live weights are exchanged for dead ones with larger gradients, besides: GraNet where the pruning is
        gradual, RigL where it is at once.
    lasso : GroupLasso or None
        What draws blocks of the method's size to zero before they die.
    """

    method: Method
    schedule: CubicSchedule
    exchange: ExchangeSchedule | None = None
    lasso: GroupLasso | None = None

    def __post_init__(self) -> None:
        if self.lasso is not None and self.lasso.end > self.schedule.end:
            raise DataError(f"A group lasso prepares blocks to die, and it ends with the pruning at epoch "
                            f"{self.schedule.end:g} or before, not at {self.lasso.end:g}")
        if self.exchange is not None and isinstance(self.method, Balanced):
            raise DataError("An exchange of weights would not stay balanced over the output blocks: prune by magnitude "
                            "or LAMP to exchange")

    @property
    def start(self) -> float:
        """The epoch before which every weight lives."""
        return min(self.schedule.start, self.exchange.start if self.exchange else math.inf)

    @property
    def end(self) -> float:
        """The epoch from which on the masks are fixed."""
        return max(self.schedule.end, self.exchange.end if self.exchange else 0.0)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training run, but for the data and the network themselves.

    Parameters
    ----------
    network, data : str
        A network of the zoo; a data set by name or path.
    epochs, batch, seed : int
        The last images that do not fill a batch are left out, others each epoch.
    sgd, rate : Sgd, RateSchedule
    loss : str
    quantise : Quantise or None
        None trains in float32.
    prune : Prune or None
    augment : bool
        Random crops (by up to 4 pixels) and mirror images.
    device : str
        ``"cpu"`` or ``"cuda"``; results in fixed point do not depend on it.
    structure : Structure or None
        How the network grows and sheds units, before weights are pruned.
    frozen : tuple of str
        Names of parameters, or patterns such as ``conv*.bias``, that are neither trained nor decay nor die.
    tracking : Tracking or None
        Procrustes: the weights that have moved most live. Takes the place of ``prune``.
    pipeline : Pipeline or None
        How parts of the network work on different batches at a time.
    """

    network: str = "digits"
    data: str = "digits"
    epochs: int = 10
    batch: int = 64
    seed: int = 0
    sgd: Sgd = field(default_factory=Sgd)
    rate: RateSchedule = field(default_factory=RateSchedule)
    loss: str = "softmax_cross_entropy"
    quantise: Quantise | None = field(default_factory=Quantise)
    prune: Prune | None = None
    augment: bool = False
    device: str = "cpu"
    structure: Structure | None = None
    frozen: tuple[str, ...] = ()
    tracking: Tracking | None = None
    pipeline: Pipeline | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise DataError(f"Epochs and batch are at least 1, not {self.epochs} and {self.batch}")
        if not 0 <= self.seed < SEED_LIMIT:
            raise DataError(f"The seed is in 0..{SEED_LIMIT - 1}, not {self.seed}")
        if self.loss not in LOSSES:
            raise DataError(f"The loss is one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.device not in ("cpu", "cuda"):
            raise DataError(f"The device is cpu or cuda, not {self.device!r}")
        if self.rate.warm_up >= self.epochs:
            raise DataError(f"A learning rate is warm by the last of the {self.epochs} epochs, not after "
                            f"{self.rate.warm_up}: warm up for fewer")
        if self.quantise is not None and not 0 <= self.quantise.start < self.epochs:
            raise DataError(f"Fixed point starts in one of the {self.epochs} epochs, counted from 0, not in "
                            f"{self.quantise.start}: leave 'quantise' out to train in float32")
        if self.prune is not None and self.prune.end >= self.epochs:
            raise DataError(f"Pruning must end before the last epoch does, and epoch {self.prune.end} of "
                            f"{self.epochs} leaves no time to train what lives: end it earlier")
        if self.structure is not None:
            self._check_structure(self.structure)
        if self.tracking is not None and (self.prune is not None or self.structure is not None):
            raise DataError("Tracking decides by itself which weights live: leave out 'prune' and 'structure', or "
                            "'tracking'")
        if self.pipeline is not None:
            self._check_pipeline(self.pipeline)

    def sgd_of(self, epoch: int) -> Sgd:
        """With the learning rate of an epoch (from 0)."""
        factor = self.rate.factor(epoch, self.epochs)
        if self.quantise is not None and epoch >= self.quantise.start:
            factor *= self.quantise.rate
        return self.sgd.scaled(factor)

    def _check_pipeline(self, pipeline: Pipeline) -> None:
        if pipeline.scheme is Scheme.COMPENSATED and self.update not in (Update.BUFFERED, Update.FLOAT):
            raise DataError(f"Late gradients are made up for in the buffered update and in float32, not in the "
                            f"{self.update.value} one: choose another scheme")
        if pipeline.switch is not None and pipeline.switch >= self.epochs:
            raise DataError(f"A hybrid pipeline turns synchronous in one of the {self.epochs} epochs, counted from 0, "
                            f"not in {pipeline.switch}")

    def _check_structure(self, structure: Structure) -> None:
        if structure.end >= self.epochs:
            raise DataError(f"Units must be born and leave before the last epoch ends, and epoch {structure.end:g} of "
                            f"{self.epochs} leaves no time to train what stays: end it earlier")
        if self.prune is not None and self.prune.start < structure.end:
            raise DataError(f"Weights die once the network has its widths, at epoch {structure.end:g}, not from "
                            f"epoch {self.prune.start:g} on: prune later")

    def frozen_names(self, names: Collection[str]) -> frozenset[str]:
        """Those of the parameters' ``names`` that are frozen. Raises DataError for a pattern of none."""
        for pattern in self.frozen:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise DataError(f"No parameter to freeze is called {pattern!r}: the network has {', '.join(names)}")
        return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in self.frozen))

    @property
    def rows(self) -> int | None:
        """The edge of the blocks in which weights die, where they do."""
        if self.tracking is not None:
            return self.tracking.rule.rows
        return None if self.prune is None else self.prune.method.rows

    @property
    def update(self) -> Update:
        """How a step reaches the weights."""
        return Update.FLOAT if self.quantise is None else self.quantise.update

    @property
    def folds(self) -> bool:
        """Whether batch norms are folded at some time."""
        return self.quantise is not None and self.quantise.batch_norm is Norms.FOLDED

    @property
    def trains_batch_norm(self) -> bool:
        """Whether batch norms are trained in the first epoch, in float32 or in fixed point."""
        return self.quantise is None or self.quantise.start > 0 or not self.folds

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists, strings and numbers, complete."""
        fields: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return fields

    @classmethod
    def from_json(cls, fields: object, place: str = "The configuration") -> TrainConfig:
        """The inverse of :meth:`to_json`; what is left out has its default.

        Raises DataError, or what a part of the configuration raises, naming the place and the field.
        """
        try:
            return _adapter().validate_python(fields, strict=False)
        except ValidationError as error:
            raise DataError(f"{place}: {explained(error, cls, fields)}") from None
        except EspalierError as error:
            raise type(error)(f"{place}: {error}") from None

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Read a ``.yaml``, ``.yml``, ``.toml`` or ``.json`` file. Raises DataError if it is missing or wrong."""
        try:
            text = path.read_text(encoding="utf-8")
            fields = _parse(path, text)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Configuration {path} cannot be read: {error}") from None
        except (yaml.YAMLError, ValueError) as error:  # of TOML and JSON, and of YAML's dates, which need not exist
            raise DataError(f"Configuration {path} is not well formed: {' '.join(str(error).split())}") from None
        return cls.from_json(fields, f"Configuration {path}")

    def save(self, path: Path) -> None:
        """Write the complete configuration as YAML."""
        write_text_atomically(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The complete configuration, as :meth:`load` reads it."""
        text: str = yaml.safe_dump(self.to_json(), sort_keys=False)
        return text


@cache
def _adapter() -> TypeAdapter[TrainConfig]:
    return TypeAdapter(TrainConfig)


def _parse(path: Path, text: str) -> object:
    match path.suffix:
        case ".yaml" | ".yml":
            return yaml.safe_load(text)
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return json.loads(text)
        case _:
            raise DataError(f"A configuration is a .yaml, .toml or .json file, not {path.name!r}")
