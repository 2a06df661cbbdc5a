"""unpack: a frozen graph on PyTorch's own operators."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from nets import Basic, Bottleneck, Function, TinyNet, conv_bn, randomised
from torch import nn
from torch.nn import functional as F

import fastres


@pytest.fixture
def strict():
    before = fastres.get_numerics()
    fastres.set_numerics("strict")
    yield
    fastres.set_numerics(before)


NETWORKS = {
    "blocks": (TinyNet, 3),
    "silu, asymmetric padding": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, (4, 2), padding="same"),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            Bottleneck(dilation=2, groups=2, act=nn.SiLU),
        ),
        3,
    ),
    "strided shortcut": (lambda: Bottleneck(width=16, stride=2, out=48), 16),
    "basic block, leaky": (lambda: Basic(act=lambda x: F.leaky_relu(x, 0.2)), 8),
    "BatchNorm first": (
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6(), nn.Conv2d(3, 8, 3), nn.Sigmoid()),
        3,
    ),
}


@pytest.mark.parametrize(("make", "channels"), NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize(("numerics", "factor"), [("strict", 2.0), ("fast", 4.0)])
@torch.no_grad()
def test_as_accurate_as_the_operators(make, channels, numerics, factor, strict, assert_accurate):
    model, x = randomised(make()), torch.randn(2, channels, 21, 24)
    exact = copy.deepcopy(model).double()(x.double())
    fastres.set_numerics(numerics)
    unpacked = fastres.unpack(fastres.freeze(model))
    assert "fastres" not in unpacked.code
    assert_accurate(unpacked(x), model(x), exact, factor=factor, magnitude=exact.abs)


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_direct_weights_are_those_that_were_folded(groups, strict):
    model = randomised(conv_bn(32, 64, groups=groups))
    conv, norm = model
    unpacked = fastres.unpack(fastres.freeze(model))
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    folded = conv.weight.detach() * scale.float()[:, None, None, None]
    assert torch.equal(unpacked.get_buffer("_weight_0"), folded)


def test_winograds_weights_are_recovered_to_its_rounding():
    model = randomised(nn.Sequential(nn.Conv2d(64, 48, 3, padding=1))).requires_grad_(False)
    (conv,) = model
    weight = fastres.unpack(fastres.freeze(model)).get_buffer("_weight_0")
    ulp = torch.finfo(torch.float32).eps * conv.weight.abs().max()
    assert (weight - conv.weight).abs().max() <= 4 * ulp


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_dtypes_are_rounded_where_the_operators_round(dtype):
    model, x = randomised(TinyNet()).to(dtype), torch.randn(2, 3, 32, 24, dtype=dtype)
    frozen = fastres.freeze(model)
    out = fastres.unpack(frozen)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, frozen(x), rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


def test_shares_nothing_with_the_frozen_module():
    frozen, x = fastres.freeze(randomised(TinyNet())), torch.randn(2, 3, 32, 24)
    before = frozen(x)
    unpacked = fastres.unpack(frozen)
    expected = unpacked(x)
    assert not any(name.startswith("_weight") for name, _ in frozen.named_buffers())
    for tensor in unpacked.state_dict().values():
        tensor.zero_()
    assert torch.equal(frozen(x), before)
    assert torch.equal(fastres.unpack(frozen)(x), expected)


def test_loads_without_fastres(tmp_path):
    unpacked = fastres.unpack(fastres.freeze(randomised(TinyNet())))
    x = torch.randn(2, 3, 32, 24)
    torch.save((unpacked, x, unpacked(x)), tmp_path / "unpacked.pt")
    code = (
        "import sys, torch\n"
        "unpacked, x, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.testing.assert_close(unpacked(x), expected)\n"
        "assert 'fastres' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "unpacked.pt")], check=True)


def test_keeps_arguments_outputs_and_what_was_not_fused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = Function(
        lambda m, x: {"out": m.branch(m.conv(x))}, conv=nn.Conv2d(3, 8, 3), branch=Branch()
    )
    x = torch.randn(1, 3, 8, 8)
    unpacked = fastres.unpack(fastres.freeze(model.eval()))
    torch.testing.assert_close(unpacked(x)["out"], model(x)["out"])


def test_errors():
    with pytest.raises(TypeError, match="frozen must be a GraphModule, got Conv2d"):
        fastres.unpack(nn.Conv2d(1, 1, 1))
    foreign = torch.fx.symbolic_trace(lambda x: torch.ops.fastres.content_hash([x]))
    with pytest.raises(ValueError, match=r"fastres\.content_hash is not one of freeze's operators"):
        fastres.unpack(foreign)


@pytest.mark.parametrize("make", [TinyNet, lambda: nn.Sequential(TinyNet())])
@torch.no_grad()
def test_constants_of_another_rewriting_keep_their_names(make):
    model, x = randomised(make()), torch.randn(2, 3, 21, 24)
    expected = model(x)
    unpacked = fastres.unpack(fastres.freeze(model))
    for again in (
        fastres.accelerate(copy.deepcopy(unpacked)),
        fastres.freeze(unpacked),
        fastres.unpack(fastres.freeze(unpacked)),
        fastres.freeze(fastres.freeze(model)),
        fastres.unpack(fastres.freeze(fastres.freeze(model))),
        fastres.accelerate(fastres.freeze(model)),
    ):
        torch.testing.assert_close(again(x), expected, rtol=1e-3, atol=1e-4)
