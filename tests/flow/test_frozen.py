"""What a network does not train by its own definition, what a user freezes, and what the machine makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bench.builds import config

from espalier import zoo
from espalier.data import Dataset, Split
from espalier.errors import UnsupportedError
from espalier.flow import CompileRequest, TrainFlags, compile_network, recipe, train_network
from espalier.flow.design import update_rules
from espalier.flow.network import import_network
from espalier.program.words import Opcode
from espalier.train.checkpoint import Checkpoint
from espalier.train.optimise import Sgd

SHORTCUTS = {"layer2.0.shortcut.weight", "layer3.0.shortcut.weight"}


def test_shortcuts_of_a_resnet_are_fixed(made, tmp_path):
    images = Dataset("colours", np.zeros((5, 3, 32, 32), np.uint8), np.arange(5), tuple("abcde"))
    split = Split(images, images)
    assert import_network("resnet20", split).fixed == SHORTCUTS
    arrays = {name: tensor.numpy() for name, tensor in zoo.build("resnet20", 5).state_dict().items()
              if "shortcut" not in name and not name.endswith("num_batches_tracked")}
    np.savez(tmp_path / "resnet20.npz", **arrays)
    found = import_network(str(tmp_path / "resnet20.npz"), split)
    assert found.fixed == SHORTCUTS <= {value.name for value in found.graph.parameters}


def test_a_network_whose_first_layer_is_frozen_trains_and_compiles(made, tmp_path):
    told = recipe(None, TrainFlags(freeze=("conv.*",))).frozen
    assert told == ("conv.*",)
    trained = train_network(replace(config(made, epochs=1, prune=None), frozen=told), tmp_path / "train")
    assert trained.frozen == {"conv.weight", "conv.bias"}
    assert Checkpoint.load(tmp_path / "train" / "checkpoint.safetensors").frozen == trained.frozen
    design = compile_network(tmp_path / "train", tmp_path / "build", CompileRequest(rows=1, lanes=2), dry_run=True)
    network = design.network()
    assert network.rules == design.rules() and set(network.rules) == {"fc.weight", "fc.bias"}
    assert [(command.opcode, command.layer) for command in network.program.commands[:5]] == [
        (Opcode.FORWARD, "conv"), (Opcode.FORWARD, "fc"), (Opcode.LOSS, "loss"), (Opcode.UPDATE, "fc"),
        (Opcode.END, "end")]  # no gradient that only what is frozen would use


def test_half_a_frozen_layer_wrong(made):
    found = Checkpoint.load(made / "train" / "checkpoint.safetensors")
    with pytest.raises(UnsupportedError, match=r"^The machine updates the weights and the bias of a layer together, "
                                               r"and of 'conv.weight' and 'conv.bias' only one is frozen: freeze both "
                                               r"or none$"):
        update_rules(replace(found, frozen=frozenset({"conv.bias"})), Sgd(), 4)
