"""Published networks with their weights, as torch modules, each with what its images must look like."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from espalier.errors import DataError
from espalier.zoo.initialise import initialise
from espalier.zoo.registry import build, input_shape
from espalier.zoo.squeezenet import SqueezeNet
from espalier.zoo.tflite_network import tflite_network
from espalier.zoo.weights_file import Arrays, fill, read_arrays

#: Where the weights of each network that has a name stand, under the data folder.
PLACES = {
    "resnet20": "cifar10-weights/resnet20.npz",
    "resnet56": "cifar10-weights/resnet56.npz",
    "mobilenet_v1_0.25_128": "imagenet-nets/mobilenet_v1_0.25_128.npz",
    "mobilenet_v1_1.0_224": "imagenet-nets/mobilenet_v1_1.0_224.npz",
    "mobilenet_v2_1.0_224": "imagenet-nets/mobilenet_v2_1.0_224.npz",
    "squeezenet_v1.0_deepcompressed": "imagenet-nets/squeezenet_v1.0_deepcompressed.npz",
}
RESNETS = {3: "resnet20", 9: "resnet56", 18: "resnet110"}  #: by the blocks of a stage


@dataclass(frozen=True, slots=True)
class PixelScale:
    """How a network wants its images: ``(pixel - mean) / deviation``, channel by channel.

    Parameters
    ----------
    mean, deviation : tuple of float
        Of pixels 0..255, for each channel that the network sees.
    order : tuple of int
        Which channel of an RGB image each of them is: (2, 1, 0) for BGR.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    order: tuple[int, ...] = (0, 1, 2)

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Images (N, 3, H, W) of bytes in RGB as float32."""
        channels = torch.from_numpy(np.ascontiguousarray(pixels[:, list(self.order)])).double()
        mean, deviation = (torch.tensor(numbers, dtype=torch.float64).reshape(1, -1, 1, 1)
                           for numbers in (self.mean, self.deviation))
        return ((channels - mean) / deviation).float()


#: That of ``espalier.data.normalise``.
STANDARD_SCALE = PixelScale(3 * (128.0,), 3 * (128.0,))
#: The statistics of ImageNet's pixels that torchvision gives; akamaster's ResNets use them on CIFAR-10.
RESNET_SCALE = PixelScale(tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
                          tuple(255 * deviation for deviation in (0.229, 0.224, 0.225)))
#: Caffe's: the mean pixel of ImageNet is subtracted, in the order blue, green, red.
CAFFE_SCALE = PixelScale((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), (2, 1, 0))


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """A network with published weights.

    Parameters
    ----------
    name : str
    module : nn.Module
        In float32 on the CPU, in inference mode.
    input_shape : (C, H, W)
    scale : PixelScale
        What was done to the images that it was trained on.
    first_class : int
        The output of class 0: 1 where output 0 means background.
    data : str
        The data set at hand that is closest to what it was trained on.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, int, int]
    scale: PixelScale
    first_class: int = 0
    data: str = "imagenet-sample"

    def logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Images (N, C, H, W) of bytes to the logits (N, classes), background left out, without gradients."""
        if pixels.shape[1:] != self.input_shape:
            raise DataError(f"Network {self.name!r} takes images (C, H, W) = {self.input_shape}, not "
                            f"{pixels.shape[1:]}: scale them")
        with torch.inference_mode():
            outputs: Tensor = self.module(self.scale(pixels))
            return outputs[:, self.first_class:]


def standardised(network: Pretrained) -> Pretrained:
    """A copy of ``network`` for images as ``espalier.data.normalise`` gives them, by another first convolution.

    That convolution gets a bias. Its results are the same but where it reads padding, which now means
    the pixel 128 where it meant the mean. Of 2,000 test images of CIFAR-10, ResNet-20 puts 99.2 % in the
    same class, and 91.6 % instead of 91.7 % in the right one.
    """
    if network.scale == STANDARD_SCALE:
        return network
    module = copy.deepcopy(network.module)
    old = module.get_submodule("conv1")
    assert isinstance(old, nn.Conv2d) and isinstance(old.padding, tuple), "the networks with another scale begin so"
    mean, deviation = (torch.tensor(numbers).reshape(1, -1, 1, 1)
                       for numbers in (network.scale.mean, network.scale.deviation))
    with torch.device("meta"):  # draws no random numbers
        new = nn.Conv2d(old.in_channels, old.out_channels, (old.kernel_size[0], old.kernel_size[1]), old.stride[0],
                        old.padding[0])
    with torch.no_grad():
        added = (old.weight * ((128 - mean) / deviation)).sum((1, 2, 3))
        new.bias = nn.Parameter(added if old.bias is None else old.bias + added)
        new.weight = nn.Parameter((old.weight * (128 / deviation))[:, np.argsort(network.scale.order)])
    module.set_submodule("conv1", new)
    return replace(network, module=module.eval(), scale=STANDARD_SCALE)


def without_background(network: Pretrained) -> Pretrained:
    """``network``, or where its first outputs are no classes a copy whose last layer lacks them."""
    first = network.first_class
    if not first:
        return network
    module = copy.deepcopy(network.module)
    *_, (_, last) = module.named_children()
    assert isinstance(last, nn.Conv2d) and last.bias is not None, "the networks with a background end so"
    last.weight, last.bias = nn.Parameter(last.weight[first:].detach()), nn.Parameter(last.bias[first:].detach())
    last.out_channels -= first
    return replace(network, module=module.eval(), first_class=0)


def for_classes(network: Pretrained, classes: int, seed: int) -> Pretrained:
    """``network``, or where its classes are others a copy with a new last layer, its weights drawn from ``seed``.

    Raises DataError where that layer is no ``nn.Linear``.
    """
    *_, (name, last) = network.module.named_children()
    if isinstance(last, nn.Conv2d) and last.out_channels == classes:
        return network
    if not isinstance(last, nn.Linear):
        raise DataError(f"Network {network.name!r} ends in {name!r} ({type(last).__name__}), and only an nn.Linear can "
                        f"be replaced for {classes} classes: use data with the classes it was trained on")
    if last.out_features == classes:
        return network
    module = copy.deepcopy(network.module)
    with torch.device("meta"):  # draws no random numbers
        new = nn.Linear(last.in_features, classes, last.bias is not None)
    new.to_empty(device="cpu")
    initialise(new, seed)
    module.set_submodule(name, new)
    return replace(network, module=module.eval())


def names() -> tuple[str, ...]:
    """The networks that ``load`` knows by name."""
    return tuple(PLACES)


def load(name_or_path: str, root: Path | None = None) -> Pretrained:
    """The network of that name in the data folder ``root``, or that of an ``.npz`` file, whose kind is found out.

    Raises DataError if the file is missing, damaged, not of a known network, or not as its network must be.
    """
    if name_or_path not in PLACES:
        return _of_file(Path(name_or_path))
    if root is None:
        raise DataError(f"The weights of {name_or_path!r} need the folder that holds {PLACES[name_or_path]}: give it, "
                        f"or the path of the file")
    return _of_file(root / PLACES[name_or_path])


def _of_file(path: Path) -> Pretrained:
    arrays = read_arrays(path)
    if "graph" in arrays:
        return _tflite(arrays, path)
    if "fire2/squeeze1x1.weight" in arrays:
        return _squeezenet(arrays, path)
    if "layer1.0.conv1.weight" in arrays:
        return _resnet(arrays, path)
    found = ", ".join(sorted(arrays)[:3]) or "none"
    raise DataError(f"{path} holds the weights of no known network (its first arrays are {found}): give one of "
                    f"{', '.join(names())}, or a file of their kind")


def _resnet(arrays: Arrays, path: Path) -> Pretrained:
    blocks = len({name.split(".")[1] for name in arrays if name.startswith("layer1.")})
    if blocks not in RESNETS:
        raise DataError(f"{path} must hold a ResNet of {', '.join(map(str, RESNETS))} blocks a stage, not {blocks}")
    classes = len(arrays["linear.bias"].reshape(-1)) if "linear.bias" in arrays else 0
    name = RESNETS[blocks]
    module = build(name, max(2, classes))
    fill(module, arrays, path)
    return Pretrained(name, module.eval(), input_shape(name), RESNET_SCALE, data="cifar10")


def _squeezenet(arrays: Arrays, path: Path) -> Pretrained:
    dotted = {name.replace("/", "."): array for name, array in arrays.items()}
    classes = len(dotted["conv10.bias"].reshape(-1)) if "conv10.bias" in dotted else 0
    with torch.device("meta"):
        module = SqueezeNet(max(2, classes))
    module.to_empty(device="cpu")
    fill(module, dotted, path)
    return Pretrained(path.stem, module.eval(), (3, 224, 224), CAFFE_SCALE)


def _tflite(arrays: Arrays, path: Path) -> Pretrained:
    module = tflite_network(arrays, path)
    image = module.graph.input
    _, height, width, channels = image.shape_nhwc
    mean, deviation = float(image.zero_point), 1 / image.scale
    scale = PixelScale(channels * (mean,), channels * (deviation,), tuple(range(channels)))
    return Pretrained(path.stem, module.eval(), (channels, height, width), scale, first_class=1)
