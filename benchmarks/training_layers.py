"""One layer of training, forward and backward: in eager PyTorch and in fastres's ops."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastres import _measure, ops

from .shapes import ConvShape

#: Eager runs convolution, BatchNorm and ReLU; fastres's ops run a layer as BatchNorm's affine and
#: ReLU of the input, convolution, and statistics of the output. In a chain of layers that is the
#: same work.
TRAINING_IMPLEMENTATIONS = ("eager-nchw", "eager-nhwc", "fastres")

Outputs = Sequence[Tensor]


class Step(NamedTuple):
    """A forward pass, and a backward pass that can be repeated."""

    forward: Callable[[], Outputs]
    backward: Callable[[], Outputs]


class TrainingLayer:
    """The layer's tensors: random, x in channels_last but for ``eager-nchw``."""

    def __init__(self, shape: ConvShape, batch: int) -> None:
        torch.manual_seed(0)
        self._geometry = (shape.stride, shape.padding, 1, shape.groups)
        c, k = shape.in_channels, shape.out_channels
        fan_in = c // shape.groups * shape.kernel**2
        x = torch.randn(batch, c, shape.height, shape.width)
        weight = torch.randn(k, c // shape.groups, shape.kernel, shape.kernel) / fan_in**0.5
        self._x, self._weight = x, weight
        self._affine = [torch.randn(c) / 4, torch.rand(c) + 0.5, torch.randn(c) / 4]
        size = (batch, k, shape.out_height, shape.out_width)
        self._grad = torch.randn(size)
        # Of the statistics: about as large as BatchNorm's.
        self._statistics_grads = [torch.randn(k), torch.randn(k) / 100]

    def step(self, implementation: str) -> Step:
        """The passes that one of TRAINING_IMPLEMENTATIONS names."""
        if implementation == "fastres":
            return self._fastres()
        nchw = implementation == "eager-nchw"
        return self._eager(torch.contiguous_format if nchw else torch.channels_last)

    def _fastres(self) -> Step:
        x = self._x.to(memory_format=torch.channels_last)
        leaves = _leaves(x, self._weight, *self._affine)
        stride, padding, dilation, groups = self._geometry

        def forward() -> Outputs:
            return ops.conv_stats(
                *leaves,
                in_act="relu",
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
            )

        grad = self._grad.to(memory_format=torch.channels_last)
        return Step(forward, _backward(forward(), leaves, [grad, *self._statistics_grads]))

    def _eager(self, memory_format: torch.memory_format) -> Step:
        channels = self._weight.shape[0]
        x = self._x.to(memory_format=memory_format)
        weight = self._weight.to(memory_format=memory_format)
        leaves = _leaves(x, weight, torch.ones(channels), torch.zeros(channels))
        x, weight, gamma, beta = leaves
        running = torch.zeros(channels), torch.ones(channels)

        def forward() -> Outputs:
            y = F.conv2d(x, weight, None, *self._geometry)
            return [F.relu(F.batch_norm(y, *running, gamma, beta, training=True))]

        grad = self._grad.to(memory_format=memory_format)
        return Step(forward, _backward(forward(), leaves, [grad]))

    def validate(self) -> None:
        """Fails where an error against float64 is more than the contract allows."""
        step = self._fastres()
        ours = [*step.forward(), *step.backward()]
        theirs, exact = self._plain(torch.float32), self._plain(torch.float64)
        for our, their, true in zip(*map(_grouped, (ours, theirs, exact)), strict=True):
            limit = _measure.error_limit(_measure.relative_error(their, true))
            error = _measure.relative_error(our, true)
            assert error <= limit, f"error {error:.2e} against float64, allowed {limit:.2e}"

    def _plain(self, dtype: torch.dtype) -> Outputs:
        """What the op computes, one PyTorch operator after the other."""
        leaves = _leaves(*(t.to(dtype) for t in (self._x, self._weight, *self._affine)))
        x, weight, *affine = leaves
        mean, scale, bias = (vector[:, None, None] for vector in affine)
        y = F.conv2d(F.relu((x - mean) * scale + bias), weight, None, *self._geometry)
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        outputs = [y, mean, variance * (y.numel() // y.shape[1])]
        grads = [grad.to(dtype) for grad in (self._grad, *self._statistics_grads)]
        return [*outputs, *_backward(outputs, leaves, grads)()]


def _grouped(results: Outputs) -> list[Outputs]:
    """y, mean, m2, the gradients of x and weight, and, as errors of three values are a matter of
    luck, those of the affine together.
    """
    return [*([result] for result in results[:5]), results[5:]]


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def _backward(
    outputs: Outputs, leaves: Sequence[Tensor], grads: Sequence[Tensor]
) -> Callable[[], Outputs]:
    return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
