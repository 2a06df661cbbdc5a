"""Gradients of the operators: against float64, twice, through autocast."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import BLOCKS, block_arguments, eager_block, fused_block, make_block
from conv_case import ACTIVATIONS, FACTORS, PATHS, ConvCase, Inputs, eager, fused, make_inputs, same
from torch import Tensor

from fastres import ops

pytestmark = pytest.mark.usefixtures("backend")

GEOMETRIES = (
    "1x1/2",
    "3x3",
    "3x3 winograd",
    "3x3/2",
    "3x3 groups of 4, /2",
    "3x3 groups of 1",
    "groups of 3 to 5",
    "4x4",
    "3x3 dilated, groups of 4",
    "asymmetric padding",
    "padding beyond the kernel",
)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def conv_gradients(function, case: ConvCase, inputs: Inputs, act: str) -> tuple[Tensor, ...]:
    """Gradients of x, shift and residual, for a gradient of the output that is not constant."""
    wanted = leaves(inputs.x, inputs.shift, inputs.residual)
    x, shift, residual = wanted
    out = function(case, inputs._replace(x=x, shift=shift, residual=residual), act)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return torch.autograd.grad(out, wanted, weights.to(out.dtype))


def double(inputs: Inputs) -> Inputs:
    return Inputs(*(None if tensor is None else tensor.double() for tensor in inputs))


def check_gradients(assert_accurate, ours, theirs, exact, algorithm: str = "direct") -> None:
    for our, their, true in zip(ours, theirs, exact, strict=True):
        assert_accurate(our, their, true, factor=FACTORS[algorithm], magnitude=true.abs)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_conv_against_float64(assert_accurate, name, act):
    case = PATHS[name]
    inputs = make_inputs(case, residual_layout="nchw")
    exact = conv_gradients(eager, case, double(inputs), act)
    theirs = conv_gradients(eager, case, inputs, act)
    ours = conv_gradients(fused, case, inputs, act)
    check_gradients(assert_accurate, ours, theirs, exact, case.algorithm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_conv_in_reduced_dtypes(assert_accurate, dtype):
    case = PATHS["3x3 groups of 4"]
    inputs = make_inputs(case, dtype, residual_layout="nchw")
    exact = conv_gradients(eager, case, double(inputs), "silu")
    theirs = conv_gradients(eager, case, inputs, "silu")
    ours = conv_gradients(fused, case, inputs, "silu")
    check_gradients(assert_accurate, ours, theirs, exact)


@pytest.mark.parametrize("slope", [-0.5, 0.0])
def test_conv_leaky_relu_with_slopes_that_lose_the_sign(slope):
    inputs = make_inputs(same(5, 5))
    packed = ops.pack_conv_weight(inputs.weight)
    (x,) = leaves(inputs.x)
    arguments = same(5, 5).arguments()
    before = ops.conv_bn_act(x, packed, inputs.shift, **arguments)
    expected = torch.nn.functional.leaky_relu(before, slope)
    out = ops.conv_bn_act(x, packed, inputs.shift, act="leaky_relu", act_slope=slope, **arguments)
    (ours,) = torch.autograd.grad(out.sum(), x)
    (true,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, true)


def test_conv_only_what_is_asked_for():
    case = PATHS["3x3"]
    inputs = make_inputs(case, residual_layout="nchw")
    for name in ("x", "shift", "residual"):
        (leaf,) = leaves(getattr(inputs, name))
        fused(case, inputs._replace(**{name: leaf}), "relu").sum().backward()
        assert leaf.grad.shape == leaf.shape
    assert not fused(case, inputs, "relu").requires_grad
    with torch.no_grad():
        assert not fused(case, inputs._replace(x=leaves(inputs.x)[0]), "relu").requires_grad


def test_conv_of_an_empty_batch():
    case = PATHS["4x4"]
    inputs = make_inputs(case)
    x, shift = leaves(inputs.x[:0], inputs.shift)
    fused(case, inputs._replace(x=x, shift=shift), "relu").sum().backward()
    assert x.grad.shape == x.shape
    assert shift.grad.count_nonzero() == 0


@pytest.mark.parametrize("act", ["none", "relu", "silu"])
def test_conv_twice(act):
    case = PATHS["3x3 groups of 4, /2"]._replace(h=5, w=3, n=1)
    inputs = make_inputs(case)

    def penalty(function, inputs: Inputs) -> tuple[Tensor, ...]:
        wanted = leaves(inputs.x, inputs.shift)
        x, shift = wanted
        out = function(case, inputs._replace(x=x, shift=shift), act)
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    ours, true = penalty(fused, inputs), penalty(eager, double(inputs))
    for our, their in zip(ours, true, strict=True):
        torch.testing.assert_close(our.double(), their, rtol=1e-4, atol=1e-3)


def block_gradients(function, case, x, constants, act: str) -> tuple[Tensor, ...]:
    x, *shifts = leaves(x, *constants.shifts)
    out = function(case, x, constants._replace(shifts=shifts), act)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    return torch.autograd.grad(out, [x, *shifts], weights.to(out.dtype))


@pytest.mark.parametrize(
    "name", ["ResNet, winograd", "ResNeXt 4, /2", "dilated", "groups of 6, /2"]
)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bottleneck_against_float64(assert_accurate, name, act):
    case = BLOCKS[name]
    x, constants = make_block(case)
    exact = block_gradients(eager_block, case, x.double(), constants.map(Tensor.double), act)
    theirs = block_gradients(eager_block, case, x, constants, act)
    ours = block_gradients(fused_block, case, x, constants, act)
    check_gradients(assert_accurate, ours, theirs, exact, case.algorithm)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_bottleneck_twice(act):
    case = BLOCKS["ResNeXt 8"]._replace(h=5, w=3, n=1)
    x, constants = make_block(case)

    def penalty(function, x, constants) -> Tensor:
        (x,) = leaves(x)
        out = function(case, x, constants, act)
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return second

    true = penalty(eager_block, x.double(), constants.map(Tensor.double))
    ours = penalty(fused_block, x, constants).double()
    assert (ours - true).norm() <= 1e-5 * true.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    case = PATHS["3x3"]
    inputs = make_inputs(case, residual_layout="nchw")
    reduced = inputs._replace(x=inputs.x.to(dtype), residual=inputs.residual.to(dtype))
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale)

    def run(inputs: Inputs) -> Tensor:
        x, _, _, shift, residual = inputs
        return ops.conv_bn_act(x, packed, shift, residual, **case.arguments(), act="relu")

    expected = run(reduced)
    with torch.autocast("cpu", dtype):
        # Only x and residual are cast: the shift keeps its float32 digits.
        assert torch.equal(run(inputs), expected)
        assert torch.equal(run(inputs._replace(x=reduced.x)), expected)
        assert torch.equal(run(reduced), expected)
        (x,) = leaves(inputs.x)
        run(inputs._replace(x=x)).sum().backward()
        assert x.grad.dtype == torch.float32
        wide = run(double(inputs))
    assert wide.dtype == torch.float64
    with pytest.raises(TypeError, match="residual must be"):
        run(inputs._replace(x=reduced.x))


def test_autocast_of_a_bottleneck():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    expected = fused_block(case, x.bfloat16(), constants, "relu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused_block(case, x, constants, "relu"), expected)


def test_packed_weights_take_no_gradient():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    arguments = block_arguments(case, constants)
    with pytest.raises(RuntimeError, match="floating"):
        arguments[0].requires_grad_()
    assert not ops.grouped_bottleneck(x, *arguments, groups=case.groups).requires_grad
