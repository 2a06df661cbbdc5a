"""One layer, three times: in eager PyTorch, in fastres's op, and in float64."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fastres import _measure, ops

from .shapes import BottleneckShape, ConvShape


class Layer(NamedTuple):
    """Calls without arguments, each on inputs of its own; ``exact`` gives the float64 result."""

    eager: Callable[[], Tensor]
    fastres: Callable[[], Tensor]
    exact: Callable[[], Tensor]

    def validate(self) -> None:
        """Fails where the op's error against float64 is more than the contract allows."""
        exact = self.exact()
        error = _measure.relative_error(self.fastres(), exact)
        eager_error = _measure.relative_error(self.eager(), exact)
        limit = _measure.error_limit(eager_error)
        assert error <= limit, f"error {error:.2e} against float64, eager's is {eager_error:.2e}"


class _ConvBNAct(nn.Module):
    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            shape.in_channels,
            shape.out_channels,
            shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            groups=shape.groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(shape.out_channels)
        self.act = nn.ReLU(inplace=True) if shape.act == "relu" else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        y = self.bn(self.conv(x))
        if residual is not None:
            y += residual
        return self.act(y)


def conv_layer(shape: ConvShape, batch: int) -> Layer:
    """Builds the layer with random weights and statistics, and inputs in channels_last."""
    torch.manual_seed(0)
    module = _randomise_statistics(_ConvBNAct(shape))
    x = _channels_last(batch, shape.in_channels, shape.height, shape.width)
    residual = None
    if shape.residual:
        residual = _channels_last(batch, shape.out_channels, shape.out_height, shape.out_width)
    packed, shift = _pack(module.conv, module.bn)
    return Layer(
        eager=lambda: module(x, residual),
        fastres=lambda: ops.conv_bn_act(
            x,
            packed,
            shift,
            residual,
            kernel_size=shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            groups=shape.groups,
            act=shape.act,
        ),
        exact=lambda: copy.deepcopy(module).double()(
            x.double(), None if residual is None else residual.double()
        ),
    )


def bottleneck_layer(shape: BottleneckShape, batch: int) -> Layer:
    """Builds the block with random weights and statistics, and its input in channels_last."""
    torch.manual_seed(0)
    down = None
    if shape.has_projection:
        down = nn.Sequential(
            nn.Conv2d(shape.in_channels, shape.out_channels, 1, stride=shape.stride, bias=False),
            nn.BatchNorm2d(shape.out_channels),
        )
    block = Bottleneck(
        shape.in_channels,
        shape.out_channels // Bottleneck.expansion,
        stride=shape.stride,
        downsample=down,
        groups=shape.groups,
        # The width that this asks for is shape.width_channels.
        base_width=64 * 4 * shape.width_channels // shape.out_channels // shape.groups,
    )
    module = _randomise_statistics(block)
    x = _channels_last(batch, shape.in_channels, shape.height, shape.width)
    packs = [_pack(module.conv1, module.bn1), _pack(module.conv2, module.bn2)]
    packs += [_pack(module.conv3, module.bn3)]
    packs += [_pack(*module.downsample)] if module.downsample is not None else []
    arguments = [tensor for pack in packs for tensor in pack]
    return Layer(
        eager=lambda: module(x),
        fastres=lambda: ops.grouped_bottleneck(
            x, *arguments, stride=shape.stride, groups=shape.groups
        ),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
    )


def _channels_last(*size: int) -> Tensor:
    return torch.randn(*size).to(memory_format=torch.channels_last)


def _randomise_statistics(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return module.eval().to(memory_format=torch.channels_last)


def _pack(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    packed = ops.pack_conv_weight(conv.weight.detach(), scale.detach(), conv.groups)
    return packed, shift.detach()
