"""CNN 1X, 2X, 4X of Venkataramanaiah et al., Automatic Compiler Based FPGA Accelerator for CNN Training, FPL 2019."""

from collections import OrderedDict

from torch import nn


def cifar_cnn(multiplier: int, classes: int) -> nn.Sequential:
    """16C3–16C3–P–32C3–32C3–P–64C3–64C3–P–FC, all widths times ``multiplier``, without biases. Input (N, 3, 32, 32).

    82,096, 307,040 and 1,185,472 parameters for 10 classes and multipliers 1, 2 and 4.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage in (1, 2, 3):
        width = 8 * 2 ** stage * multiplier
        for number in (2 * stage - 1, 2 * stage):
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * 4 * 4, classes, bias=False)
    return nn.Sequential(layers)
