"""The reference networks."""

import pytest
import torch
from torch import nn

from espalier import zoo
from espalier.errors import UnsupportedError

PARAMETERS = {"digits": 3818, "lenet5": 61_706, "cnn1x": 82_096, "cnn2x": 307_040, "cnn4x": 1_185_472}


def test_names():
    assert zoo.names() == ("digits", "lenet5", "cnn1x", "cnn2x", "cnn4x")


@pytest.mark.parametrize("name", zoo.names())
def test_logits_and_parameter_count(name):
    module = zoo.build(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[name]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert module(torch.zeros(2, *zoo.input_shape(name))).shape == (2, 10)
    assert zoo.build(name, classes=3)(torch.zeros(1, *zoo.input_shape(name))).shape == (1, 3)


@pytest.mark.parametrize("name", zoo.names())
def test_weights_are_of_the_seed_alone(name):
    torch.manual_seed(1)
    first = zoo.build(name, seed=5).state_dict()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = zoo.build(name, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = zoo.build(name, seed=6).state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("weight"))


@pytest.mark.parametrize("name", zoo.names())
def test_initial_distributions(name):
    for layer in zoo.build(name).modules():
        match layer:
            case nn.Conv2d():
                wanted = (2 / (layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1])) ** 0.5
                # three standard errors of an estimated standard deviation
                assert abs(layer.weight.std().item() / wanted - 1) < 3 / (2 * layer.weight.numel()) ** 0.5
            case nn.Linear():
                bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
                assert 0.98 * bound < layer.weight.abs().max().item() <= bound
            case _:
                continue
        assert layer.bias is None or not layer.bias.any()


def test_layers_of_cnn1x():
    module = zoo.build("cnn1x")
    assert [name for name, _ in module.named_children()] == [
        "conv1", "relu1", "conv2", "relu2", "pool1", "conv3", "relu3", "conv4", "relu4", "pool2",
        "conv5", "relu5", "conv6", "relu6", "pool3", "flatten", "fc1"]
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [
        (16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (10, 1024)]


def test_layers_of_lenet5():
    shapes = {name: tuple(parameter.shape) for name, parameter in zoo.build("lenet5").named_parameters()}
    assert shapes == {"conv1.weight": (6, 1, 5, 5), "conv1.bias": (6,), "conv2.weight": (16, 6, 5, 5),
                      "conv2.bias": (16,), "fc1.weight": (120, 400), "fc1.bias": (120,), "fc2.weight": (84, 120),
                      "fc2.bias": (84,), "fc3.weight": (10, 84), "fc3.bias": (10,)}


def test_unknown_network_wrong():
    for call in (zoo.build, zoo.input_shape):
        with pytest.raises(UnsupportedError) as error:
            call("vgg")
        assert str(error.value) == ("There is no reference network 'vgg': choose one of digits, lenet5, cnn1x, cnn2x, "
                                    "cnn4x")


def test_too_few_classes_wrong():
    with pytest.raises(UnsupportedError) as error:
        zoo.build("digits", classes=1)
    assert str(error.value) == "A network must tell at least 2 classes apart, not 1"
