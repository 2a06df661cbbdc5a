"""The layer shapes that the benchmarks run over, read off the networks themselves."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

MODELS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
#: What `pytest benchmarks` runs unless told otherwise: the two networks of the project's targets.
DEFAULT_MODELS = ("resnet50", "resnext50_32x4d")
IMAGE_SIZE = 224


@dataclass(frozen=True)
class ConvShape:
    """A convolution, BatchNorm, the shortcut if it ends a block, and ReLU if one follows."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    groups: int
    height: int
    width: int
    residual: bool
    act: str

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What ``pack_conv_weight`` offers for it."""
        winograd = self.kernel == 3 and self.stride == 1 and self.groups == 1
        return ("direct", "winograd") if winograd else ("direct",)

    def flops(self, batch: int) -> int:
        """Two for a multiply-accumulate of a direct convolution, and nothing else."""
        taps = self.in_channels // self.groups * self.kernel**2
        return 2 * batch * self.out_channels * self.out_height * self.out_width * taps

    def bytes(self, batch: int) -> int:
        """What has to move at least, in float32: input, weight, shortcut, output."""
        outputs = batch * self.out_channels * self.out_height * self.out_width
        inputs = batch * self.in_channels * self.height * self.width
        weights = self.out_channels * (self.in_channels // self.groups) * self.kernel**2
        return 4 * (inputs + weights + outputs * (2 if self.residual else 1))

    def __str__(self) -> str:
        text = f"{self.in_channels}-{self.out_channels}_{self.kernel}x{self.kernel}"
        text += f"_s{self.stride}" if self.stride > 1 else ""
        text += f"_g{self.groups}" if self.groups > 1 else ""
        text += f"_{self.height}x{self.width}"
        text += "_residual" if self.residual else ""
        return text + (f"_{self.act}" if self.act != "relu" else "")


@dataclass(frozen=True)
class BottleneckShape:
    """A whole bottleneck block; it has a projection where it strides or widens."""

    in_channels: int
    width_channels: int
    out_channels: int
    stride: int
    groups: int
    height: int
    width: int

    @property
    def has_projection(self) -> bool:
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What ``pack_conv_weight`` offers for its 3x3."""
        return ("direct", "winograd") if self.groups == self.stride == 1 else ("direct",)

    def flops(self, batch: int) -> int:
        """Two for a multiply-accumulate of its three or four convolutions."""
        conv1, conv2, *others = self._weights()
        pixels, out_pixels = self._pixels()
        return 2 * batch * (conv1 * pixels + (conv2 + sum(others)) * out_pixels)

    def bytes(self, batch: int) -> int:
        """What has to move at least, in float32: input, weights, output."""
        pixels, out_pixels = self._pixels()
        activations = self.in_channels * pixels + self.out_channels * out_pixels
        return 4 * (batch * activations + sum(self._weights()))

    def convs(self) -> list[ConvShape]:
        """Its three or four convolutions, as ``conv_calls`` has them."""
        c, width, k, out = self.in_channels, self.width_channels, self.out_channels, self._out()
        here = (self.height, self.width)
        convs = [
            ConvShape(c, width, 1, 1, 0, 1, *here, residual=False, act="relu"),
            ConvShape(
                width, width, 3, self.stride, 1, self.groups, *here, residual=False, act="relu"
            ),
            ConvShape(width, k, 1, 1, 0, 1, *out, residual=True, act="relu"),
        ]
        down = ConvShape(c, k, 1, self.stride, 0, 1, *here, residual=False, act="none")
        return convs + [down] * self.has_projection

    def _out(self) -> tuple[int, int]:
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def _pixels(self) -> tuple[int, int]:
        out_height, out_width = self._out()
        return self.height * self.width, out_height * out_width

    def _weights(self) -> list[int]:
        """Elements of the weights of its three or four convolutions."""
        weights = [self.in_channels * self.width_channels]
        weights += [self.width_channels**2 // self.groups * 9]
        weights += [self.width_channels * self.out_channels]
        return weights + [self.in_channels * self.out_channels] * self.has_projection

    def __str__(self) -> str:
        text = f"{self.in_channels}-{self.width_channels}-{self.out_channels}"
        text += f"_s{self.stride}" if self.stride > 1 else ""
        text += f"_g{self.groups}" if self.groups > 1 else ""
        return f"{text}_{self.height}x{self.width}" + ("_down" if self.has_projection else "")


@dataclass(frozen=True)
class PoolShape:
    """A max-pool."""

    channels: int
    kernel: int
    stride: int
    padding: int
    height: int
    width: int

    @property
    def algorithms(self) -> tuple[str, ...]:
        """As a convolution's: there is one way."""
        return ("direct",)

    @property
    def out_pixels(self) -> int:
        """Of the output."""
        height, width = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1
            for size in (self.height, self.width)
        )
        return height * width

    def bytes(self, batch: int) -> int:
        """What has to move at least, in float32: input and output."""
        return 4 * batch * self.channels * (self.height * self.width + self.out_pixels)

    def stem_flops(self, batch: int) -> int:
        """Of a 7x7 convolution of images twice as high and wide, which may come before."""
        return 2 * batch * 7 * 7 * 3 * self.channels * self.height * self.width

    def stem_bytes(self, batch: int) -> int:
        """What has to move of both together: images, outputs and weights."""
        image = 3 * 2 * self.height * 2 * self.width
        return 4 * (batch * (image + self.channels * self.out_pixels) + 7 * 7 * 3 * self.channels)

    def __str__(self) -> str:
        window = f"{self.kernel}x{self.kernel}_s{self.stride}"
        return f"{self.channels}_{window}_{self.height}x{self.width}"


