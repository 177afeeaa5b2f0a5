"""A training recipe from a file and from flags, which win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from espalier.errors import DataError
from espalier.train.config import RateKind, TrainConfig
from espalier.train.optimise import Sgd
from espalier.train.pipelining import Scheme

PRUNE_START, PRUNE_FOR = 0.1, 0.3  #: of the epochs, where pruning is asked for without saying when or how long
WIDE_BITS, STALE_HEADROOM = 16, 4  #: of activations, and their headroom where weights are stale
EXCHANGE_END = 0.7  #: of the epochs, of a mask that is there before the first step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlags:
    """What the command line says about training; None leaves it to the file or to the default.

    The names are those of ``TrainConfig`` and its parts; ``float32`` leaves fixed point out.
    """

    network: str | None = None
    data: str | None = None
    epochs: int | None = None
    batch: int | None = None
    tuned_batch: int | None = None
    seed: int | None = None
    device: str | None = None
    loss: str | None = None
    augment: bool | None = None
    rate: str | None = None
    warm_up: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    float32: bool = False
    update: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    gradient_bits: int | None = None
    quantise_start: int | None = None
    quantise_rate: float | None = None
    batch_norm: str | None = None
    density: float | None = None
    block: int | None = None
    method: str | None = None
    scope: str | None = None
    elements: int | None = None
    prune_start: float | None = None
    prune_end: float | None = None
    exchange: float | None = None
    freeze: tuple[str, ...] | None = None
    parts: int | None = None
    cut: tuple[str, ...] | None = None
    scheme: str | None = None
    switch: int | None = None
    micro_batches: int | None = None


def recipe(file: Path | None, flags: TrainFlags) -> TrainConfig:
    """The configuration of ``file`` (defaults without one), with ``flags`` put over it. Raises DataError.

    Without a file, stale weights give wide activations more headroom, since at first these grow beyond what training
    without a pipeline shows (``benchmarks/pipeline_accuracy.py``).

    Rate and momentum that were tuned for another batch are scaled to that of the run (:meth:`Sgd.for_batch`).

    Another number of epochs stretches the file's times (:func:`stretch`); times in flags are as given.
    """
    fields = (TrainConfig() if file is None else TrainConfig.load(file)).to_json()
    _put(fields["rate"], flags, {"rate": "kind"})
    if flags.epochs is not None:
        stretch(fields, flags.epochs)
    _put(fields, flags, {name: name for name in ("network", "data", "batch", "seed", "device", "loss", "augment")})
    _put(fields["sgd"], flags, {name: name for name in ("learning_rate", "momentum", "weight_decay")})
    if flags.tuned_batch is not None:
        fields["sgd"] = asdict(Sgd(**fields["sgd"]).for_batch(fields["batch"], flags.tuned_batch))
    _put(fields["rate"], flags, {"warm_up": "warm_up"})
    _put(fields, flags, {"freeze": "frozen"})
    if flags.rate == RateKind.STEP.value and not fields["rate"]["milestones"]:
        raise DataError("The rate 'step' falls at milestones, and none are given: name them in a recipe "
                        "(rate: {kind: step, milestones: [30, 60]}), or choose cosine")
    fields["quantise"] = _quantise(fields["quantise"], flags)
    fields["prune"] = _prune(fields["prune"], flags, fields["epochs"])
    fields["pipeline"] = _pipeline(fields["pipeline"], flags)
    if file is None:
        _make_room(fields)
    return TrainConfig.from_json(fields, "The command line" if file is None else f"Recipe {file} and the command line")


def stretch(fields: dict[str, Any], epochs: int) -> None:
    """Change the length of a run; the times in it keep their place as a part of it.

    Those that are whole epochs are rounded, none to the start or the end of the run. Raises DataError where there are
    too few epochs for milestones that differ.
    """
    before, fields["epochs"] = fields["epochs"], epochs
    if epochs < 1:
        return  # which the configuration refuses
    factor = epochs / before
    prune = fields["prune"] or {}
    for schedule in (prune.get("schedule"), prune.get("exchange"), prune.get("lasso")):
        if schedule is not None:
            schedule |= {"start": schedule["start"] * factor, "end": schedule["end"] * factor}
    structure = fields["structure"] or {}
    for part in (structure.get("growth"), structure.get("shedding")):
        if part is not None:
            part["times"] = {name: time * factor for name, time in part["times"].items()}
    for part, name in ((fields["quantise"], "start"), (fields["pipeline"], "switch"), (fields["rate"], "warm_up")):
        if part is not None and part[name]:
            part[name] = max(1, min(epochs - 1, round(part[name] * factor)))
    rate = fields["rate"]
    if rate["kind"] == RateKind.STEP.value:
        rate["milestones"] = _stretched(rate["milestones"], before, epochs)


def _stretched(milestones: Sequence[int], before: int, epochs: int) -> list[int]:
    """Rounded; those that a run of ``before`` epochs reached stay apart, and within one of ``epochs``."""
    reached = sum(milestone < before for milestone in milestones)
    if reached >= epochs:
        raise DataError(f"The learning rate falls at {reached} milestones, which takes more than {epochs} epochs: give "
                        f"more, or choose a rate that falls along a cosine")
    found = [0]
    for number, milestone in enumerate(milestones):
        nearest = round(milestone * epochs / before)
        latest = epochs - reached + number if number < reached else nearest
        found.append(max(found[-1] + 1, min(nearest, latest)))
    return found[1:]


def _put(fields: dict[str, Any], flags: TrainFlags, names: dict[str, str]) -> None:
    """Set the fields for which a flag was given; ``names`` is flag -> field."""
    given = {field: getattr(flags, flag) for flag, field in names.items()}
    fields.update({field: value for field, value in given.items() if value is not None})


def _quantise(fields: dict[str, Any] | None, flags: TrainFlags) -> dict[str, Any] | None:
    widths = {"weight_bits": "weight", "activation_bits": "activation", "gradient_bits": "gradient"}
    others = {"update": "update", "quantise_start": "start", "quantise_rate": "rate", "batch_norm": "batch_norm"}
    wanted = any(getattr(flags, flag) is not None for flag in (*others, *widths))
    if flags.float32:
        if wanted:
            raise DataError("Training in float32 has neither word widths nor a fixed-point update nor its start, and "
                            "trains batch norms: leave out --float32 or these")
        return None
    if fields is None and wanted:
        found: dict[str, Any] = TrainConfig().to_json()["quantise"]
    elif fields is None:
        return None
    else:
        found = fields
    _put(found, flags, others)
    _put(found["widths"], flags, widths)
    return found


def _prune(fields: dict[str, Any] | None, flags: TrainFlags, epochs: int) -> dict[str, Any] | None:
    given = any(getattr(flags, name) is not None for name in ("density", "block", "method", "scope", "elements",
                                                             "prune_start", "prune_end", "exchange"))
    if fields is None and not given:
        return None
    if fields is None:
        if flags.density is None:
            raise DataError("Pruning needs to know how many weights stay: give --density, such as 0.1")
        start = PRUNE_START * epochs if flags.prune_start is None else flags.prune_start
        fields = {"method": {"kind": "magnitude", "density": flags.density},
                  "schedule": {"start": start, "end": start + PRUNE_FOR * epochs}}
    if flags.method is not None and flags.method != fields["method"].get("kind"):
        fields["method"] = {"kind": flags.method, **{name: fields["method"][name] for name in ("density", "rows")
                                                     if name in fields["method"]}}
    _put(fields["method"], flags, {"density": "density", "block": "rows", "scope": "scope",
                                    "elements": "elements"})
    _put(fields["schedule"], flags, {"prune_start": "start", "prune_end": "end"})
    if flags.exchange is not None:
        start, end = fields["schedule"]["start"], fields["schedule"]["end"]
        fields["exchange"] = {"start": start, "end": end if end > start else EXCHANGE_END * epochs,
                              **(fields.get("exchange") or {}), "fraction": flags.exchange}
    return fields


def _make_room(fields: dict[str, Any]) -> None:
    quantise, pipeline = fields["quantise"], fields["pipeline"]
    stale = pipeline is not None and pipeline.get("scheme") != Scheme.SYNCHRONOUS.value
    if stale and quantise is not None and quantise["widths"]["activation"] == WIDE_BITS:
        quantise["headroom"]["activation"] = STALE_HEADROOM


def _pipeline(fields: dict[str, Any] | None, flags: TrainFlags) -> dict[str, Any] | None:
    names = {"parts": "parts", "scheme": "scheme", "switch": "switch", "micro_batches": "micro_batches"}
    if flags.cut is None and all(getattr(flags, name) is None for name in names):
        return fields
    if fields is None and flags.cut is None and flags.parts is None:
        raise DataError("A pipeline needs to know into how many parts the network is cut: give --parts, such as 2")
    found = fields or {}
    if flags.parts not in (None, found.get("parts")):
        found["cuts"] = ()
    _put(found, flags, names)
    if flags.cut is not None:
        found |= {"cuts": flags.cut, **({} if flags.parts else {"parts": len(flags.cut) + 1})}
    return found
