"""A build directory: a compiled network with everything that is needed to run, train and rebuild it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.arch.machine import Machine
from espalier.compiler.pipeline import compile_program
from espalier.cost.resources import Resources, estimate
from espalier.engines.base import Network
from espalier.errors import DataError, FormatError, UnsupportedError
from espalier.flow.manifest import MACHINE, NETWORK, load_manifest, read_object
from espalier.ir.differentiate import differentiate, gradient_name
from espalier.ir.graph import Graph
from espalier.ir.types import Fixed
from espalier.numerics.update import BufferedSgd, ScalarSgd
from espalier.targets import find_device
from espalier.train.checkpoint import Checkpoint
from espalier.train.optimise import Sgd, Update, buffered_rule, scalar_rule


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """A trained network, the machine it is for, and how the machine trains it on.

    Parameters
    ----------
    checkpoint : Checkpoint
        In fixed point, with the accumulation buffer.
    machine : Machine
    sgd : Sgd
        Of training on the machine.
    batch : int
        Images of a step there: one group of lanes, or several where the machine has ``groups``.
    device : str
        Name of the part that the machine was chosen for.
    """

    checkpoint: Checkpoint
    machine: Machine
    sgd: Sgd
    batch: int
    device: str

    def __post_init__(self) -> None:
        size, what = self.machine.images, "lanes" if self.machine.tiles == 1 else "images"
        if self.batch < 1 or self.batch % size or (self.batch > size and not self.machine.groups):
            wanted = f"a multiple of {size} {what}" if self.machine.groups else f"the {size} {what} of this machine"
            raise UnsupportedError(f"The batch of a step must be {wanted}, not {self.batch}")

    @property
    def graph(self) -> Graph:
        """The inference graph."""
        return self.checkpoint.graph

    @property
    def loss(self) -> str:
        return self.checkpoint.config.loss

    @property
    def live(self) -> dict[str, NDArray[np.bool_]]:
        return self.checkpoint.live

    @property
    def state(self) -> dict[str, NDArray]:
        """Weights, masters and momenta, and the scalars of batch norms."""
        return {name: words for name, words in self.checkpoint.state.items() if not name.endswith(".live")}

    @property
    def estimated_resources(self) -> Resources | None:
        """What the machine takes of its part, by the model; None for a part of no family."""
        return estimate(self.machine, find_device(self.device))

    @property
    def estimated_use(self) -> str:
        """The same for people; empty for a part of no family."""
        resources = self.estimated_resources
        return "" if resources is None else resources.use_of(find_device(self.device))

    def rules(self) -> dict[str, BufferedSgd | ScalarSgd]:
        """The update rule of every parameter that is trained."""
        return update_rules(self.checkpoint, self.sgd, self.batch)

    def network(self, live: Mapping[str, NDArray[np.bool_]] | None = None, machine: Machine | None = None) -> Network:
        """Compile it: what the engines run; with another live set and machine on demand."""
        live, rules = live or self.live, self.rules()
        program = compile_program(self.graph, loss=self.loss, gradient_formats=self.checkpoint.gradient_formats,
                                  live=live, rules=rules, machine=machine or self.machine)
        return Network(graph=differentiate(self.graph, self.loss, self.checkpoint.gradient_formats), program=program,
                       rules=rules, live=live)


def update_rules(checkpoint: Checkpoint, sgd: Sgd, batch: int) -> dict[str, BufferedSgd | ScalarSgd]:
    """The rules with which a machine updates the parameters of ``checkpoint``.

    What is frozen has none. Raises UnsupportedError for a network that is not in fixed point with
    the accumulation buffer or has half a layer frozen, and FormatError for a rate that has no word.
    """
    if checkpoint.config.update is not Update.BUFFERED:
        raise UnsupportedError(f"The machine trains in fixed point through the accumulation buffer, and this network "
                               f"was trained with the update {checkpoint.config.update.value!r}: train it with "
                               f"'buffered'")
    rules: dict[str, BufferedSgd | ScalarSgd] = {}
    for value in checkpoint.graph.learned():
        if value.name in checkpoint.frozen:
            continue
        if not isinstance(value.format, Fixed):
            rules[value.name] = scalar_rule(sgd, batch)
            continue
        gradient = checkpoint.gradient_formats[gradient_name(value.name)]
        assert isinstance(gradient, Fixed)
        try:
            rule = buffered_rule(sgd, batch, value.format, gradient)
        except FormatError as error:
            raise FormatError(f"The learning rate {sgd.learning_rate:g} over a batch of {batch} is too large for the "
                              f"formats of {value.name!r} ({error}): choose a lower rate or a larger batch") from None
        rules[value.name] = rule
    _check_alike(checkpoint)
    return rules


def _check_alike(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError where a layer's weights are frozen and its bias is not, or the other way round."""
    for layer in checkpoint.graph.layers():
        if layer.b is not None and (layer.w.name in checkpoint.frozen) != (layer.b.name in checkpoint.frozen):
            raise UnsupportedError(f"The machine updates the weights and the bias of a layer together, and of "
                                   f"{layer.w.name!r} and {layer.b.name!r} only one is frozen: freeze both or none")


def load_design(folder: Path) -> Design:
    """Read and check a build directory. Raises DataError if it is missing, incomplete or was changed."""
    manifest = load_manifest(folder)
    for name, digest in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            raise DataError(f"The build directory {folder} lacks {name}: compile the network again")
        if sha256(path.read_bytes()) != digest:
            raise DataError(f"{name} in the build directory {folder} is damaged or was changed (its checksum is not "
                            f"that of the manifest): compile the network again")
    machine = Machine.from_json(read_object(folder / MACHINE))
    return Design(Checkpoint.load(folder / NETWORK), machine, manifest.training.sgd, manifest.training.batch,
                  manifest.device)


def read_machine(path: Path) -> Machine:
    """A machine from its JSON file. Raises DataError or FitError in one sentence."""
    if not path.is_file():
        raise DataError(f"There is no machine description {path}: give the machine.json of a build directory")
    return Machine.from_json(read_object(path))


def sha256(content: bytes) -> str:
    """The checksum that the manifest has of each file."""
    return hashlib.sha256(content).hexdigest()
