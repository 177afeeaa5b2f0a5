"""VGG-16 and VGG-19 for 32x32 colour images (after Simonyan and Zisserman, ICLR 2015, configurations D and E)."""

from collections import OrderedDict

from torch import nn

WIDTHS = (64, 128, 256, 512, 512)  #: output channels of the convolutions of each stage
DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  #: convolutions of each stage, by the layers with weights


def vgg(layers: int, batch_norm: bool, classes: int, divisor: int = 1) -> nn.Sequential:
    """3×3 convolutions with biases, a pooling after each of the five stages, one linear layer. Input (N, 3, 32, 32).

    The convolutions are the paper's: 14,714,688 parameters for 16 layers, 20,024,384 for 19 (as Keras lists
    VGG16 and VGG19 without their top). The usual CIFAR form has one linear layer of 512 inputs for the
    paper's three. 14,719,818 and 20,029,514 parameters for 10 classes; with ``batch_norm``, a batch norm
    after each convolution, 14,728,266 and 20,040,522: the 20.04 M of VGG-19 in Liu et al., Network
    Slimming, ICCV 2017.

    Parameters
    ----------
    layers : int
        16 or 19.
    divisor : int
        Of the paper's channels, for machines on which all of them take too long; divides 64.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (whole, depth) in enumerate(zip(WIDTHS, DEPTHS[layers], strict=True), start=1):
        width = whole // divisor
        for number in range(1, depth + 1):
            modules[f"conv{stage}_{number}"] = nn.Conv2d(channels, width, 3, padding=1)
            if batch_norm:
                modules[f"bn{stage}_{number}"] = nn.BatchNorm2d(width)
            modules[f"relu{stage}_{number}"] = nn.ReLU()
            channels = width
        modules[f"pool{stage}"] = nn.MaxPool2d(2)
    modules["flatten"] = nn.Flatten()
    modules["fc1"] = nn.Linear(channels, classes)
    return nn.Sequential(modules)
