"""MobileNetV1 (Howard et al., MobileNets, arXiv 1704.04861), also for 32x32 colour images."""

from collections import OrderedDict

from torch import nn

#: Of each depthwise separable block: output channels and the stride of its depthwise convolution.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))


def mobilenetv1(classes: int, stride: int = 1) -> nn.Sequential:
    """A convolution and 13 depthwise separable blocks with batch norm, the mean, a linear layer.

    The layers and parameters of the paper's table 1 for images (N, 3, 224, 224), with a first ``stride`` of 2; the
    form for CIFAR's (N, 3, 32, 32) has 1 there, so that the last map is 2×2. 3,217,226 parameters for 10 classes;
    4,231,976 for 1000, the paper's 4.2 M.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    modules.update(_normalised("conv1", nn.Conv2d(3, 32, 3, stride, padding=1, bias=False)))
    channels = 32
    for number, (width, stride) in enumerate(BLOCKS, start=2):
        depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        modules.update(_normalised(f"depthwise{number}", depthwise))
        modules.update(_normalised(f"pointwise{number}", nn.Conv2d(channels, width, 1, bias=False)))
        channels = width
    modules["mean"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc1"] = nn.Linear(channels, classes)
    return nn.Sequential(modules)


def _normalised(name: str, convolution: nn.Conv2d) -> dict[str, nn.Module]:
    return {name: convolution, f"{name}_bn": nn.BatchNorm2d(convolution.out_channels), f"{name}_relu": nn.ReLU()}
