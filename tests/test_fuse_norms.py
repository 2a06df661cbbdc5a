"""A BatchNorm that follows no convolution makes one pass, its activation included."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Function, check, ops, randomised, reasons
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.rewrite.fuse import Left


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7)


def _pre_activation(act=F.relu, bn=None):
    return Function(
        lambda m, x: m.conv(act(m.bn(x))) + x,
        bn=nn.BatchNorm2d(8) if bn is None else bn,
        conv=nn.Conv2d(8, 8, 3, padding=1),
    )


ACTS = {
    "relu": F.relu,
    "relu in place": nn.ReLU(inplace=True),
    "silu": F.silu,
    "leaky relu": lambda y: F.leaky_relu(y, 0.3),
    "relu6": nn.ReLU6(),
    "none": lambda y: y,
}


@pytest.mark.parametrize("act", ACTS)
def test_activations(act, x, assert_accurate):
    model = _pre_activation(ACTS[act])
    check(model, x, assert_accurate, conv_bn_act=1, affine_add_act=1)
    (fused,) = (f for f in fastres.explain(model).fused if f.op == "affine_add_act")
    assert fused.modules[0] == "bn"
    assert len(fused.modules) == (1 if act == "none" else 2)


NORMS = {
    "no affine": nn.BatchNorm2d(8, affine=False),
    "large epsilon": nn.BatchNorm2d(8, eps=0.5),
    "sync": nn.SyncBatchNorm(8),
    "weight without bias": nn.BatchNorm2d(8),
}
NORMS["weight without bias"].bias = None


@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm, x, assert_accurate):
    check(
        _pre_activation(bn=copy.deepcopy(NORMS[norm])),
        x,
        assert_accurate,
        conv_bn_act=1,
        affine_add_act=1,
    )


def test_mean_much_larger_than_deviation(x, assert_accurate):
    """The mean is taken away first: a folded shift would lose three digits."""
    model = _pre_activation()
    randomised(model)
    model.bn.running_mean += 1000
    fastres.accelerate(model)
    x = x + 1000
    plain = fastres.restore(copy.deepcopy(model))
    with torch.no_grad():
        exact = plain.double()(x.double()) - x
        plain.float()
        assert_accurate(model(x) - x, plain(x) - x, exact, magnitude=exact.abs)


def test_other_activations_run_as_they_were(x, assert_accurate):
    check(_pre_activation(torch.tanh), x, assert_accurate, conv_bn_act=1, affine_add_act=1)


def test_a_write_between_norm_and_activation(x, assert_accurate):
    def forward(m, x):
        s = x * 1
        y = m.bn(s)
        s.zero_()
        return m.conv(F.relu(y)) + s

    model = Function(forward, bn=nn.BatchNorm2d(8), conv=nn.Conv2d(8, 8, 3, padding=1))
    check(model, x, assert_accurate, conv_bn_act=1, affine_add_act=1)
    (fused,) = (f for f in fastres.explain(model).fused if f.op == "affine_add_act")
    assert fused.modules == ("bn",)


def test_a_norm_of_what_may_be_no_image_stays(x):
    model = Function(
        lambda m, x: m.conv(x).mean() + F.batch_norm(x.flatten(2), m.mean, m.var).sum(),
        conv=nn.Conv2d(8, 8, 1),
    )
    model.register_buffer("mean", torch.zeros(8))
    model.register_buffer("var", torch.ones(8))
    assert reasons(model.eval()) == {":batch_norm": "its input may not have 4 dimensions"}


def test_without_convolutions_nothing_is_fused(x):
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()).eval()
    assert fastres.explain(model).left == [Left("0", "its BatchNorm follows no convolution")]
    assert ops(model) == {}


def test_parameters_may_change(x):
    model = fastres.accelerate(randomised(_pre_activation()))
    with torch.no_grad():
        model(x)
        for change in (
            lambda bn: bn.weight.data.mul_(2),
            lambda bn: bn.running_var.add_(1),
            lambda bn: bn.load_state_dict(nn.BatchNorm2d(8).state_dict()),
            lambda bn: setattr(bn, "bias", None),
        ):
            change(model.bn)
            expected = fastres.restore(copy.deepcopy(model))(x)
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, x, assert_accurate):
    check(
        _pre_activation().to(dtype), x.to(dtype), assert_accurate, conv_bn_act=1, affine_add_act=1
    )


def test_autocast(x):
    model = randomised(_pre_activation())
    plain = copy.deepcopy(model)
    fastres.accelerate(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = model(x), plain(x)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


def test_frozen_and_scripted(x):
    model = randomised(_pre_activation())
    frozen = fastres.freeze(model)
    with torch.no_grad():
        expected = model(x)
        for module in (frozen, torch.jit.script(frozen), copy.deepcopy(frozen)):
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_compiled(x):
    model = randomised(_pre_activation())
    with torch.no_grad():
        expected = model(x)
        out = torch.compile(model, backend="fastres")(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
