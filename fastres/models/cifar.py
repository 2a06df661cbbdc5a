"""The ResNeXts of the paper's CIFAR section: by cardinality, base width and widen factor.

Keys are those that CIFAR ResNeXt-29 checkpoints commonly have (``stage_1.stage_1_bottleneck_0``,
``conv_reduce``, ``conv_conv``, ``conv_expand``, ``shortcut.shortcut_conv``).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._build import Checkpoint, finish, he_initialise

__all__ = ["CifarBottleneck", "CifarResNeXt", "resnext29_8x64d", "resnext29_16x64d"]


class CifarBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 and a shortcut, ``D = cardinality * int(base_width * r)`` wide inside.

    ``r = out_channels / (widen_factor * 64)``: 1, 2 and 4 in the three stages.
    Keys: ``conv_reduce, bn_reduce, conv_conv, bn, conv_expand, bn_expand`` and, where the number of
    channels changes, ``shortcut.shortcut_conv, shortcut.shortcut_bn``.

    Args:
        in_channels, out_channels: of the block.
        stride: of the 3x3 convolution and of the shortcut.
        cardinality: groups of the 3x3 convolution.
        base_width: channels of a group in the first stage.
        widen_factor: channels of the first stage, divided by 64.

    Shapes:
        ``[N, in_channels, H, W] -> [N, out_channels, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: the shape changes and the channels do not (there is no shortcut for that), or a
            group would have no channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        cardinality: int,
        base_width: int,
        widen_factor: int,
    ) -> None:
        super().__init__()
        if stride != 1 and in_channels == out_channels:
            raise ValueError(
                f"stride: got {stride} with {in_channels} channels in and out, expected 1"
            )
        width = cardinality * int(base_width * out_channels / (widen_factor * 64))
        if width < 1:
            raise ValueError(
                f"base_width: got {base_width}, for which a group of a block of {out_channels} "
                f"channels with widen_factor {widen_factor} has none"
            )
        self.conv_reduce = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(width, width, 3, stride, 1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out_channels)
        shortcut: OrderedDict[str, nn.Module] = OrderedDict()
        if in_channels != out_channels:
            shortcut["shortcut_conv"] = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            shortcut["shortcut_bn"] = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(residual branch of x + shortcut of x)``."""
        y = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        y = F.relu(self.bn(self.conv_conv(y)), inplace=True)
        y = self.bn_expand(self.conv_expand(y))
        return F.relu(self.shortcut(x) + y, inplace=True)


class CifarResNeXt(nn.Module):
    """A 3x3 stem, three stages of :class:`CifarBottleneck`, an average pool, a linear classifier.

    Keys: ``conv_1_3x3, bn_1, stage_1 .. stage_3, classifier``. Initial values: He's normal
    distribution, and zeros for the classifier's bias.

    Args:
        cardinality: groups of the 3x3 convolutions.
        depth: 9 layers per block of each stage, and two: 29 has three blocks a stage.
        base_width: channels of a group in the first stage.
        widen_factor: channels of the stages: 64, 128 and 256 times this.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; any H and W from 1 up, and 32x32 in the paper.

    Raises:
        ValueError: ``depth`` is not 9 k + 2, or a block refuses its arguments.

    Source: section 5.3 of https://arxiv.org/abs/1611.05431.
    """

    def __init__(
        self,
        cardinality: int = 8,
        depth: int = 29,
        base_width: int = 64,
        widen_factor: int = 4,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if depth < 11 or depth % 9 != 2:
            raise ValueError(f"depth: got {depth}, expected 9 k + 2, such as 29")
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        in_channels = 64
        stages = []
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            out_channels = widen_factor * 64 * 2 ** (stage - 1)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range((depth - 2) // 9):
                blocks[f"stage_{stage}_bottleneck_{index}"] = CifarBottleneck(
                    in_channels,
                    out_channels,
                    stride if index == 0 else 1,
                    cardinality,
                    base_width,
                    widen_factor,
                )
                in_channels = out_channels
            stages.append(nn.Sequential(blocks))
        self.stage_1, self.stage_2, self.stage_3 = stages
        self.classifier = nn.Linear(in_channels, num_classes)
        he_initialise(self)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)), inplace=True)
        x = self.stage_1(x)
        x = self.stage_2(x)
        x = self.stage_3(x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def resnext29_8x64d(
    *, weights: Checkpoint | None = None, num_classes: int = 10, widen_factor: int = 4
) -> CifarResNeXt:
    """ResNeXt-29 8x64d, accelerated: 34.4 M parameters, 5.39 GMACs at 32x32.

    CIFAR-10 error in the paper: 3.65 %; CIFAR-100: 17.77 %.

    Args:
        weights: None for random weights, or the path of a checkpoint.
        num_classes: width of the classifier.
        widen_factor: channels of the first stage, divided by 64.

    Shapes:
        ``[N, 3, 32, 32] -> [N, num_classes]``.

    Source: https://arxiv.org/abs/1611.05431.
    """
    network = CifarResNeXt(8, 29, 64, widen_factor, num_classes)
    return finish(network, weights)


def resnext29_16x64d(
    *, weights: Checkpoint | None = None, num_classes: int = 10, widen_factor: int = 4
) -> CifarResNeXt:
    """ResNeXt-29 16x64d, accelerated: 68.2 M parameters, 10.69 GMACs at 32x32.

    CIFAR-10 error in the paper: 3.58 %; CIFAR-100: 17.31 %. Arguments, shapes and source: as of
    :func:`resnext29_8x64d`.
    """
    network = CifarResNeXt(16, 29, 64, widen_factor, num_classes)
    return finish(network, weights)
