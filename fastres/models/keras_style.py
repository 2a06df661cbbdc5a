"""ResNeXts with the conventions of Keras, in PyTorch.

Explicit zero padding before the 7x7 stem and the max-pool, biases in the convolutions, BatchNorm
with epsilon 1.001e-5, and probabilities, not logits, at the end. Modules are called as Keras
Applications calls its layers. Where a Keras model runs one convolution per group and concatenates
them, this has one grouped convolution, which is the same function;
:func:`fastres.convert.from_keras` turns the weights of the one into those of the other.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._build import Checkpoint, finish, he_initialise

__all__ = ["KerasBlock", "KerasResNeXt", "keras_resnext50", "keras_resnext101"]

#: Of ``keras.layers.BatchNormalization`` in Keras Applications.
EPSILON = 1.001e-5
#: PyTorch's momentum is one minus Keras's, which is 0.99.
MOMENTUM = 0.01


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


class KerasBlock(nn.Module):
    """1x1, grouped 3x3, 1x1, each with a bias and BatchNorm, and a shortcut.

    Keys: ``{1,2,3}_conv, {1,2,3}_bn`` under their names in Keras, and ``0_conv, 0_bn`` for the
    shortcut of a stage's first block.

    Args:
        in_channels: of the input.
        filters: channels of the 3x3 convolution; the output has twice as many.
        stride: of the 3x3 convolution and of the shortcut.
        groups: of the 3x3 convolution; divides ``filters``.
        conv_shortcut: whether the shortcut is a convolution or the input itself.

    Shapes:
        ``[N, in_channels, H, W] -> [N, 2 * filters, ceil(H/stride), ceil(W/stride)]``.

    Raises:
        ValueError: ``groups`` does not divide ``filters``, or a shortcut without convolution would
            have to change the shape.
    """

    def __init__(
        self, in_channels: int, filters: int, stride: int, groups: int, conv_shortcut: bool
    ) -> None:
        super().__init__()
        if groups < 1 or filters % groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of {filters} filters")
        if not conv_shortcut and (stride != 1 or in_channels != 2 * filters):
            raise ValueError(
                f"conv_shortcut: got False with stride={stride} and {in_channels} -> {2 * filters} "
                "channels, expected True where the shape changes"
            )
        self.shortcut = nn.Sequential()
        if conv_shortcut:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    {
                        "0_conv": nn.Conv2d(in_channels, 2 * filters, 1, stride),
                        "0_bn": _norm(2 * filters),
                    }
                )
            )
        self.residual = nn.Sequential(
            OrderedDict(
                {
                    "1_conv": nn.Conv2d(in_channels, filters, 1),
                    "1_bn": _norm(filters),
                    "1_relu": nn.ReLU(inplace=True),
                    "2_pad": nn.ZeroPad2d(1),
                    "2_conv": nn.Conv2d(filters, filters, 3, stride, groups=groups),
                    "2_bn": _norm(filters),
                    "2_relu": nn.ReLU(inplace=True),
                    "3_conv": nn.Conv2d(filters, 2 * filters, 1),
                    "3_bn": _norm(2 * filters),
                }
            )
        )
        self.out = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``relu(shortcut of x + residual branch of x)``."""
        return self.out(self.shortcut(x) + self.residual(x))


class KerasResNeXt(nn.Module):
    """A padded 7x7 stem, four stages of :class:`KerasBlock`, a softmax classifier.

    Args:
        layers: the number of blocks in each of the four stages, of 128, 256, 512 and 1024 filters.
        groups: of the 3x3 convolutions.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``, probabilities; any H and W from 1 up.

    Raises:
        ValueError: ``groups`` does not divide 128.
    """

    def __init__(self, layers: Sequence[int], groups: int = 32, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1_pad = nn.ZeroPad2d(3)
        self.conv1_conv = nn.Conv2d(3, 64, 7, 2)
        self.conv1_bn = _norm(64)
        self.conv1_relu = nn.ReLU(inplace=True)
        self.pool1_pad = nn.ZeroPad2d(1)
        self.pool1_pool = nn.MaxPool2d(3, 2)
        channels = 64
        stages = []
        for filters, depth, stride in zip((128, 256, 512, 1024), layers, (1, 2, 2, 2), strict=True):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                first = index == 0
                blocks[f"block{index + 1}"] = KerasBlock(
                    channels, filters, stride if first else 1, groups, conv_shortcut=first
                )
                channels = 2 * filters
            stages.append(nn.Sequential(blocks))
        self.conv2, self.conv3, self.conv4, self.conv5 = stages
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.predictions = nn.Linear(channels, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.conv1_relu(self.conv1_bn(self.conv1_conv(self.conv1_pad(x))))
        x = self.pool1_pool(self.pool1_pad(x))
        x = self.conv2(x)
        x = self.conv3(x)
        x = self.conv4(x)
        x = self.conv5(x)
        return torch.softmax(self.predictions(torch.flatten(self.avg_pool(x), 1)), 1)


def keras_resnext50(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, groups: int = 32
) -> KerasResNeXt:
    """ResNeXt-50 with Keras's conventions, accelerated: 25.1 M parameters, 4.23 GMACs at 224x224.

    It returns probabilities: train it with ``nll_loss`` of their logarithm.

    Args:
        weights: None for random weights, or the path of a checkpoint of this network.
        num_classes: width of the classifier.
        groups: of the 3x3 convolutions (figures: of 32).

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``.

    Raises:
        ValueError: ``groups`` does not divide 128.

    Source: https://arxiv.org/abs/1611.05431.
    """
    return finish(KerasResNeXt((3, 4, 6, 3), groups, num_classes), weights)


def keras_resnext101(
    *, weights: Checkpoint | None = None, num_classes: int = 1000, groups: int = 32
) -> KerasResNeXt:
    """ResNeXt-101 with Keras's conventions, accelerated: 44.2 M parameters, 7.97 GMACs at 224x224.

    Arguments, shapes, errors and source: as of :func:`keras_resnext50`.
    """
    return finish(KerasResNeXt((3, 4, 23, 3), groups, num_classes), weights)
