"""Ends of blocks to test, and what eager PyTorch and float64 make of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from conv_case import SLOPE, laid_out
from torch import Tensor

from fastres import ops, reference

SHAPES = ((2, 17, 5, 7), (1, 1, 1, 1), (3, 64, 13, 9), (2, 33, 1, 5), (1, 5, 7, 1), (2, 3, 2, 131))
SHORTCUTS = ("none", "identity", "affine")


class Inputs(NamedTuple):
    """The operator's tensors, in its order."""

    y: Tensor
    mean: Tensor
    scale: Tensor
    bias: Tensor
    residual: Tensor | None = None
    res_mean: Tensor | None = None
    res_scale: Tensor | None = None
    res_bias: Tensor | None = None

    def map(self, function) -> Inputs:
        return Inputs(*(None if t is None else function(t) for t in self))

    def present(self) -> list[Tensor]:
        return [t for t in self if t is not None]


def make_inputs(
    shape=(2, 17, 5, 7),
    shortcut: str = "affine",
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_last",
    mean: float = 0.0,
) -> Inputs:
    def affine() -> tuple[Tensor, Tensor, Tensor]:
        c = shape[1]
        return mean + torch.randn(c) / 4, torch.randn(c), torch.randn(c) / 4

    def image() -> Tensor:
        return laid_out((mean + torch.randn(shape)).to(dtype), layout)

    inputs = Inputs(image(), *affine())
    if shortcut == "identity":
        inputs = inputs._replace(residual=image())
    elif shortcut == "affine":
        inputs = Inputs(*inputs[:4], image(), *affine())
    return inputs


def fused(inputs: Inputs, act: str = "relu") -> Tensor:
    return ops.affine_add_act(*inputs, act=act, act_slope=SLOPE)


def eager(inputs: Inputs, act: str = "relu") -> Tensor:
    """BatchNorm (as its affine), addition and activation, one after the other."""

    def affine(x: Tensor, *constants: Tensor | None) -> Tensor:
        if constants[0] is None:
            return x
        mean, scale, bias = (t[:, None, None] for t in constants)
        return ((x.to(mean.dtype) - mean) * scale + bias).to(x.dtype)

    out = affine(*inputs[:4])
    if inputs.residual is not None:
        out = out + affine(*inputs[4:])
    return reference.apply_act(out, act, SLOPE)


def gradients(function, inputs: Inputs, act: str, grad: Tensor) -> list[Tensor]:
    leaves = inputs.map(lambda t: t.detach().clone().requires_grad_())
    out = function(leaves, act)
    return list(torch.autograd.grad(out, leaves.present(), grad.to(out.dtype)))


def magnitudes(inputs: Inputs, grad: Tensor) -> list[Tensor]:
    """Of the gradients' terms: sums of absolute values."""

    def positive(x, mean, scale, bias) -> list[Tensor | None]:
        if x is None or mean is None:
            return [None if x is None else x.abs(), None, None, None]
        return [(x - mean[:, None, None]).abs(), torch.zeros_like(mean), scale.abs(), bias.abs()]

    inputs = inputs.map(Tensor.double)
    terms = Inputs(*positive(*inputs[:4]), *positive(*inputs[4:]))
    return [g.abs() for g in gradients(eager, terms, "none", grad.abs())]


def check(assert_accurate, inputs: Inputs, act: str = "relu", grad_layout: str = "nchw") -> None:
    out, exact = fused(inputs, act), inputs.map(Tensor.double)
    _, c, h, w = inputs.y.shape
    assert out.stride() == (h * w * c, 1, w * c, c)
    terms = sum(t.double().abs() for t in (out, inputs.y, inputs.residual) if t is not None)
    assert_accurate(out, eager(inputs, act), eager(exact, act), magnitude=terms.abs)

    grad = laid_out(torch.randn(out.shape).to(out.dtype), grad_layout)
    found = gradients(fused, inputs, act, grad)
    theirs = gradients(eager, inputs, act, grad)
    true = gradients(eager, exact, act, grad)
    for ours, their, exactly, term in zip(
        found, theirs, true, magnitudes(inputs, grad), strict=True
    ):
        assert_accurate(ours, their, exactly, magnitude=term.abs)


def check_unscaled(
    assert_accurate, inputs: Inputs, act: str = "relu", layout: str = "nchw"
) -> None:
    """Checks the gradient that y's and the residual's are both made of."""
    backward = torch.ops.fastres.affine_add_act_backward
    grad = laid_out(torch.randn(inputs.y.shape).to(inputs.y.dtype), layout)
    found = backward(grad, *inputs, act, SLOPE, True)
    for i, (ours, separate) in enumerate(
        zip(found, backward(grad, *inputs, act, SLOPE), strict=True)
    ):
        assert ours.shape == (0,) if i == 4 else i == 0 or torch.equal(ours, separate), i
    (theirs, *_), (true, *_) = (
        reference.affine_add_act_backward(function(grad), *inputs.map(function), act, SLOPE, True)
        for function in (lambda t: t, Tensor.double)
    )
    assert found[0].stride() == theirs.stride()
    assert_accurate(found[0], theirs, true, magnitude=grad.double().abs)
