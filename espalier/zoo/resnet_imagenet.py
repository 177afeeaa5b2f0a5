"""ResNet-18 and 34 for 224x224 colour images (He et al., CVPR 2016, table 1; shortcuts are projections, option B)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from espalier.zoo.resnet import LastNorm

WIDTHS = (64, 128, 256, 512)  #: channels of the four stages
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class ProjectedBlock(nn.Module):
    """Two 3×3 convolutions, each with batch norm, and around them the input, or where the size changes a projection."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = LastNorm(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                                            nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class ImageNetResNet(nn.Module):
    """A 7×7 convolution, a pool, four stages, the mean, a linear layer. Input (N, 3, 224, 224).

    Its ``state_dict`` has the names of torchvision's, and for 1000 classes its 11,689,512 (18 layers) and 21,797,672
    (34 layers) parameters.
    """

    def __init__(self, layers: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        one, two, three, four = BLOCKS[layers]
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], one, 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], two, 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], three, 2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], four, 2)
        self.fc = nn.Linear(WIDTHS[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (N, classes)."""
        first = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        stages = self.layer4(self.layer3(self.layer2(self.layer1(first))))
        logits: Tensor = self.fc(stages.mean((2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ProjectedBlock(in_channels, channels, stride),
                         *(ProjectedBlock(channels, channels, 1) for _ in range(blocks - 1)))
