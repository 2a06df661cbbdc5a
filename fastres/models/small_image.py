"""ResNets for small images, 32 to 128 pixels: a 3x3 stem of stride 1 and no max-pooling.

Keys are those of the many CIFAR networks that write a block as two ``Sequential`` called
``residual_function`` and ``shortcut``: their checkpoints load.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._build import Checkpoint, finish

__all__ = [
    "SmallBasicBlock",
    "SmallBottleneck",
    "SmallResNet",
    "small_resnet18",
    "small_resnet34",
    "small_resnet50",
    "small_resnet101",
    "small_resnet152",
]


def _conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> list[nn.Module]:
    padding = kernel_size // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Empty, and so the identity, where the shape stays; else a strided 1x1 and BatchNorm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(*_conv_bn(in_channels, out_channels, 1, stride))


class SmallBasicBlock(nn.Module):
    """Two 3x3 convolutions; the stride stands on the first.

    Keys: ``residual_function.{0,1,3,4}`` and, where the shape changes, ``shortcut.{0,1}``.

    Args:
        in_channels: of the input.
        planes: channels of the output.
        stride: of the first convolution and of the shortcut.

    Shapes:
        ``[N, in_channels, H, W] -> [N, planes, ceil(H/stride), ceil(W/stride)]``.
    """

    expansion: int = 1

    def __init__(self, in_channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            *_conv_bn(in_channels, planes, 3, stride),
            nn.ReLU(inplace=True),
            *_conv_bn(planes, planes, 3),
        )
        self.shortcut = _shortcut(in_channels, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual_function(x) + shortcut(x))``."""
        return F.relu(self.residual_function(x) + self.shortcut(x), inplace=True)


class SmallBottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride stands on the 3x3.

    Keys: ``residual_function.{0,1,3,4,6,7}`` and, where the shape changes, ``shortcut.{0,1}``.

    Args:
        in_channels: of the input.
        planes: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution and of the shortcut.

    Shapes:
        ``[N, in_channels, H, W] -> [N, 4 * planes, ceil(H/stride), ceil(W/stride)]``.
    """

    expansion: int = 4

    def __init__(self, in_channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.residual_function = nn.Sequential(
            *_conv_bn(in_channels, planes, 1),
            nn.ReLU(inplace=True),
            *_conv_bn(planes, planes, 3, stride),
            nn.ReLU(inplace=True),
            *_conv_bn(planes, out_channels, 1),
        )
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual_function(x) + shortcut(x))``."""
        return F.relu(self.residual_function(x) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """A 3x3 stem at full resolution, four stages of residual blocks, a linear classifier.

    Keys: ``conv1.{0,1}, conv2_x .. conv5_x, fc``; initial values are PyTorch's defaults.

    Args:
        block: :class:`SmallBasicBlock` or :class:`SmallBottleneck`.
        layers: the number of blocks in each of the four stages, of 64, 128, 256 and 512 planes.
        num_classes: width of the classifier; 2 for cats and dogs.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; any H and W from 1 up. Stages run at H, H/2, H/4 and
        H/8: 96x96 ends at 12x12.
    """

    def __init__(
        self,
        block: type[SmallBasicBlock] | type[SmallBottleneck],
        layers: Sequence[int],
        num_classes: int = 100,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_bn(3, 64, 3), nn.ReLU(inplace=True))
        stages = []
        in_channels = 64
        for planes, depth, stride in zip((64, 128, 256, 512), layers, (1, 2, 2, 2), strict=True):
            blocks = []
            for block_stride in (stride, *[1] * (depth - 1)):
                blocks.append(block(in_channels, planes, block_stride))
                in_channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.conv2_x, self.conv3_x, self.conv4_x, self.conv5_x = stages
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.conv1(x)
        x = self.conv2_x(x)
        x = self.conv3_x(x)
        x = self.conv4_x(x)
        x = self.conv5_x(x)
        return self.fc(torch.flatten(self.avg_pool(x), 1))


def small_resnet18(*, weights: Checkpoint | None = None, num_classes: int = 100) -> SmallResNet:
    """Small-image ResNet-18, accelerated: 11.2 M parameters, 0.555 GMACs at 32x32.

    Args:
        weights: None for random weights, or the path of a checkpoint.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``.

    Source: https://arxiv.org/abs/1512.03385, with the stem of its CIFAR networks (section 4.2).
    """
    return finish(SmallResNet(SmallBasicBlock, (2, 2, 2, 2), num_classes), weights)


def small_resnet34(*, weights: Checkpoint | None = None, num_classes: int = 100) -> SmallResNet:
    """Small-image ResNet-34, accelerated: 21.3 M parameters, 1.159 GMACs at 32x32.

    Arguments, shapes and source: as of :func:`small_resnet18`.
    """
    return finish(SmallResNet(SmallBasicBlock, (3, 4, 6, 3), num_classes), weights)


def small_resnet50(*, weights: Checkpoint | None = None, num_classes: int = 100) -> SmallResNet:
    """Small-image ResNet-50, accelerated: 23.7 M parameters, 1.298 GMACs at 32x32.

    Arguments, shapes and source: as of :func:`small_resnet18`.
    """
    return finish(SmallResNet(SmallBottleneck, (3, 4, 6, 3), num_classes), weights)


def small_resnet101(*, weights: Checkpoint | None = None, num_classes: int = 100) -> SmallResNet:
    """Small-image ResNet-101, accelerated: 42.7 M parameters, 2.510 GMACs at 32x32.

    Arguments, shapes and source: as of :func:`small_resnet18`.
    """
    return finish(SmallResNet(SmallBottleneck, (3, 4, 23, 3), num_classes), weights)


def small_resnet152(*, weights: Checkpoint | None = None, num_classes: int = 100) -> SmallResNet:
    """Small-image ResNet-152, accelerated: 58.3 M parameters, 3.722 GMACs at 32x32.

    Arguments, shapes and source: as of :func:`small_resnet18`.
    """
    return finish(SmallResNet(SmallBottleneck, (3, 8, 36, 3), num_classes), weights)
