"""The reference networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from espalier.errors import UnsupportedError
from espalier.zoo.alexnet import alexnet
from espalier.zoo.cifar_cnn import cifar_cnn
from espalier.zoo.digits_cnn import digits_cnn
from espalier.zoo.initialise import initialise
from espalier.zoo.lenet import lenet5
from espalier.zoo.mobilenet import mobilenetv1
from espalier.zoo.resnet import resnet
from espalier.zoo.resnet_imagenet import ImageNetResNet
from espalier.zoo.vgg import vgg


@dataclass(frozen=True, slots=True)
class Network:
    """How to make a network, given the number of classes, and the (C, H, W) of its input."""

    make: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]


CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)

NETWORKS = {
    "digits": Network(digits_cnn, (1, 8, 8)),
    "lenet5": Network(lenet5, (1, 28, 28)),
    "cnn1x": Network(partial(cifar_cnn, 1), CIFAR),
    "cnn2x": Network(partial(cifar_cnn, 2), CIFAR),
    "cnn4x": Network(partial(cifar_cnn, 4), CIFAR),
    "alexnet": Network(alexnet, CIFAR),
    "vgg16": Network(partial(vgg, 16, False), CIFAR),
    "vgg16_bn": Network(partial(vgg, 16, True), CIFAR),
    "vgg16_bn_quarter": Network(partial(vgg, 16, True, divisor=4), CIFAR),
    "vgg19": Network(partial(vgg, 19, False), CIFAR),
    "vgg19_bn": Network(partial(vgg, 19, True), CIFAR),
    "mobilenetv1": Network(mobilenetv1, CIFAR),
    "resnet20": Network(partial(resnet, 20), CIFAR),
    "resnet56": Network(partial(resnet, 56), CIFAR),
    "resnet110": Network(partial(resnet, 110), CIFAR),
    "mobilenetv1_224": Network(partial(mobilenetv1, stride=2), IMAGENET),
    "resnet18": Network(partial(ImageNetResNet, 18), IMAGENET),
    "resnet34": Network(partial(ImageNetResNet, 34), IMAGENET),
}


def names() -> tuple[str, ...]:
    """The names that ``build`` takes."""
    return tuple(NETWORKS)


def input_shape(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images network ``name`` takes. Raises UnsupportedError for an unknown name."""
    return _network(name).input_shape


def build(name: str, classes: int = 10, seed: int = 0) -> nn.Module:
    """Network ``name`` in float32 on the CPU, with ``classes`` logits, its weights drawn from ``seed`` alone.

    torch's global random state is neither used nor changed. See ``initialise`` for the distributions.
    Raises UnsupportedError for an unknown name or less than two classes.
    """
    network = _network(name)
    if classes < 2:
        raise UnsupportedError(f"A network must tell at least 2 classes apart, not {classes}")
    with torch.device("meta"):  # layers made here draw no random numbers
        module = network.make(classes)
    module.to_empty(device="cpu")
    initialise(module, seed)
    return module


def _network(name: str) -> Network:
    if name not in NETWORKS:
        raise UnsupportedError(f"There is no reference network {name!r}: choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]
