"""AlexNet for 32x32 colour images (after Krizhevsky et al., NeurIPS 2012)."""

from collections import OrderedDict

from torch import nn


def alexnet(classes: int) -> nn.Sequential:
    """64C11 (stride 4)–P–192C5–P–384C3–256C3–256C3–P–FC, with biases. Input (N, 3, 32, 32).

    The usual CIFAR form: the five convolutions of the one-column network (Krizhevsky, arXiv 1404.5997) with
    poolings of 2×2, and one linear layer for its three. 2,472,266 parameters for 10 classes, the 2.47 M
    in the table of results of github.com/bearpaw/pytorch-classification.
    """
    return nn.Sequential(OrderedDict([
        ("conv1", nn.Conv2d(3, 64, 11, stride=4, padding=5)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(64, 192, 5, padding=2)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("conv3", nn.Conv2d(192, 384, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 256, 3, padding=1)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(256, 256, 3, padding=1)),
        ("relu5", nn.ReLU()),
        ("pool3", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        ("fc1", nn.Linear(256, classes)),
    ]))
