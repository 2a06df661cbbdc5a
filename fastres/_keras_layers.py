"""What each layer of Keras is in PyTorch, [N, H, W, C] turned to [N, C, H, W].

A layer becomes a module that takes the layer's inputs in order. Keras is never imported: its
layers are told by the names of their classes, and read through their public attributes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Unsupported", "channel_slice_of", "is_image", "to_torch"]


class Unsupported(ValueError):
    """A layer, or a setting of one, that has no counterpart here."""


def to_torch(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    """The module that computes what the layer computes on inputs of these Keras shapes.

    Raises:
        Unsupported: there is none; says why.
    """
    kind = type(layer).__name__
    make = _LAYERS.get(kind)
    if make is None:
        raise Unsupported(f"{kind} has no counterpart; known are {', '.join(sorted(_LAYERS))}")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise Unsupported(f"data_format={layer.data_format!r}, expected 'channels_last'")
    module: nn.Module = make(layer, inputs)
    return module


def is_image(shape: tuple[int | None, ...]) -> bool:
    """Whether a Keras tensor of this shape is [N, C, H, W] here."""
    return len(shape) == 4


def tensor(variable: Any) -> Tensor:
    """A copy of a Keras variable, of whichever backend, as float32."""
    value = variable.value if hasattr(variable, "value") else variable
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float32, copy=True)
    return torch.tensor(value.numpy() if hasattr(value, "numpy") else value, dtype=torch.float32)


def _parameter(variable: Any) -> nn.Parameter:
    return nn.Parameter(tensor(variable))


class _Function(nn.Module):
    """A function of the inputs, without parameters."""

    def __init__(self, function: Callable[..., Tensor], **arguments: Any) -> None:
        super().__init__()
        self.function = function
        self.arguments = arguments

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, **self.arguments)


def _then(module: nn.Module, activation: Any, shape: tuple[int | None, ...]) -> nn.Module:
    act = _activation(activation, shape)
    return module if isinstance(act, nn.Identity) else nn.Sequential(module, act)


def _activation(activation: Any, shape: tuple[int | None, ...]) -> nn.Module:
    name = getattr(activation, "__name__", type(activation).__name__)
    if name == "softmax":
        return nn.Softmax(dim=1)  # channels of an image, features of a vector
    if name not in _ACTIVATIONS:
        raise Unsupported(f"activation {name!r}, expected {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]()


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softmax": nn.Softmax,
    "tanh": nn.Tanh,
}


# ---- windows -------------------------------------------------------------------------------------


def _pads(
    layer: Any, shape: tuple[int | None, ...], kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of a layer's padding: TensorFlow's rule for "same"."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding != "same":
        raise Unsupported(f"padding={layer.padding!r}, expected 'valid' or 'same'")
    sides: list[tuple[int, int]] = []
    for size, k, stride, d in zip(shape[1:3], kernel, layer.strides, dilation, strict=True):
        reach = d * (k - 1) + 1
        if stride == 1:
            total = reach - 1
        elif size is None:
            raise Unsupported("padding='same' with a stride depends on the input's size: fix it")
        else:
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        sides.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = sides
    return left, right, top, bottom


def _conv(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    weight = tensor(layer.kernel).permute(3, 2, 0, 1)
    return _convolution(layer, inputs[0], weight, layer.groups)


def _depthwise(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    kernel = tensor(layer.kernel)  # [R, S, C, multiplier]
    weight = kernel.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
    return _convolution(layer, inputs[0], weight, kernel.shape[2])


def _convolution(
    layer: Any, shape: tuple[int | None, ...], weight: Tensor, groups: int
) -> nn.Module:
    kernel = (weight.shape[2], weight.shape[3])
    left, right, top, bottom = _pads(layer, shape, kernel, layer.dilation_rate)
    symmetric = left == right and top == bottom
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        layer.strides,
        (top, left) if symmetric else 0,
        layer.dilation_rate,
        groups,
        layer.bias is not None,
    )
    conv.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        conv.bias = _parameter(layer.bias)
    if symmetric:
        return _then(conv, layer.activation, shape)
    padded = nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)
    return _then(padded, layer.activation, shape)


def _zero_padding(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    (top, bottom), (left, right) = layer.padding
    return nn.ZeroPad2d((left, right, top, bottom))


def _max_pool(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    pool = nn.MaxPool2d(layer.pool_size, layer.strides)
    pads = _pads(layer, inputs[0], layer.pool_size, (1, 1))
    if not any(pads):
        return pool
    return nn.Sequential(nn.ConstantPad2d(pads, float("-inf")), pool)


def _average_pool(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    pads = _pads(layer, inputs[0], layer.pool_size, (1, 1))
    if any(pads):
        raise Unsupported("padding='same' of an average pool, which averages fewer values there")
    return nn.AvgPool2d(layer.pool_size, layer.strides)


# ---- the others ----------------------------------------------------------------------------------


def _batch_norm(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    shape = inputs[0]
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    if axis not in (-1, len(shape) - 1):
        raise Unsupported(f"axis={axis} of a BatchNormalization, expected the last")
    make = nn.BatchNorm2d if is_image(shape) else nn.BatchNorm1d
    mean = tensor(layer.moving_mean)
    # Keras's momentum is the share of the old statistics, PyTorch's that of the new.
    norm = make(len(mean), eps=layer.epsilon, momentum=1 - layer.momentum)
    norm.running_mean, norm.running_var = mean, tensor(layer.moving_variance)
    if layer.gamma is not None:
        norm.weight = _parameter(layer.gamma)
    if layer.beta is not None:
        norm.bias = _parameter(layer.beta)
    return norm


def _dense(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    if len(inputs[0]) != 2:
        raise Unsupported(f"Dense of an input with {len(inputs[0])} dimensions, expected 2")
    weight = tensor(layer.kernel).t().contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    linear.weight = nn.Parameter(weight)
    if layer.bias is not None:
        linear.bias = _parameter(layer.bias)
    return _then(linear, layer.activation, inputs[0])


def _relu(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    if layer.threshold:
        raise Unsupported(f"threshold={layer.threshold} of a ReLU, expected 0")
    if layer.negative_slope:
        if layer.max_value is not None:
            raise Unsupported("a ReLU with both negative_slope and max_value")
        return nn.LeakyReLU(float(layer.negative_slope))
    return nn.ReLU() if layer.max_value is None else nn.Hardtanh(0.0, float(layer.max_value))


def _softmax(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    if layer.axis not in (-1, len(inputs[0]) - 1):
        raise Unsupported(f"axis={layer.axis} of a Softmax, expected the last")
    return nn.Softmax(dim=1)


def _global_pool(function: Callable[..., Tensor]) -> Callable[..., nn.Module]:
    def make(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
        return _Function(function, dim=(2, 3), keepdim=bool(layer.keepdims))

    return make


def _add(*inputs: Tensor) -> Tensor:
    total = inputs[0]
    for other in inputs[1:]:
        total = total + other
    return total


def _concatenate(*inputs: Tensor) -> Tensor:
    return torch.cat(inputs, 1)


def _concatenation(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    if layer.axis not in (-1, len(inputs[0]) - 1):
        raise Unsupported(f"axis={layer.axis} of a Concatenate, expected the last")
    return _Function(_concatenate)


def _flatten_as_keras(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


def _flatten(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    return _Function(_flatten_as_keras) if is_image(inputs[0]) else nn.Flatten()


def _rescale(x: Tensor, scale: float, offset: float) -> Tensor:
    return x * scale + offset


def _rescaling(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    return _Function(_rescale, scale=float(layer.scale), offset=float(layer.offset))


def channel_slice(x: Tensor, start: int, stop: int) -> Tensor:
    """Some of the channels."""
    return x[:, start:stop]


def _slice(layer: Any, inputs: list[tuple[int | None, ...]]) -> nn.Module:
    bounds = _probe(layer, inputs[0])
    return _Function(channel_slice, start=bounds[0], stop=bounds[1])


def _probe(layer: Any, shape: tuple[int | None, ...]) -> tuple[int, int]:
    """Which channels a Lambda hands on, found out on values that are all different."""
    channels = shape[-1]
    if not is_image(shape) or channels is None:
        raise Unsupported("a Lambda, expected one that slices the channels of images")
    probe = torch.arange(3 * 2 * 2 * channels, dtype=torch.float32).view(3, 2, 2, channels)
    result = layer(probe)
    result = result.detach().cpu() if isinstance(result, Tensor) else tensor(result)
    if result.dim() == 4 and result.numel():
        start = int(result[0, 0, 0, 0])
        stop = start + result.shape[-1]
        if stop <= channels and torch.equal(result, probe[..., start:stop]):
            return start, stop
    raise Unsupported("a Lambda, expected one that slices the channels of images")


def channel_slice_of(module: nn.Module) -> tuple[int, int] | None:
    """Which channels a module from ``to_torch`` or ``sliced`` hands on, if it does that alone."""
    if isinstance(module, _Function) and module.function is channel_slice:
        return module.arguments["start"], module.arguments["stop"]
    return None


def sliced(index: Any, shape: tuple[int | None, ...]) -> nn.Module:
    """``x[:, :, :, start:stop]`` of a Keras tensor.

    Raises:
        Unsupported: it takes anything but channels.
    """
    full = slice(None, None, None)
    items = list(index) if isinstance(index, tuple) else [index]
    if items[0] is Ellipsis:
        items = [full] * (len(shape) - len(items) + 1) + items[1:]
    *others, last = items
    if (
        len(items) == 4 == len(shape)
        and all(other == full for other in others)
        and isinstance(last, slice)
        and last.step in (None, 1)
        and shape[-1] is not None
    ):
        start, stop, _ = last.indices(shape[-1])
        return _Function(channel_slice, start=start, stop=stop)
    raise Unsupported(f"an index {index!r}, expected a slice of an image's channels")


def is_concatenation(module: nn.Module) -> bool:
    """Whether a module from ``to_torch`` concatenates channels."""
    return isinstance(module, _Function) and module.function is _concatenate


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "Activation": lambda layer, inputs: _activation(layer.activation, inputs[0]),
    "Add": lambda layer, inputs: _Function(_add),
    "AveragePooling2D": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenation,
    "Conv2D": _conv,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": lambda layer, inputs: nn.Dropout(layer.rate),
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _global_pool(torch.mean),
    "GlobalMaxPooling2D": _global_pool(torch.amax),
    "Lambda": _slice,
    "MaxPooling2D": _max_pool,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Softmax": _softmax,
    "ZeroPadding2D": _zero_padding,
}
