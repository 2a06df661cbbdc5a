"""One layer several times: in eager PyTorch, in fastres's op, and in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fastres import _measure, ops

from .shapes import BottleneckShape, ConvShape


@dataclass(frozen=True)
class Layer:
    """Calls without arguments; ``fastres`` has one for each algorithm that the layer allows."""

    eager: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    """In float64."""
    fastres: dict[str, Callable[[], Tensor]]

    def call(self, implementation: str) -> Callable[[], Tensor]:
        """The call that one of :func:`implementations` names."""
        if implementation == "eager":
            return self.eager
        return self.fastres[implementation.removeprefix("fastres-")]

    def validate(self) -> None:
        """Fails where an op's error against float64 is more than the contract allows."""
        exact = self.exact()
        eager_error = _measure.relative_error(self.eager(), exact)
        for algorithm, call in self.fastres.items():
            error = _measure.relative_error(call(), exact)
            assert error <= _measure.error_limit(eager_error, algorithm), (
                f"{algorithm}: error {error:.2e} against float64, eager's is {eager_error:.2e}"
            )


def implementations(shape: ConvShape | BottleneckShape) -> list[str]:
    """Names of what there is to time for a layer."""
    return ["eager", *(f"fastres-{algorithm}" for algorithm in shape.algorithms)]


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

    def fused(algorithm: str) -> Callable[[], Tensor]:
        packed, shift = _pack(module.conv, module.bn, algorithm)
        return lambda: ops.conv_bn_act(
            x,
            packed,
            shift,
            residual,
            kernel_size=shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            groups=shape.groups,
            act=shape.act,
        )

    return Layer(
        eager=lambda: module(x, residual),
        exact=lambda: copy.deepcopy(module).double()(
            x.double(), None if residual is None else residual.double()
        ),
        fastres={algorithm: fused(algorithm) for algorithm in shape.algorithms},
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

    def fused(algorithm: str) -> Callable[[], Tensor]:
        packs = [_pack(module.conv1, module.bn1), _pack(module.conv2, module.bn2, algorithm)]
        packs += [_pack(module.conv3, module.bn3)]
        packs += [_pack(*module.downsample)] if module.downsample is not None else []
        arguments = [tensor for pack in packs for tensor in pack]
        return lambda: ops.grouped_bottleneck(
            x, *arguments, stride=shape.stride, groups=shape.groups
        )

    return Layer(
        eager=lambda: module(x),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
        fastres={algorithm: fused(algorithm) for algorithm in shape.algorithms},
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


def _pack(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, algorithm: str = "direct"
) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    packed = ops.pack_conv_weight(conv.weight.detach(), scale.detach(), conv.groups, algorithm)
    return packed, shift.detach()
