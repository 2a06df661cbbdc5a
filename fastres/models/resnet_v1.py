"""ResNets as first published ("v1"): the stride on the bottleneck's first 1x1 convolution.

torchvision's, and :mod:`fastres.models.imagenet`'s, have it on the 3x3 ("v1.5"): 0.5 % better, and
12 % more operations. ResNet-18 and ResNet-34 are the same in both.
"""

from torch import nn

from ..nn import Bottleneck, NormLayer
from ._build import Checkpoint, finish
from .resnet import ResNet

__all__ = ["BottleneckV1", "resnet50_v1", "resnet101_v1", "resnet152_v1"]


class BottleneckV1(Bottleneck):
    """:class:`fastres.nn.Bottleneck` whose first convolution strides, in place of its second.

    Arguments, keys and shapes: as of :class:`fastres.nn.Bottleneck`.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__(
            inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer
        )
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


def resnet50_v1(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNet:
    """ResNet-50 v1, accelerated: 25.6 M parameters, 3.86 GMACs for a 224x224 image.

    Args:
        weights: None for random weights, or the path of a checkpoint with torchvision's keys.
        num_classes: width of the classifier.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``.

    Source: https://arxiv.org/abs/1512.03385.
    """
    return finish(ResNet(BottleneckV1, (3, 4, 6, 3), num_classes), weights)


def resnet101_v1(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNet:
    """ResNet-101 v1, accelerated: 44.5 M parameters, 7.57 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet50_v1`.
    """
    return finish(ResNet(BottleneckV1, (3, 4, 23, 3), num_classes), weights)


def resnet152_v1(*, weights: Checkpoint | None = None, num_classes: int = 1000) -> ResNet:
    """ResNet-152 v1, accelerated: 60.2 M parameters, 11.28 GMACs for a 224x224 image.

    Arguments, shapes and source: as of :func:`resnet50_v1`.
    """
    return finish(ResNet(BottleneckV1, (3, 8, 36, 3), num_classes), weights)
