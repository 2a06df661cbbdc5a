"""One layer several times: in eager PyTorch, in fastres's op, and in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from fastres import _measure, ops

from .shapes import BottleneckShape, ConvShape, HeadShape, PoolShape


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


def implementations(shape: ConvShape | BottleneckShape | PoolShape | HeadShape) -> list[str]:
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


def conv_layer(shape: ConvShape, batch: int, *, live: bool = False) -> Layer:
    """Builds the layer with random weights and statistics, and inputs in channels_last.

    Args:
        shape: of the layer.
        batch: images.
        live: whether the op takes the weight as it is, and not packed.
    """
    torch.manual_seed(0)
    module = _randomise_statistics(_ConvBNAct(shape))
    x = _channels_last(batch, shape.in_channels, shape.height, shape.width)
    residual = None
    if shape.residual:
        residual = _channels_last(batch, shape.out_channels, shape.out_height, shape.out_width)

    def fused(algorithm: str) -> Callable[[], Tensor]:
        if live:
            op = partial(ops.live_conv_bn_act, x, *_unpacked(module.conv, module.bn), residual)
            op = partial(op, algorithm=algorithm)
        else:
            packed, shift = _pack(module.conv, module.bn, algorithm)
            op = partial(ops.conv_bn_act, x, packed, shift, residual, kernel_size=shape.kernel)
        return partial(
            op, stride=shape.stride, padding=shape.padding, groups=shape.groups, act=shape.act
        )

    return Layer(
        eager=lambda: module(x, residual),
        exact=lambda: copy.deepcopy(module).double()(
            x.double(), None if residual is None else residual.double()
        ),
        fastres={algorithm: fused(algorithm) for algorithm in shape.algorithms},
    )


def bottleneck_layer(shape: BottleneckShape, batch: int, *, live: bool = False) -> Layer:
    """Builds the block with random weights and statistics; arguments as for ``conv_layer``."""
    torch.manual_seed(0)
    module = _randomise_statistics(_bottleneck(shape))
    convs = [(module.conv1, module.bn1), (module.conv2, module.bn2), (module.conv3, module.bn3)]
    convs += [tuple(module.downsample)] if module.downsample is not None else []
    x = _channels_last(batch, shape.in_channels, shape.height, shape.width)

    def fused(algorithm: str) -> Callable[[], Tensor]:
        if live:
            operands = [_unpacked(*conv) for conv in convs]
            op = partial(ops.live_bottleneck, algorithm=algorithm)
        else:
            algorithms = ["direct", algorithm, "direct", "direct"]
            operands = [_pack(*conv, name) for conv, name in zip(convs, algorithms, strict=False)]
            op = ops.grouped_bottleneck
        tensors = [tensor for operand in operands for tensor in operand]
        return partial(op, x, *tensors, stride=shape.stride, groups=shape.groups)

    return Layer(
        eager=lambda: module(x),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
        fastres={algorithm: fused(algorithm) for algorithm in shape.algorithms},
    )


#: Blocks of a chain; a stage of these networks has 3 to 6.
CHAIN_LENGTH = 4


def chain_layer(shape: BottleneckShape, batch: int, *, live: bool = False) -> Layer:
    """Builds ``CHAIN_LENGTH`` blocks of this shape, one after the other, as a stage has them.

    Arguments as for ``conv_layer``.
    """
    torch.manual_seed(0)
    blocks = [_randomise_statistics(_bottleneck(shape)) for _ in range(CHAIN_LENGTH)]
    module = nn.Sequential(*blocks)
    x = _channels_last(batch, shape.in_channels, shape.height, shape.width)
    convs = [
        conv
        for block in blocks
        for conv in ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3))
    ]
    op = _live_chain if live else _packed_chain
    return Layer(
        eager=lambda: module(x),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
        fastres={
            algorithm: partial(
                op(convs, algorithm),
                x,
                convs=[3] * CHAIN_LENGTH,
                groups=[shape.groups] * CHAIN_LENGTH,
            )
            for algorithm in shape.algorithms
        },
    )


_ConvAndNorm = tuple[nn.Conv2d, nn.BatchNorm2d]


def _packed_chain(convs: list[_ConvAndNorm], algorithm: str) -> Callable[..., Tensor]:
    algorithms = ["direct", algorithm, "direct"] * CHAIN_LENGTH
    operands = [_pack(*conv, name) for conv, name in zip(convs, algorithms, strict=True)]
    packed, shift = zip(*operands, strict=True)
    return partial(
        ops.bottleneck_chain,
        packed=ops.join_packed(packed),
        shift=torch.cat(shift),
        sizes=[one.numel() for one in packed],
        channels=[one.numel() for one in shift],
    )


def _live_chain(convs: list[_ConvAndNorm], algorithm: str) -> Callable[..., Tensor]:
    weights, scales, shifts = zip(*(_unpacked(*conv) for conv in convs), strict=True)
    return partial(
        ops.live_bottleneck_chain,
        weights=weights,
        scale=torch.cat(scales),
        shift=torch.cat(shifts),
        algorithms=[algorithm] * CHAIN_LENGTH,
    )


def _bottleneck(shape: BottleneckShape) -> Bottleneck:
    down = None
    if shape.has_projection:
        down = nn.Sequential(
            nn.Conv2d(shape.in_channels, shape.out_channels, 1, stride=shape.stride, bias=False),
            nn.BatchNorm2d(shape.out_channels),
        )
    return Bottleneck(
        shape.in_channels,
        shape.out_channels // Bottleneck.expansion,
        stride=shape.stride,
        downsample=down,
        groups=shape.groups,
        # The width that this asks for is shape.width_channels.
        base_width=64 * 4 * shape.width_channels // shape.out_channels // shape.groups,
    )


def pool_layer(shape: PoolShape, batch: int) -> Layer:
    """Builds the max-pool and its input in channels_last."""
    torch.manual_seed(0)
    x = _channels_last(batch, shape.channels, shape.height, shape.width)
    window = (shape.kernel, shape.stride, shape.padding)
    return Layer(
        eager=lambda: nn.functional.max_pool2d(x, *window),
        exact=lambda: nn.functional.max_pool2d(x.double(), *window),
        fastres={"direct": lambda: ops.max_pool(x, *window)},
    )


def stem_layer(shape: PoolShape, batch: int) -> Layer:
    """Builds a 7x7 convolution of an image with stride 2 before the max-pool, as in a ResNet."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, shape.channels, 7, stride=2, padding=3, bias=False)
    module = _randomise_statistics(
        nn.Sequential(
            conv,
            nn.BatchNorm2d(shape.channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(shape.kernel, shape.stride, shape.padding),
        )
    )
    x = torch.randn(batch, 3, 2 * shape.height, 2 * shape.width)
    packed, shift = _pack(conv, module[1], "direct")
    fused = partial(
        ops.conv_max_pool, x, packed, shift, kernel_size=7, stride=2, padding=3, act="relu",
        pool_size=shape.kernel, pool_stride=shape.stride, pool_padding=shape.padding,
    )  # fmt: skip
    return Layer(
        eager=lambda: module(x),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
        fastres={"direct": fused},
    )


#: ImageNet's classes.
HEAD_OUTPUTS = 1000


def head_layer(shape: HeadShape, batch: int) -> Layer:
    """Builds an average pooling and a linear layer of ``HEAD_OUTPUTS``."""
    torch.manual_seed(0)
    linear = nn.Linear(shape.channels, HEAD_OUTPUTS).requires_grad_(False)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    x = _channels_last(batch, shape.channels, shape.height, shape.width)
    return Layer(
        eager=lambda: module(x),
        exact=lambda: copy.deepcopy(module).double()(x.double()),
        fastres={"direct": lambda: ops.avg_pool_linear(x, linear.weight, linear.bias)},
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
    weight, scale, shift = _unpacked(conv, norm)
    return ops.pack_conv_weight(weight, scale, conv.groups, algorithm), shift


def _unpacked(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return conv.weight.detach(), scale.detach(), shift.detach()
