"""A configuration is read strictly and written back complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.compress.balanced import Balanced
from espalier.compress.cgap import Growth, Shedding, Structure, Times
from espalier.compress.growth import Birth
from espalier.compress.lamp import Lamp
from espalier.compress.magnitude import Magnitude, Norm, Scope
from espalier.compress.rigl import ExchangeSchedule
from espalier.compress.schedule import CubicSchedule
from espalier.errors import DataError, EspalierError
from espalier.train.calibrate import Headroom, Widths
from espalier.train.config import Prune, Quantise, RateKind, RateSchedule, TrainConfig
from espalier.train.optimise import Sgd, Update

FULL = TrainConfig("lenet5", "mnist", 5, 100, 3, Sgd(0.1, 0.5, 1e-3), RateSchedule(RateKind.STEP, (2, 3), 0.2),
                   "square_hinge", Quantise(Widths(8, 8, 16), Headroom(0, 1, 3), Update.UNBUFFERED, 7, 2),
                   Prune(Magnitude(density=0.1, rows=4, scope=Scope.NETWORK, norm=Norm.L2, exceptions={"a": 0.5}),
                         CubicSchedule(2.5, 2.5, 3), ExchangeSchedule(2.6, 4, 0.5)), True, "cuda",
                   Structure(0.5, Growth(Times(1, 1.5, 0.5), 0.5, 2.0, Birth(0.5, 0.1)),
                             Shedding(Times(2, 2.5, 0.25), 0.5, 0.75), 3), ("conv1.*", "fc.bias"))


@pytest.mark.parametrize("config", [TrainConfig(), FULL, TrainConfig(quantise=None), *(
    TrainConfig(prune=Prune(method, CubicSchedule(0, 1)))
    for method in (Lamp(density=0.5), Balanced(density=0.2, rows=4), Magnitude(density=0.2)))])
def test_comes_back_as_it_was(tmp_path: Path, config: TrainConfig) -> None:
    assert TrainConfig.from_json(config.to_json()) == config
    config.save(tmp_path / "c.yaml")
    assert TrainConfig.load(tmp_path / "c.yaml") == config


def test_formats_of_files(tmp_path: Path) -> None:
    for name, text in {"c.yaml": "epochs: 3\nsgd: {learning_rate: 0.2}\n", "c.json": '{"epochs": 3, "sgd": '
                       '{"learning_rate": 0.2}}', "c.toml": "epochs = 3\n[sgd]\nlearning_rate = 0.2\n"}.items():
        (tmp_path / name).write_text(text)
        assert TrainConfig.load(tmp_path / name) == TrainConfig(epochs=3, sgd=Sgd(0.2))


@pytest.mark.parametrize(("fields", "sentence"), [
    ({"epochz": 3}, r"^r\.yaml: 'epochz' is no field: the fields are network, data, epochs, [a-z, ]*, pipeline$"),
    ({"sgd": {"lr": 3}}, r"^r\.yaml: 'sgd\.lr' is no field: the fields are learning_rate, momentum, weight_decay$"),
    ({"sgd": {"learning_rate": -1}}, r"^r\.yaml: 'sgd': The learning rate must be a number above 0, not -1.0$"),
    ({"sgd": {"learning_rate": "x"}}, r"^r\.yaml: 'sgd\.learning_rate' must be a number, not 'x'$"),
    ({"sgd": 3}, r"^r\.yaml: 'sgd' must be a mapping of names to values, not 3$"),
    ({"epochs": "x"}, r"^r\.yaml: 'epochs' must be a whole number, not 'x'$"),
    ({"epochs": 2.5}, r"^r\.yaml: 'epochs' must be a whole number, not 2\.5$"),
    ({"augment": "often"}, r"^r\.yaml: 'augment' must be true or false, not 'often'$"),
    ({"frozen": "conv"}, r"^r\.yaml: 'frozen' must be a list, not 'conv'$"),
    ({"network": 3}, r"^r\.yaml: 'network' must be text, not 3$"),
    ({"rate": {"kind": "linear"}}, r"^r\.yaml: 'rate\.kind' must be 'constant', 'step' or 'cosine', not 'linear'$"),
    ({"rate": {"milestones": [1, "x"]}}, r"^r\.yaml: 'rate\.milestones\.1' must be a whole number, not 'x'$"),
    ([], r"^r\.yaml: the whole must be a mapping of names to values, not \[\]$"),
    ({3: 4}, r"^r\.yaml: '3': Keys should be strings$"),
    ({"epochs": 0}, r"^r\.yaml: Epochs and batch are at least 1, not 0 and 64$"),
    ({"seed": 2**32}, r"^r\.yaml: The seed is in 0..4294967295, not 4294967296$"),
    ({"rate": {"gamma": 0}}, r"What multiplies a learning rate is above 0 and at most 1, and its floor in 0..1, not "),
    ({"rate": {"kind": "step", "milestones": [3, 2]}}, r"Milestones are epochs from 1 on, each later than the one "
                                                       r"before, not 3, 2$"),
    ({"rate": {"warm_up": -1}}, r"A learning rate warms up for 0 epochs or more, not -1$"),
    ({"epochs": 3, "rate": {"warm_up": 3}}, r"A learning rate is warm by the last of the 3 epochs, not after 3: "
                                            r"warm up for fewer$"),
    ({"loss": "l2"}, r"^r\.yaml: The loss is one of softmax_cross_entropy, square_hinge, not 'l2'$"),
    ({"device": "tpu"}, r"^r\.yaml: The device is cpu or cuda, not 'tpu'$"),
    ({"quantise": {"update": "float"}}, r"Training in fixed point needs a fixed-point update \(buffered, unbuffered "
                                        r"or narrow\): leave 'quantise' out to train in float32$"),
    ({"quantise": {"probe_steps": -1}}, r"^r\.yaml: Ranges are observed over at least 0 steps, not -1$"),
    ({"prune": {"method": {"kind": "random", "density": 0.1}, "schedule": {"start": 0, "end": 2}}},
     r"^r\.yaml: 'prune\.method\.kind' must be one of magnitude, lamp, balanced, not 'random'$"),
    ({"prune": {"method": {"density": 0.1}}},
     r"^r\.yaml: 'prune\.method\.kind' is missing: give one of magnitude, lamp, balanced$"),
    ({"prune": {"method": {"kind": "lamp", "density": 0.1, "scope": "layer"}, "schedule": {"start": 0, "end": 2}}},
     r"^r\.yaml: 'prune\.method\.scope' is no field: the fields are density, rows, kind$"),
    ({"prune": {"method": {"kind": "magnitude", "density": 0.1, "scope": "row"}, "schedule": {"start": 0, "end": 2}}},
     r"^r\.yaml: 'prune\.method\.scope' must be 'layer', 'erdos_renyi' or 'network', not 'row'$"),
    ({"prune": {"method": {"kind": "magnitude"}}}, r"^r\.yaml: 'prune\.method\.density' is missing$"),
    ({"prune": {"method": {"kind": "lamp", "density": 2}}},
     r"^r\.yaml: A density is above 0 and at most 1, and that of the network is 2\.0$"),
    ({"structure": {"seed": 2}}, r"^r\.yaml: A network starts from a part above 0 and at most 1 "
                                 r"of its units, not 2.0$"),
    ({"structure": {"growth": {"time": 3}}},
     r"^r\.yaml: 'structure\.growth\.time' is no field: the fields are times, fraction, bound, birth$"),
    ({"structure": {"growth": {}}}, r"^r\.yaml: 'structure\.growth\.times' is missing$"),
    ({"epochs": 2, "quantise": {"start": 2}}, r"Fixed point starts in one of the 2 epochs, counted from 0, not in 2: "
                                              r"leave 'quantise' out to train in float32$"),
    ({"epochs": 2, "prune": {"method": {"kind": "lamp", "density": 0.1}, "schedule": {"start": 0, "end": 1},
                             "exchange": {"start": 0, "end": 2}}},
     r": Pruning must end before the last epoch does, and epoch 2.0 of 2 leaves no time to train what lives: end it "
     r"earlier$"),
    ({"prune": {"method": {"kind": "balanced", "density": 0.1}, "schedule": {"start": 0, "end": 1},
                "exchange": {"start": 0, "end": 2}}},
     r"An exchange of weights would not stay balanced over the output blocks: prune by magnitude or LAMP to exchange$"),
    ({"epochs": 2, "prune": {"method": {"kind": "magnitude", "density": 0.1}, "schedule": {"start": 0, "end": 2}}},
     r": Pruning must end before the last epoch does, and epoch 2.0 of 2 leaves no time to train what lives: end it "
     r"earlier$"),
])
def test_fields_wrong(fields: object, sentence: str) -> None:
    with pytest.raises(EspalierError, match=sentence):
        TrainConfig.from_json(fields, "r.yaml")


def test_files_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^Configuration .*none.yaml cannot be read: .*No such file"):
        TrainConfig.load(tmp_path / "none.yaml")
    for name, text in {"a.yaml": "a: [", "date.yaml": "data: 2024-13-01", "a.toml": "= 3", "a.json": "{"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=rf"^Configuration .*{name} is not well formed: [^\n]+$"):
            TrainConfig.load(tmp_path / name)
    (tmp_path / "a.ini").write_text("")
    with pytest.raises(DataError, match=r"^A configuration is a .yaml, .toml or .json file, not 'a.ini'$"):
        TrainConfig.load(tmp_path / "a.ini")
