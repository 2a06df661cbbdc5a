"""Training convolutions to test, and what eager PyTorch and float64 make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from conv_case import FACTORS, PATHS, SLOPE, ConvCase, laid_out, same
from torch import Tensor
from torch.nn import functional as F

from fastres import ops, reference

CASES = dict(PATHS)
CASES["3x3 winograd, many images at once"] = same(300, 160, h=6, w=5, n=3, algorithm="winograd")
CASES["3x3 winograd of 136 to 160"] = same(136, 160, h=9, w=14, algorithm="winograd")
CASES["3x3 groups of 2, /2"] = ConvCase(34, 34, stride=(2, 2), padding=(1,) * 4, groups=17)
CASES["1x1 dense, 300 to 40"] = ConvCase(300, 40, (1, 1), h=5, w=9)
CASES["3x3 dilated, /2"] = ConvCase(17, 5, stride=(2, 2), padding=(2,) * 4, dilation=(2, 2))
CASES["3x3 dilated by 3, /2"] = ConvCase(17, 5, stride=(2, 2), padding=(3,) * 4, dilation=(3, 3))
CASES["one pixel"] = ConvCase(5, 17, (1, 1), h=1, w=1, n=1)
CASES["1x1/3, beyond the last tap"] = ConvCase(5, 17, (1, 1), (3, 3), h=9, w=8)
# One of each kind of kernel, where all of them would take too long.
KINDS = (
    "1x1",
    "1x1/2",
    "3x3",
    "3x3 winograd",
    "3x3 groups of 4",
    "3x3 groups of 1, /2",
    "groups of 6",
)


class Inputs(NamedTuple):
    """The tensors of a case; the affine is None or all three of mean, scale and bias."""

    x: Tensor
    weight: Tensor
    affine: tuple[Tensor, Tensor, Tensor] | None

    def double(self) -> Inputs:
        affine = None if self.affine is None else tuple(t.double() for t in self.affine)
        return Inputs(self.x.double(), self.weight.double(), affine)

    def leaves(self) -> Inputs:
        """Copies that want a gradient, of the same strides."""

        def leaf(t: Tensor) -> Tensor:
            return t.detach().clone().requires_grad_()

        affine = None if self.affine is None else tuple(map(leaf, self.affine))
        return Inputs(leaf(self.x), leaf(self.weight), affine)

    def tensors(self) -> list[Tensor]:
        return [self.x, self.weight, *(self.affine or ())]


def make_inputs(
    case: ConvCase,
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    *,
    affine: bool = True,
    mean: float = 0.0,
) -> Inputs:
    """Random tensors: x about ``mean`` in every channel, which the affine's mean is close to."""
    x = torch.randn(case.n, case.c, case.h, case.w) + mean
    fan_in = case.c // case.groups * case.kernel[0] * case.kernel[1]
    weight = torch.randn(case.k, case.c // case.groups, *case.kernel) / fan_in**0.5
    constants = mean + torch.randn(case.c) / 4, torch.rand(case.c) + 0.5, torch.randn(case.c) / 4
    return Inputs(laid_out(x.to(dtype), layout), weight.to(dtype), constants if affine else None)


def activated(inputs: Inputs, act: str) -> Tensor:
    x = inputs.x
    if inputs.affine is not None:
        mean, scale, bias = (t[:, None, None] for t in inputs.affine)
        x = ((x.to(mean.dtype) - mean) * scale + bias).to(x.dtype)
    return reference.apply_act(x, act, SLOPE)


def eager(case: ConvCase, inputs: Inputs, act: str = "none") -> tuple[Tensor, Tensor, Tensor]:
    """Affine, activation, convolution and statistics, one after the other."""
    top, bottom, left, right = case.padding
    padded = F.pad(activated(inputs, act), (left, right, top, bottom))
    padded = reference.with_usual_strides(padded)
    y = F.conv2d(padded, inputs.weight, None, case.stride, 0, case.dilation, case.groups)
    wide = y if y.dtype == torch.float64 else y.float()
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return y, mean, variance * (y.numel() // case.k)


def fused(case: ConvCase, inputs: Inputs, act: str = "none") -> tuple[Tensor, Tensor, Tensor]:
    """The operator under test, on the same tensors."""
    arguments = case.arguments()
    del arguments["kernel_size"]
    return ops.conv_stats(
        inputs.x, inputs.weight, *(inputs.affine or ()), in_act=act, in_act_slope=SLOPE,
        algorithm=case.algorithm, **arguments,
    )  # fmt: skip


def magnitudes(case: ConvCase, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of the absolute values of the terms of y, mean and m2."""
    y, mean, _ = eager(case, absolute(inputs))
    return y, mean, y.square().sum((0, 2, 3))


def absolute(inputs: Inputs) -> Inputs:
    """Inputs whose affine is at least the absolute value of the given one's."""
    inputs = inputs.double()
    if inputs.affine is None:
        return Inputs(inputs.x.abs(), inputs.weight.abs(), None)
    mean, scale, bias = inputs.affine
    x = (inputs.x - mean[:, None, None]).abs()
    return Inputs(x, inputs.weight.abs(), (torch.zeros_like(mean), scale.abs(), bias.abs()))


def gradients(
    function: Callable[..., tuple[Tensor, Tensor, Tensor]],
    case: ConvCase,
    inputs: Inputs,
    act: str,
    given: tuple[Tensor, ...],
) -> list[Tensor]:
    """Gradients of x, weight and the affine, for ``given`` ones of y, mean and m2."""
    leaves = inputs.leaves()
    outputs = function(case, leaves, act)
    grads = [g.to(out.dtype) for g, out in zip(given, outputs, strict=True)]
    return list(torch.autograd.grad(outputs, leaves.tensors(), grads))


def gradient_magnitudes(
    case: ConvCase, inputs: Inputs, given: tuple[Tensor, ...], grad_in: Tensor | None = None
) -> list[Tensor]:
    """Of the gradients' terms: sums of absolute values, in the same order."""
    y, mean, _ = eager(case, inputs.double(), "none")
    grad_y, grad_mean, grad_m2 = (g.double().abs()[..., None, None] for g in given)
    grad_y = grad_y[..., 0, 0]
    pixels = y.numel() // case.k
    centred = (y - mean[:, None, None]).abs() + y.abs().mean()
    dy = grad_y + grad_mean / pixels + 2 * grad_m2 * centred
    positive = absolute(inputs)
    grad_x, *affine, grad_weight = reference.conv_stats_backward(
        dy, None, None, positive.x, *(positive.affine or (None,) * 3), "none", 0.0,
        positive.weight, y, mean, case.stride, case.padding, case.dilation, case.groups,
        True, True, True, None, None if grad_in is None else grad_in.double().abs(),
    )  # fmt: skip
    return [grad_x, grad_weight, *(g.abs() for g in affine if inputs.affine is not None)]


def check_statistics(assert_accurate, case: ConvCase, inputs: Inputs, act: str = "relu") -> None:
    """Runs conv_stats and checks all it returns, and the strides of y."""
    out = fused(case, inputs, act)
    _, k, h, w = out[0].shape
    assert out[0].stride() == (h * w * k, 1, w * k, k)
    expected = eager(case, inputs.double(), act)
    theirs = eager(case, inputs, act)
    for ours, their, true, terms in zip(
        out, theirs, expected, magnitudes(case, inputs), strict=True
    ):
        assert_accurate(ours, their, true, factor=FACTORS[case.algorithm], magnitude=terms.abs)


def given_gradients(case: ConvCase, inputs: Inputs, layout: str = "nchw") -> tuple[Tensor, ...]:
    """Random gradients of y, mean and m2."""
    y, mean, m2 = eager(case, inputs)
    grad_y = laid_out(torch.randn(y.shape).to(y.dtype), layout)
    return grad_y, torch.randn_like(mean), torch.randn_like(m2) / 16


def check_gradients(
    assert_accurate,
    case: ConvCase,
    inputs: Inputs,
    act: str = "relu",
    given: tuple[Tensor, ...] | None = None,
) -> None:
    """Runs conv_stats and its backward, and checks all gradients."""
    given = given or given_gradients(case, inputs)
    found = gradients(fused, case, inputs, act, given)
    theirs = gradients(eager, case, inputs, act, given)
    true = gradients(eager, case, inputs.double(), act, given)
    terms = gradient_magnitudes(case, inputs, given)
    for leaf, *each, term in zip(inputs.tensors(), found, theirs, true, terms, strict=True):
        assert each[0].shape == leaf.shape
        assert_accurate(*each, factor=FACTORS[case.algorithm], magnitude=term.abs)


def check_shared_gradients(
    assert_accurate, case: ConvCase, inputs: Inputs, act: str = "relu", layout: str = "nchw"
) -> None:
    """Checks the gradients where y's is to be scaled, and the activated input has another one."""
    grad_y, grad_mean, grad_m2 = given_gradients(case, inputs, layout)
    scale = torch.randn(case.k)
    grad_in = laid_out(torch.randn(inputs.x.shape).to(inputs.x.dtype), layout)
    y, mean, _ = fused(case, inputs, act)
    found = torch.ops.fastres.conv_stats_backward(
        grad_y, grad_mean, grad_m2, inputs.x, *(inputs.affine or (None,) * 3), act, SLOPE,
        inputs.weight, y, mean, case.stride, case.padding, case.dilation, case.groups,
        True, True, True, scale, grad_in, case.algorithm,
    )  # fmt: skip
    grad_x, *affine, grad_weight = found
    assert grad_x.stride() == (case.h * case.w * case.c, 1, case.w * case.c, case.c)

    def forked(case: ConvCase, inputs: Inputs, act: str) -> tuple[Tensor, ...]:
        return *eager(case, inputs, act), activated(inputs, act)

    scaled = grad_y.double() * scale.double()[:, None, None]
    given = scaled, grad_mean, grad_m2, grad_in
    true = gradients(forked, case, inputs.double(), act, given)
    theirs = gradients(forked, case, inputs, act, given)
    terms = gradient_magnitudes(case, inputs, given[:3], grad_in)
    ours = [grad_x, grad_weight, *(affine if inputs.affine is not None else ())]
    for our, their, exact, term in zip(ours, theirs, true, terms, strict=True):
        assert_accurate(our, their, exact, factor=FACTORS[case.algorithm], magnitude=term.abs)


def check_gradients_through_a_block_end(
    assert_accurate, case: ConvCase, inputs: Inputs, act: str = "relu", layout: str = "nchw"
) -> None:
    """Checks the gradients of a convolution and of the end of the block that activated its input.

    That end's y is the case's x, and the affine its constants.
    """
    dtype, shape = inputs.x.dtype, inputs.x.shape
    assert inputs.affine is not None
    residual = laid_out(torch.randn(shape).to(dtype), layout)
    grad_in = laid_out(torch.randn(shape).to(dtype), layout)
    activated = laid_out(ops.affine_add_act(inputs.x, *inputs.affine, residual, act=act), layout)
    geometry = case.stride, case.padding, case.dilation, case.groups
    y, mean, _ = torch.ops.fastres.conv_stats(
        activated, None, None, None, "none", 0.0, inputs.weight, *geometry, case.algorithm
    )
    grads = [torch.randn(y.shape).to(dtype), torch.randn_like(mean), torch.randn_like(mean) / 16]
    scale = torch.randn(case.k)
    call = torch.ops.fastres.conv_stats_backward

    def backward(activation: str, *wanted: bool) -> tuple[Tensor, ...]:
        return call(
            *grads, inputs.x, *inputs.affine, activation, SLOPE, inputs.weight, y, mean, *geometry,
            *wanted, scale, grad_in, case.algorithm, residual, activated,
        )  # fmt: skip

    found = backward(act, True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        flags = (wanted[0], *(wanted[1],) * 3, wanted[2])
        for ours, alone, flag in zip(found, backward(act, *wanted), flags, strict=True):
            assert torch.equal(ours, alone) if flag else alone.shape == (0,)

    def separate(wide: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The same in two operators of the reference."""
        constants = [wide(t) for t in (inputs.weight, y, mean)]
        grad, _, _, _, grad_weight = reference.conv_stats_backward(
            *map(wide, grads), wide(activated), None, None, None, "none", 0.0, *constants,
            *geometry, True, False, True, wide(scale), wide(grad_in),
        )  # fmt: skip
        end = reference.affine_add_act_backward(
            grad, *map(wide, (inputs.x, *inputs.affine, residual)), None, None, None, act, SLOPE,
            True,
        )  # fmt: skip
        return [*end[:4], grad_weight]

    # Of sums over an image, terms as large as all of the gradients' are.
    terms = separate(lambda t: t.double())
    factor = FACTORS[case.algorithm]
    for ours, theirs, true in zip(found, separate(lambda t: t), terms, strict=True):
        assert_accurate(
            ours, theirs, true, factor=factor, magnitude=lambda true=true: true.abs() * 64
        )
