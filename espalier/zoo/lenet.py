"""LeNet-5 with ReLU and max pooling, for 28x28 grey images (after LeCun et al., Proc. IEEE 1998)."""

from collections import OrderedDict

from torch import nn


def lenet5(classes: int) -> nn.Sequential:
    """6C5 (pad 2)–P–16C5–P–FC120–FC84–FC, with biases: 61,706 parameters for 10 classes. Input (N, 1, 28, 28)."""
    return nn.Sequential(OrderedDict([
        ("conv1", nn.Conv2d(1, 6, 5, padding=2)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 16, 5)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(16 * 5 * 5, 120)),
        ("relu3", nn.ReLU()),
        ("fc2", nn.Linear(120, 84)),
        ("relu4", nn.ReLU()),
        ("fc3", nn.Linear(84, classes)),
    ]))