@dataclass(frozen=True)
class HeadShape:
    """What a network's average pooling reads."""

    channels: int
    height: int
    width: int

    @property
    def algorithms(self) -> tuple[str, ...]:
        """As a convolution's: there is one way."""
        return ("direct",)

    def flops(self, batch: int, outputs: int) -> int:
        """Two for a multiply-accumulate of the linear layer, one for a value that is averaged."""
        return batch * self.channels * (self.height * self.width + 2 * outputs)

    def bytes(self, batch: int, outputs: int) -> int:
        """What has to move at least, in float32: input, weight, output."""
        inputs = batch * self.channels * self.height * self.width
        return 4 * (inputs + self.channels * outputs + batch * outputs)

    def __str__(self) -> str:
        return f"{self.channels}_{self.height}x{self.width}"


class _Call(NamedTuple):
    """A call of a module in a network's forward pass."""

    name: str
    module: nn.Module
    parent: nn.Module
    channels: int
    height: int
    width: int


def conv_calls(*names: str) -> list[ConvShape]:
    """Every convolution of these networks for a square image, in order of appearance."""
    calls = (call for name in names for call in _calls(name))
    return [_conv_shape(c) for c in calls if isinstance(c.module, nn.Conv2d)]


def conv_shapes(*names: str) -> list[ConvShape]:
    """Every different convolution of these networks for a square image, in order of appearance."""
    return list(dict.fromkeys(conv_calls(*names)))


def training_shapes(*names: str) -> list[ConvShape]:
    """Every different convolution of these networks, whatever follows it."""
    plain = (replace(shape, residual=False, act="relu") for shape in conv_shapes(*names))
    return list(dict.fromkeys(plain))


def bottleneck_shapes(*names: str) -> list[BottleneckShape]:
    """Every different bottleneck block of these networks, in order of appearance."""
    calls = (call for name in names for call in _calls(name))
    return list(
        dict.fromkeys(_bottleneck_shape(c) for c in calls if isinstance(c.module, Bottleneck))
    )


def chain_shapes(*names: str) -> list[BottleneckShape]:
    """Those of them that may follow themselves."""
    return [shape for shape in bottleneck_shapes(*names) if not shape.has_projection]


def pool_shapes(*names: str) -> list[PoolShape]:
    """Every different max-pool of these networks, in order of appearance."""
    calls = (call for name in names for call in _calls(name))
    return list(dict.fromkeys(_pool_shape(c) for c in calls if isinstance(c.module, nn.MaxPool2d)))


def head_shapes(*names: str) -> list[HeadShape]:
    """Every different input of these networks' average poolings, in order of appearance."""
    calls = (call for name in names for call in _calls(name))
    pools = (c for c in calls if isinstance(c.module, nn.AdaptiveAvgPool2d))
    return list(dict.fromkeys(HeadShape(c.channels, c.height, c.width) for c in pools))


@cache
def _calls(model: str) -> list[_Call]:
    calls: list[_Call] = []
    with torch.device("meta"):
        network = models.get_model(model).eval()
        image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE)

    def hook_as(name: str) -> Any:
        parent = network.get_submodule(name.rpartition(".")[0])

        def hook(module: nn.Module, inputs: Any) -> None:
            _, *size = *inputs[0].shape, 1, 1  # the classifier's input has no height and width
            calls.append(_Call(name.rpartition(".")[2], module, parent, *size[:3]))

        return hook

    for name, module in network.named_modules():
        module.register_forward_pre_hook(hook_as(name))
    with torch.no_grad():
        network(image)
    return calls


def _conv_shape(call: _Call) -> ConvShape:
    conv = call.module
    ends_block = (type(call.parent), call.name) in {(BasicBlock, "conv2"), (Bottleneck, "conv3")}
    is_projection = isinstance(call.parent, nn.Sequential)
    return ConvShape(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=conv.kernel_size[0],
        stride=conv.stride[0],
        padding=conv.padding[0],
        groups=conv.groups,
        height=call.height,
        width=call.width,
        residual=ends_block,
        act="none" if is_projection else "relu",
    )


def _bottleneck_shape(call: _Call) -> BottleneckShape:
    block = call.module
    return BottleneckShape(
        in_channels=block.conv1.in_channels,
        width_channels=block.conv2.in_channels,
        out_channels=block.conv3.out_channels,
        stride=block.stride,
        groups=block.conv2.groups,
        height=call.height,
        width=call.width,
    )


def _pool_shape(call: _Call) -> PoolShape:
    pool = call.module
    return PoolShape(
        call.channels, pool.kernel_size, pool.stride, pool.padding, call.height, call.width
    )
