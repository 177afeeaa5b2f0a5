"""A small network of its own file, small data, and what training and compiling them gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from bench.machines import TWO_BY_FOUR
from sklearn.datasets import load_digits

from espalier.flow import CompileRequest, compile_network, train_network
from espalier.train.config import TrainConfig

NETWORK = '''
from collections import OrderedDict

from torch import nn


def make():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3, padding=1), relu=nn.ReLU(), pool=nn.MaxPool2d(2),
                                     flatten=nn.Flatten(), fc=nn.Linear(64, 10)))


def strided():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3, stride=3), flatten=nn.Flatten(), fc=nn.Linear(16, 10)))


def sigmoid():
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(64, 10), squash=nn.Sigmoid()))


def not_a_number():
    module = make()
    nn.init.constant_(module.fc.weight, float("nan"))
    return module


def imaginary():
    module = make()
    module.fc.weight = nn.Parameter(module.fc.weight * 1j)
    return module


def huge():
    module = make()
    nn.init.constant_(module.conv.weight, 1e6)
    return module


def number():
    return 3


def sized(width):
    return make()
'''


def write_network(folder: Path) -> Path:
    """``net.py`` in ``folder``, with good and bad networks for 1×8×8 images."""
    path = folder / "net.py"
    path.write_text(NETWORK)
    return path


def write_data(folder: Path, **changes: np.ndarray) -> Path:
    """96 digits to train on and 40 to test, as an ``.npz`` file; ``changes`` replace arrays."""
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target.astype(np.int64)
    arrays = {"x_train": images[:96], "y_train": labels[:96], "x_test": images[96:136], "y_test": labels[96:136]}
    path = folder / "small.npz"
    np.savez(path, **{**arrays, **changes})
    return path


def config(folder: Path, **changes) -> TrainConfig:
    """Two short epochs, 16 bits, pruned to a half in blocks of 2."""
    fields = {"network": f"{folder / 'net.py'}:make", "data": str(folder / "small.npz"), "epochs": 2, "batch": 16,
              "quantise": {"probe_steps": 4},
              "prune": {"method": {"kind": "magnitude", "density": 0.5, "rows": 2},
                        "schedule": {"start": 0.2, "end": 0.8}}, **changes}
    return TrainConfig.from_json(fields)


def make_trained(folder: Path) -> Path:
    """Network, data and the training directory ``folder/train``."""
    write_network(folder)
    write_data(folder)
    train_network(config(folder), folder / "train")
    return folder


def make_build(folder: Path, name: str = "build") -> Path:
    """A build of ``folder/train`` for the machine that the engines' tests have simulators of."""
    machine = folder / "two-by-four.json"
    machine.write_text(json.dumps(TWO_BY_FOUR.to_json()))
    compile_network(folder / "train", folder / name, CompileRequest(machine=machine))
    return folder / name
