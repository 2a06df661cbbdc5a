"""Pre-activation ResNets ("v2"): BatchNorm and ReLU before each convolution, nothing after the sum.

The block that changes the shape projects what it has normalised (https://arxiv.org/abs/1603.05027,
appendix); the others pass their input through untouched from the stem to the last BatchNorm.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._build import Checkpoint, finish, he_initialise

__all__ = [
    "PreActBasicBlock",
    "PreActBottleneck",
    "ResNetV2",
    "resnet18_v2",
    "resnet34_v2",
    "resnet50_v2",
    "resnet101_v2",
    "resnet152_v2",
]


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class PreActBasicBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, and a shortcut.

    Keys: ``bn1, conv1, bn2, conv2`` and, where the shape changes, ``downsample``.

    Args:
        inplanes: input channels.
        planes: output channels.
        stride: of the first convolution and of the shortcut.

    Shapes:
        ``[N, inplanes, H, W] -> [N, planes, ceil(H/stride), ceil(W/stride)]``.
    """

    expansion: int = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``residual branch of x + shortcut of x``."""
        y = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.relu(self.bn2(self.conv1(y)))
        return self.conv2(y) + shortcut


class PreActBottleneck(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, and a shortcut; the stride is on the 3x3.

    Keys: ``bn1, conv1, bn2, conv2, bn3, conv3`` and, where the shape changes, ``downsample``.

    Args:
        inplanes: input channels.
        planes: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.

    Shapes:
        ``[N, inplanes, H, W] -> [N, 4 * planes, ceil(H/stride), ceil(W/stride)]``.
    """

    expansion: int = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inplanes, outplanes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``residual branch of x + shortcut of x``."""
        y = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.relu(self.bn2(self.conv1(y)))
        y = self.relu(self.bn3(self.conv2(y)))
        return self.conv3(y) + shortcut


class ResNetV2(nn.Module):
    """A 7x7 stem, four stages of pre-activation blocks, BatchNorm, ReLU, a linear classifier.

    Keys: ``conv1, layer1 .. layer4, bn, fc``. Initial values: He's normal distribution.

    Args:
        block: :class:`PreActBasicBlock` or :class:`PreActBottleneck`.
        layers: the number of blocks in each of the four stages, of 64, 128, 256 and 512 planes.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; any H and W from 1 up.
    """

    def __init__(
        self,
        block: type[PreActBasicBlock] | type[PreActBottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inplanes = 64
        stages = []
        for planes, depth, stride in zip((64, 128, 256, 512), layers, (1, 2, 2, 2), strict=True):
            blocks = []
            for block_stride in (stride, *[1] * (depth - 1)):
                blocks.append(block(inplanes, planes, block_stride))
                inplanes = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn = nn.BatchNorm2d(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inplanes, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.maxpool(self.conv1(x))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.relu(self.bn(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18_v2(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNetV2:
    """ResNet-18 v2, accelerated: 11.7 M parameters, 1.81 GMACs for a 224x224 image.

    Args:
        weights: None for random weights, or the path of a checkpoint.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``.

    Source: https://arxiv.org/abs/1603.05027.
    """
    return finish(ResNetV2(PreActBasicBlock, (2, 2, 2, 2), num_classes), weights)


def resnet34_v2(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNetV2:
    """ResNet-34 v2, accelerated: 21.8 M parameters, 3.66 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet18_v2`.
    """
    return finish(ResNetV2(PreActBasicBlock, (3, 4, 6, 3), num_classes), weights)


def resnet50_v2(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNetV2:
    """ResNet-50 v2, accelerated: 25.5 M parameters, 4.09 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet18_v2`.
    """
    return finish(ResNetV2(PreActBottleneck, (3, 4, 6, 3), num_classes), weights)


def resnet101_v2(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNetV2:
    """ResNet-101 v2, accelerated: 44.5 M parameters, 7.80 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet18_v2`.
    """
    return finish(ResNetV2(PreActBottleneck, (3, 4, 23, 3), num_classes), weights)


def resnet152_v2(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNetV2:
    """ResNet-152 v2, accelerated: 60.2 M parameters, 11.51 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet18_v2`.
    """
    return finish(ResNetV2(PreActBottleneck, (3, 8, 36, 3), num_classes), weights)
