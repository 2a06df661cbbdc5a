"""Training through accelerate: gradients, statistics and what is fused, block by block."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from nets import Basic, Bottleneck, Function, TinyNet, conv_bn
from torch import nn
from torch.nn import functional as F
from training_step import check_training, gradients, randomised_for_training, training_ops

import fastres

BLOCKS = {
    "conv, BN": lambda: nn.Sequential(*conv_bn(16, 24)),
    "conv, BN, ReLU": lambda: nn.Sequential(*conv_bn(16, 24), nn.ReLU(inplace=True)),
    "conv with bias": lambda: nn.Sequential(
        nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 5, 1), nn.ReLU()
    ),
    "basic": Basic,
    "basic, +=": lambda: Basic(add=lambda y, x: y.add_(x), act=lambda y: F.relu(y, inplace=True)),
    "basic, x + y": lambda: Basic(add=lambda y, x: x + y),
    "basic /2": lambda: Basic(stride=2, shortcut=conv_bn(8, 8, 1, stride=2)),
    "basic, leaky": lambda: Basic(act=lambda y: F.leaky_relu(y, 0.2)),
    "bottleneck": Bottleneck,
    "bottleneck with a downsample": lambda: Bottleneck(out=24),
    "bottleneck, groups": lambda: Bottleneck(groups=4, stride=2, out=32),
    "bottleneck, depthwise": lambda: Bottleneck(groups=8, act=nn.ReLU6),
    "bottleneck, dilated": lambda: Bottleneck(dilation=2, act=nn.SiLU),
    "BN before an act that others read": lambda: Function(
        lambda m, x: m.a(F.relu(y := m.bn(m.conv(x)))) + y,
        conv=nn.Conv2d(16, 8, 3, padding=1),
        bn=nn.BatchNorm2d(8),
        a=nn.Conv2d(8, 8, 1),
    ),
    "two convolutions of one activation": lambda: Function(
        lambda m, x: m.a(y := m.stem(x)) * m.b(y),
        stem=nn.Sequential(*conv_bn(16, 8), nn.ReLU()),
        a=nn.Conv2d(8, 8, 3),
        b=nn.Conv2d(8, 8, 3),
    ),
    "an activation that pooling reads": lambda: nn.Sequential(
        *conv_bn(16, 8), nn.ReLU(), nn.MaxPool2d(2), *conv_bn(8, 8), nn.AvgPool2d(2)
    ),
    "BN first": lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)),
}


def input_for(block: nn.Module) -> torch.Tensor:
    return torch.randn(3, 8 if isinstance(block, Basic) else 16, 13, 9)


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_gradients(make, mode):
    block = randomised_for_training(make())
    if mode != "train":
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms[:1] if mode == "mixed" else norms:
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            norm.eval()
    # In front of BatchNorm a bias does nothing.
    noise = () if mode == "eval" else ("0.bias", "conv.bias")
    check_training(block, input_for(block), noise=noise)


NORMS = {
    "momentum": {"momentum": 0.7},
    "momentum=None": {"momentum": None},
    "eps": {"eps": 0.3},
    "affine=False": {"affine": False},
    "track_running_stats=False": {"track_running_stats": False},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS.keys())
def test_batch_norm_options(options):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(), *conv_bn(8, 4), nn.ReLU()
    )
    x = torch.randn(4, 3, 9, 8)
    fused = check_training(randomised_for_training(net), x, noise=("0.bias",))
    fused.eval()
    plain = fastres.restore(copy.deepcopy(fused))
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_one_value_per_channel_raises_what_pytorch_raises():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train()
    messages = []
    for model in (net, fastres.accelerate(copy.deepcopy(net))):
        with pytest.raises(ValueError, match="more than 1 value per channel") as error:
            model(torch.randn(1, 3, 3, 3))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_what_runs():
    net = fastres.accelerate(TinyNet().train())
    x = torch.randn(2, 3, 33, 31)
    # 11 convolutions; a pass after the stem and one at the end of each of the three blocks.
    assert training_ops(net, x) == {
        "conv_stats": 11, "conv_stats_backward": 11, "affine_add_act": 4
    }  # fmt: skip


def test_frozen_parameters_get_no_gradient():
    net = randomised_for_training(TinyNet())
    for name, parameter in net.named_parameters():
        if "layer1" in name or "conv1" in name:
            parameter.requires_grad_(False)
    check_training(net, torch.randn(3, 3, 33, 31))


@pytest.mark.parametrize("network", [torchvision.models.resnet18, torchvision.models.googlenet])
def test_no_gradient_is_wasted(network):
    """A frozen backbone asks for no gradient: its convolutions have no backward at all."""
    net = network(weights=None, num_classes=3).train()
    net.requires_grad_(False)
    net.fc.requires_grad_()
    fused = fastres.accelerate(net)
    x = torch.randn(2, 3, 64, 64)
    with torch.profiler.profile() as profile:
        out = fused(x)
        (out if isinstance(out, torch.Tensor) else out.logits).sum().backward()
    names = {event.name for event in profile.events()}
    assert "fastres::conv_stats" in names
    assert "fastres::conv_stats_backward" not in names


def test_layouts_are_eagers():
    net = randomised_for_training(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(net))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 3, 20, 22).to(memory_format=memory_format)
        for inner in ("layer1", "layer2"):
            seen = []
            for model in (net, fused):
                hook = getattr(model, inner).register_forward_hook(
                    lambda m, args, out, to=seen: to.append((args[0].stride(), out.stride()))
                )
                model(x)
                hook.remove()
            assert seen[0] == seen[1]
        found = gradients(fused, x)
        assert found.pop("input").stride() == x.stride()
        parameters = dict(fused.named_parameters())
        assert all(found[name].stride() == parameters[name].stride() for name in found)
