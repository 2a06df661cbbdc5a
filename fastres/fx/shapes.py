"""Proves that two values of a graph have the same shape and dtype, whatever the input's size.

Sizes are symbols: a height is "that of this value, after these convolutions", and two heights are
equal if they say the same. A shortcut may be fused only if it is added to something of its own
shape, and this tells a shortcut from a broadcast without running the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from .names import op_name
from .patterns import Reader
from .readings import Act, Add, Affine, Conv, Norm, Pad, Same

#: The symbol for the dtype that autocast computes convolutions in.
AUTOCAST = "autocast"

# A size: a symbol, or what strided windows make of one: floor((size + a) / s) + 1, in turn.
Windows = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Size:
    """A symbolic height or width."""

    of: object
    windows: Windows = ()

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Size:
        """The size after a convolution or pooling; padding is the sum of both sides."""
        offset = padding - dilation * (kernel - 1) - 1
        if stride == 1 and offset == -1:
            return self
        if self.windows and self.windows[-1][1] == 1:
            previous, _ = self.windows[-1]
            merged = replace(self, windows=self.windows[:-1])
            return merged._append(offset + previous + 1, stride)
        return self._append(offset, stride)

    def _append(self, offset: int, stride: int) -> Size:
        if stride == 1 and offset == -1:
            return self
        return replace(self, windows=(*self.windows, (offset, stride)))


@dataclass(frozen=True)
class Image:
    """What is known of a value with 4 dimensions; ``dtype`` is a symbol too."""

    batch: object
    channels: object
    height: Size
    width: Size
    dtype: object
    needs: frozenset[fx.Node] = frozenset()
    """Placeholders that have 4 dimensions, if this value has."""


def fresh_image(node: fx.Node, needs: frozenset[fx.Node] = frozenset()) -> Image:
    """A value with 4 dimensions of which nothing else is known."""
    return Image(("n", node), ("c", node), Size(("h", node)), Size(("w", node)), node, needs)


_SAME_SHAPE = {
    "relu", "relu_", "relu6", "silu", "silu_", "leaky_relu", "leaky_relu_", "sigmoid", "sigmoid_",
    "tanh", "tanh_", "gelu", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "dropout",
    "contiguous", "clone", "detach", "neg", "abs", "exp", "sqrt", "elu", "mish", "batch_norm",
}  # fmt: skip
_SAME_SHAPE_MODULES = (
    nn.ReLU, nn.Hardtanh, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Hardswish,
    nn.Hardsigmoid, nn.ELU, nn.Mish, nn.Identity, nn.modules.dropout._DropoutNd, nn.BatchNorm2d,
    nn.SyncBatchNorm, nn.GroupNorm,
)  # fmt: skip
_CASTS = {"to", "float", "half", "bfloat16", "type_as", "type"}
_BINARY = {"add", "add_", "iadd", "sub", "isub", "mul", "mul_", "imul", "truediv", "div", "div_"}
_POOLS = {"max_pool2d", "avg_pool2d"}
_RESIZED = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "upsample", "pixel_shuffle",
    "pixel_unshuffle", "pad", "channel_shuffle",
}  # fmt: skip
_RESIZED_MODULES = (
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ConvTranspose2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Conv2d,
    nn.ChannelShuffle,
)  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin"}
_RESHAPES = {"view", "reshape", "permute", "expand", "new_empty", "new_zeros", "new_ones"}


class Shapes:
    """The images of one graph.

    Args:
        graph: the graph.
        reader: reads its nodes.
        inputs: what is known of a placeholder; None if it is no image.
        autocast: whether convolutions cast to autocast's dtype.
    """

    def __init__(
        self,
        graph: fx.Graph,
        reader: Reader,
        inputs: Callable[[fx.Node], Image | None],
        autocast: bool = False,
    ) -> None:
        self._reader = reader
        self._inputs = inputs
        self._autocast = autocast
        self._images: dict[fx.Node, Image | None] = {}
        # A convolution tells how many channels its input has.
        self._channels: dict[object, object] = {}
        for node in graph.nodes:
            self._images[node] = self._visit(node)

    def image(self, node: fx.Node) -> Image | None:
        """What is known of a value, or None if it may not have 4 dimensions."""
        image = self._images.get(node)
        if image is None:
            return None
        return replace(image, channels=self._channels.get(image.channels, image.channels))

    def equal(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two values surely have the same shape and dtype."""
        first, second = self.image(a), self.image(b)
        return (
            first is not None
            and second is not None
            and replace(first, needs=frozenset()) == replace(second, needs=frozenset())
        )

    def _visit(self, node: fx.Node) -> Image | None:
        if node.op == "placeholder":
            return self._inputs(node)
        if node.op not in ("call_function", "call_method", "call_module"):
            return None
        reading = self._reader.read(node)
        if isinstance(reading, Conv):
            return self._conv(node, reading)
        if isinstance(reading, Norm):
            image = self.image(reading.x)
            return fresh_image(node) if image is None and reading.checks_rank else image
        if isinstance(reading, (Act, Same)):
            return self.image(reading.x)
        if isinstance(reading, Pad):
            return self._pad(reading)
        if isinstance(reading, Affine) and self._is_per_channel(reading):
            return self.image(reading.x)
        if isinstance(reading, Add):
            return self._binary(node, [reading.left, reading.right])
        if node.op == "call_module":
            return self._module(node)
        return self._function(node)

    def _conv(self, node: fx.Node, conv: Conv) -> Image | None:
        x = self.image(conv.x)
        if x is None:
            if not any(self._checks_rank(user) for user in node.users):
                return None
            x = self._images[conv.x] = fresh_image(conv.x)
        channels, per_group, r, s = conv.weight_shape
        if not isinstance(x.channels, int):
            self._channels.setdefault(x.channels, per_group * conv.groups)
        top, bottom, left, right = conv.padding
        return replace(
            x,
            channels=channels,
            height=x.height.window(r, conv.stride[0], top + bottom, conv.dilation[0]),
            width=x.width.window(s, conv.stride[1], left + right, conv.dilation[1]),
            dtype=AUTOCAST if self._autocast else x.dtype,
        )

    def _pad(self, pad: Pad) -> Image | None:
        x = self.image(pad.x)
        if x is None:
            return None
        top, bottom, left, right = pad.padding
        return replace(
            x,
            height=x.height.window(1, 1, top + bottom, 1),
            width=x.width.window(1, 1, left + right, 1),
        )

    def _is_per_channel(self, affine: Affine) -> bool:
        """Whether it surely is an affine of a convolution's float output, of the same shape."""
        made_by, image = self._reader.read(affine.x), self.image(affine.x)
        if image is None or not isinstance(made_by, (Conv, Norm, Affine)):
            return False
        if affine.channels not in (1, image.channels):
            return False
        factors = (affine.scale, affine.shift)
        return not self._autocast or all(isinstance(factor, float) for factor in factors)

    def _checks_rank(self, node: fx.Node) -> bool:
        """Whether a node would fail if its input, or what made it, had not 4 dimensions."""
        reading = self._reader.read(node)
        return isinstance(reading, Norm) and reading.checks_rank

    def _binary(self, node: fx.Node, operands: Sequence[fx.Node]) -> Image | None:
        images = [self.image(operand) for operand in operands]
        known = [image for image in images if image is not None]
        if not known:
            return None
        needs = frozenset().union(*(image.needs for image in known))
        if len(known) == len(operands) and all(self.equal(operands[0], o) for o in operands):
            return replace(known[0], needs=needs)
        # Broadcasting keeps 4 dimensions if the other operand has no more.
        return fresh_image(node, needs) if len(known) == len(operands) else None

    def _module(self, node: fx.Node) -> Image | None:
        module: Any = self._reader.module(node)
        if module is None or not node.all_input_nodes:
            return None
        x = self.image(node.all_input_nodes[0])
        if x is None:
            return fresh_image(node) if isinstance(module, nn.BatchNorm2d) else None
        if isinstance(module, _SAME_SHAPE_MODULES):
            return x
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            if getattr(module, "return_indices", False):
                return None
            dilation = getattr(module, "dilation", 1)
            return _pool(
                node, x, module.kernel_size, module.stride, module.padding, dilation,
                module.ceil_mode,
            )  # fmt: skip
        return fresh_image(node, x.needs) if isinstance(module, _RESIZED_MODULES) else None

    def _function(self, node: fx.Node) -> Image | None:
        name = op_name(node)
        if name == "cat":
            return self._cat(node)
        if name in _RESHAPES and node.op == "call_method":
            sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            return fresh_image(node) if len(sizes) == 4 else None
        operands = node.all_input_nodes
        x = self.image(operands[0]) if operands else None
        if x is None:
            return None
        if name in _BINARY:
            both = [a for a in node.args[:2] if isinstance(a, fx.Node)]
            # A scalar keeps the shape; whether the dtype depends on both (uint8 / 255).
            return replace(x, dtype=node) if len(both) == 1 else self._binary(node, both)
        if name in _REDUCTIONS:
            keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
            return fresh_image(node, x.needs) if keeps is True else None
        if name in _POOLS:
            return self._pool_function(node, x)
        if name in _CASTS:
            return replace(x, dtype=node)
        if name in _SAME_SHAPE:
            return x
        return fresh_image(node, x.needs) if name in _RESIZED else None

    def _cat(self, node: fx.Node) -> Image | None:
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(tensors, (tuple, list)) or not tensors:
            return None
        images = [self.image(t) if isinstance(t, fx.Node) else None for t in tensors]
        known = [image for image in images if image is not None]
        if len(known) != len(images):
            return None
        result = fresh_image(node, frozenset().union(*(image.needs for image in known)))
        if dim != 1:
            return result
        first = known[0]
        dtype = first.dtype if all(image.dtype == first.dtype for image in known) else node
        return replace(
            result, batch=first.batch, height=first.height, width=first.width, dtype=dtype
        )

    def _pool_function(self, node: fx.Node, x: Image) -> Image:
        names = ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"]
        if op_name(node) == "avg_pool2d":
            names.remove("dilation")
        arguments: dict[str, Any] = dict(zip(names, node.args, strict=False))
        arguments.update(node.kwargs)
        return _pool(
            node, x, arguments.get("kernel_size"), arguments.get("stride"),
            arguments.get("padding", 0), arguments.get("dilation", 1),
            arguments.get("ceil_mode", False),
        )  # fmt: skip


def _pool(
    node: fx.Node, x: Image, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Image:
    # An empty stride is torch.max_pool2d's way to say the kernel's size.
    values = [kernel, stride if stride not in (None, [], ()) else kernel, padding, dilation]
    pairs = [tuple(v) if isinstance(v, (tuple, list)) else (v, v) for v in values]
    if ceil_mode or not all(isinstance(v, int) for p in pairs for v in p):
        return replace(x, height=Size(("h", node)), width=Size(("w", node)))
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (p if len(p) == 2 else p * 2 for p in pairs)
    return replace(
        x,
        height=x.height.window(kh, sh, 2 * ph, dh),
        width=x.width.window(kw, sw, 2 * pw, dw),
    )


def image_of_example(placeholder: fx.Node, example: torch.Tensor) -> Image:
    """What is known of an input with 4 dimensions whose sizes, or their symbols, are given."""
    n, c, h, w = example.shape
    channels = c if isinstance(c, int) else str(c)
    needs = frozenset({placeholder})
    return Image(str(n), channels, Size(str(h)), Size(str(w)), placeholder, needs)
