"""ResNeXts by group count: ``resnext50(num_group=32)``, every block twice as wide inside.

torchvision's ResNeXt-50 32x4d is ``resnext50(num_group=32)`` with the same keys; this family has
the depths 18, 34 and 152 as well, and a head that pools exactly 7x7.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn import projection
from ._build import Checkpoint, finish, he_initialise

__all__ = [
    "GroupedBasicBlock",
    "GroupedBottleneck",
    "GroupedResNeXt",
    "resnext18",
    "resnext34",
    "resnext50",
    "resnext101",
    "resnext152",
]


def _check_groups(width: int, num_group: int) -> None:
    if num_group < 1 or width % num_group:
        raise ValueError(f"num_group: got {num_group}, expected a divisor of the {width} channels")


class GroupedBasicBlock(nn.Module):
    """3x3, grouped 3x3 and a shortcut.

    Keys: ``conv1, bn1, conv2, bn2`` and, with a projection, ``downsample.{0,1}``.

    Args:
        inplanes: input channels.
        planes: output channels.
        stride: of the first convolution and of the shortcut.
        downsample: the shortcut's module; None passes the input through.
        num_group: groups of the second convolution; divides ``planes``.

    Shapes:
        ``[N, inplanes, H, W] -> [N, planes, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: ``num_group`` does not divide ``planes``.
    """

    expansion: int = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        num_group: int = 32,
    ) -> None:
        super().__init__()
        _check_groups(planes, num_group)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=num_group, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual branch of x + shortcut of x)``."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        return self.relu(y)


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 and a shortcut; ``2 * planes`` channels wide inside.

    Keys: ``conv1, bn1, conv2, bn2, conv3, bn3`` and, with a projection, ``downsample.{0,1}``.

    Args:
        inplanes: input channels.
        planes: half the channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.
        downsample: the shortcut's module; None passes the input through.
        num_group: groups of the 3x3 convolution; divides ``2 * planes``.

    Shapes:
        ``[N, inplanes, H, W] -> [N, 4 * planes, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: ``num_group`` does not divide ``2 * planes``.
    """

    expansion: int = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        num_group: int = 32,
    ) -> None:
        super().__init__()
        width, outplanes = 2 * planes, self.expansion * planes
        _check_groups(width, num_group)
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=num_group, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual branch of x + shortcut of x)``."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        return self.relu(y)


class GroupedResNeXt(nn.Module):
    """A 7x7 stem, four stages of grouped blocks, a 7x7 average pool, a linear classifier.

    Keys: torchvision's. Initial values: He's normal distribution.

    Args:
        block: :class:`GroupedBasicBlock` or :class:`GroupedBottleneck`.
        layers: the number of blocks in each of the four stages, of 64, 128, 256 and 512 planes.
        num_classes: width of the classifier.
        num_group: groups of the grouped convolutions.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``, with H and W from 193 to 224: the last stage has to
        be 7x7, which the pool takes whole.

    Raises:
        ValueError: ``num_group`` does not divide the channels of the first stage.
    """

    def __init__(
        self,
        block: type[GroupedBasicBlock] | type[GroupedBottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        num_group: int = 32,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        inplanes = 64
        for planes, depth, stride in zip((64, 128, 256, 512), layers, (1, 2, 2, 2), strict=True):
            outplanes = planes * block.expansion
            blocks = []
            for block_stride in (stride, *[1] * (depth - 1)):
                downsample = None
                if block_stride != 1 or inplanes != outplanes:
                    downsample = projection(inplanes, outplanes, block_stride)
                blocks.append(block(inplanes, planes, block_stride, downsample, num_group))
                inplanes = outplanes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.fc = nn.Linear(inplanes, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnext18(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, num_group: int = 32
) -> GroupedResNeXt:
    """ResNeXt-18 by group count, accelerated: 5.6 M parameters, 0.92 GMACs at 224x224.

    Args:
        weights: None for random weights, or the path of a checkpoint.
        num_classes: width of the classifier.
        num_group: groups of the grouped convolutions (figures: of 32).

    Shapes:
        ``[N, 3, 224, 224] -> [N, num_classes]``.

    Raises:
        ValueError: ``num_group`` does not divide the channels.

    Source: https://arxiv.org/abs/1611.05431.
    """
    network = GroupedResNeXt(GroupedBasicBlock, (2, 2, 2, 2), num_classes, num_group)
    return finish(network, weights)


def resnext34(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, num_group: int = 32
) -> GroupedResNeXt:
    """ResNeXt-34 by group count, accelerated: 10.8 M parameters, 1.87 GMACs at 224x224.

    Arguments, shapes and source: as of :func:`resnext18`.
    """
    network = GroupedResNeXt(GroupedBasicBlock, (3, 4, 6, 3), num_classes, num_group)
    return finish(network, weights)


def resnext50(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, num_group: int = 32
) -> GroupedResNeXt:
    """ResNeXt-50 by group count, accelerated: 25.0 M parameters, 4.23 GMACs at 224x224.

    Arguments, shapes and source: as of :func:`resnext18`.
    """
    network = GroupedResNeXt(GroupedBottleneck, (3, 4, 6, 3), num_classes, num_group)
    return finish(network, weights)


def resnext101(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, num_group: int = 32
) -> GroupedResNeXt:
    """ResNeXt-101 by group count, accelerated: 44.2 M parameters, 7.97 GMACs at 224x224.

    Arguments, shapes and source: as of :func:`resnext18`.
    """
    network = GroupedResNeXt(GroupedBottleneck, (3, 4, 23, 3), num_classes, num_group)
    return finish(network, weights)


def resnext152(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, num_group: int = 32
) -> GroupedResNeXt:
    """ResNeXt-152 by group count, accelerated: 60.0 M parameters, 11.71 GMACs at 224x224.

    Arguments, shapes and source: as of :func:`resnext18`.
    """
    network = GroupedResNeXt(GroupedBottleneck, (3, 8, 36, 3), num_classes, num_group)
    return finish(network, weights)
