"""A small network for 8x8 grey digits, for tests and the demonstration."""

from collections import OrderedDict

from torch import nn


def digits_cnn(classes: int) -> nn.Sequential:
    """8C3–16C3–P–FC, with biases: 3,818 parameters for 10 classes. Input (N, 1, 8, 8)."""
    return nn.Sequential(OrderedDict([
        ("conv1", nn.Conv2d(1, 8, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(8, 16, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(16 * 4 * 4, classes)),
    ]))
