"""torchvision's ResNet: the same signature, keys and initial values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn import BasicBlock, Bottleneck, NormLayer, projection
from ._build import he_initialise

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear classifier.

    The constructors below return it accelerated. For a network of your own:
    ``fastres.accelerate(ResNet(Bottleneck, [3, 8, 4, 3]))``.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``, or a class with their signature and ``expansion``.
        layers: the number of blocks in each of the four stages.
        num_classes: width of the classifier.
        zero_init_residual: start the last BatchNorm of every block at zero, so that every block
            starts as the identity (https://arxiv.org/abs/1706.02677, +0.2 to 0.3 % top-1).
        groups, width_per_group: of the blocks' 3x3 convolutions.
        replace_stride_with_dilation: for stages 2, 3 and 4, whether to dilate where the stage
            would stride (for dense prediction); None is ``[False, False, False]``.
        norm_layer: ``channels -> module``; None is ``nn.BatchNorm2d``.

    Shapes:
        ``[N, 3, H, W] -> [N, num_classes]``; any H and W from 1 up.

    Raises:
        ValueError: ``replace_stride_with_dilation`` has not three elements, or the block refuses
            its arguments.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        dilate = replace_stride_with_dilation or (False, False, False)
        if len(dilate) != 3:
            raise ValueError(
                f"replace_stride_with_dilation: got {dilate}, expected None or three booleans, "
                "for stages 2, 3 and 4"
            )
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.groups = groups
        self.base_width = width_per_group
        # The state of the construction; detection code reads `inplanes` off a finished backbone.
        self.inplanes = 64
        self.dilation = 1
        self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_stage(block, 64, layers[0], stride=1, dilate=False)
        self.layer2 = self._make_stage(block, 128, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._make_stage(block, 256, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._make_stage(block, 512, layers[3], stride=2, dilate=dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        _initialise(self, zero_init_residual)

    def _make_stage(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        planes: int,
        depth: int,
        stride: int,
        dilate: bool,
    ) -> nn.Sequential:
        """``depth`` blocks, of which the first strides, or else the following ones dilate."""
        dilation = self.dilation
        if dilate:
            self.dilation, stride = self.dilation * stride, 1
        outplanes = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outplanes:
            downsample = projection(self.inplanes, outplanes, stride, self._norm_layer)
        blocks = []
        for _ in range(depth):
            blocks.append(
                block(
                    self.inplanes,
                    planes,
                    stride,
                    downsample,
                    self.groups,
                    self.base_width,
                    dilation,
                    self._norm_layer,
                )
            )
            self.inplanes, stride, downsample, dilation = outplanes, 1, None, self.dilation
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, H, W]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _initialise(model: nn.Module, zero_init_residual: bool) -> None:
    """Goes through the modules in torchvision's order, so that one seed gives one network."""
    he_initialise(model)
    if not zero_init_residual:
        return
    for module in model.modules():
        if isinstance(module, Bottleneck):
            _zero_weight(module.bn3)
        elif isinstance(module, BasicBlock):
            _zero_weight(module.bn2)


def _zero_weight(norm: nn.Module) -> None:
    weight = getattr(norm, "weight", None)
    if weight is not None:
        nn.init.zeros_(weight)
