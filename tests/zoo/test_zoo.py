"""The reference networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from espalier import zoo
from espalier.errors import UnsupportedError
from espalier.zoo.mobilenet import mobilenetv1
from espalier.zoo.resnet import Block, LastNorm
from espalier.zoo.resnet_imagenet import ImageNetResNet
from espalier.zoo.vgg import vgg

PARAMETERS = {"digits": 3818, "lenet5": 61_706, "cnn1x": 82_096, "cnn2x": 307_040, "cnn4x": 1_185_472,
              "alexnet": 2_472_266, "vgg16": 14_719_818, "vgg16_bn": 14_728_266,
              "vgg16_bn_quarter": 924_186, "vgg19": 20_029_514, "vgg19_bn": 20_040_522, "mobilenetv1": 3_217_226,
              "resnet20": 269_722, "resnet56": 853_018, "resnet110": 1_727_962,
              "mobilenetv1_224": 3_217_226, "resnet18": 11_181_642, "resnet34": 21_289_802}
SMALL = tuple(name for name, count in PARAMETERS.items() if count < 1_000_000)


def trained_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_names():
    assert zoo.names() == tuple(PARAMETERS)


@pytest.mark.parametrize("name", zoo.names())
def test_logits_and_parameter_count(name):
    module = zoo.build(name)
    assert trained_parameters(module) == PARAMETERS[name]
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert module(torch.zeros(2, *zoo.input_shape(name))).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_number_of_classes(name):
    assert zoo.build(name, classes=3).eval()(torch.zeros(1, *zoo.input_shape(name))).shape == (1, 3)


@pytest.mark.parametrize("name", SMALL)
def test_weights_are_of_the_seed_alone(name):
    torch.manual_seed(1)
    first = zoo.build(name, seed=5).state_dict()
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = zoo.build(name, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = zoo.build(name, seed=6).state_dict()
    drawn = {key for key, weight in zoo.build(name).named_parameters() if weight.ndim > 1 and weight.requires_grad}
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", (*SMALL, "mobilenetv1", "cnn4x", "alexnet"))
def test_initial_distributions(name):
    for layer in zoo.build(name).modules():
        match layer:
            case nn.Conv2d() if layer.weight.requires_grad:
                wanted = (2 / layer.weight[0].numel()) ** 0.5
                # four standard errors of an estimated standard deviation: there are some hundred layers
                assert abs(layer.weight.std().item() / wanted - 1) < 4 / (2 * layer.weight.numel()) ** 0.5
            case nn.Linear():
                bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
                assert 0.98 * bound < layer.weight.abs().max().item() <= bound
            case nn.BatchNorm2d():
                scale = 0 if isinstance(layer, LastNorm) else 1
                for numbers, wanted in ((layer.weight, scale), (layer.running_var, 1), (layer.running_mean, 0)):
                    assert (numbers == wanted).all()
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


@pytest.mark.parametrize(("layers", "top"), [(16, 14_714_688), (19, 20_024_384)])
def test_convolutions_of_vgg_are_the_published_ones(layers, top):
    with torch.device("meta"):
        module = vgg(layers, False, 10)
    assert trained_parameters(module) - trained_parameters(module.fc1) == top
    assert len([layer for layer in module if isinstance(layer, nn.Conv2d)]) == layers - 3


def test_a_quarter_of_vgg_has_a_quarter_of_its_channels():
    whole, quarter = (zoo.build(name) for name in ("vgg16_bn", "vgg16_bn_quarter"))
    layers = [(a, b) for a, b in zip(whole, quarter, strict=True) if isinstance(a, nn.Conv2d)]
    assert len(layers) == 13 and all(a.out_channels == 4 * b.out_channels for a, b in layers)
    assert (quarter.conv1_1.in_channels, quarter.fc1.in_features, quarter.fc1.out_features) == (3, 128, 10)


def test_mobilenet_of_imagenet_has_the_published_parameters():
    with torch.device("meta"):
        assert trained_parameters(mobilenetv1(1000)) == 4_231_976


@pytest.mark.parametrize(("layers", "count"), [(18, 11_689_512), (34, 21_797_672)])
def test_resnets_of_imagenet_have_the_published_parameters(layers, count):
    with torch.device("meta"):
        assert trained_parameters(ImageNetResNet(layers, 1000)) == count


def test_shortcut_is_option_a():
    block = zoo.build("resnet20").layer2[0]
    assert not block.shortcut.weight.requires_grad and block.shortcut.weight.sum() == 16
    x = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block.shortcut(x), functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))


def test_shortcut_within_a_stage_is_the_identity():
    assert isinstance(Block(16, 16).shortcut, nn.Identity)


def test_residual_blocks_start_as_their_shortcuts():
    network = zoo.build("resnet20").eval()
    x = torch.rand(2, 16, 32, 32)
    assert torch.equal(network.layer1(x), x)
    assert torch.equal(network.layer2(x), network.layer2[0].shortcut(x))


def test_layers_of_resnet20():
    module = zoo.build("resnet20")
    assert [layer.stride for layer in module.modules() if isinstance(layer, nn.Conv2d)].count((2, 2)) == 4
    assert [name for name, weight in module.named_parameters() if not weight.requires_grad] == [
        "layer2.0.shortcut.weight", "layer3.0.shortcut.weight"]
    assert len([layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
                and layer.weight.requires_grad]) == 20


def test_unknown_network_wrong():
    for call in (zoo.build, zoo.input_shape):
        with pytest.raises(UnsupportedError) as error:
            call("vgg")
        assert str(error.value) == ("There is no reference network 'vgg': choose one of digits, lenet5, cnn1x, cnn2x, "
                                    "cnn4x, alexnet, vgg16, vgg16_bn, vgg16_bn_quarter, vgg19, vgg19_bn, "
                                    "mobilenetv1, resnet20, resnet56, resnet110, mobilenetv1_224, resnet18, "
                                    "resnet34")


def test_too_few_classes_wrong():
    with pytest.raises(UnsupportedError) as error:
        zoo.build("digits", classes=1)
    assert str(error.value) == "A network must tell at least 2 classes apart, not 1"
