"""Training whole networks through accelerate: gradients against float64, and steps like eager's."""

from __future__ import annotations

import collections
import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from training_step import check_training, training_ops

import fastres

NAMES = sorted(fastres.models.imagenet.CONSTRUCTORS)


def make(name: str) -> nn.Module:
    return fastres.restore(getattr(fastres.models, name)(weights=None, num_classes=5)).train()


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    # Images this small and batches this large keep the last layers' statistics from being noise.
    # A sign that flips there moves all gradients by a hundredth: the more neighbours.
    check_training(make(name), torch.randn(4, 3, 48, 40), neighbours=6)


@pytest.mark.parametrize(
    ("name", "convolutions", "ends"), [("resnext50_32x4d", 53, 17), ("resnet18", 20, 9)]
)
def test_everything_is_fused(name, convolutions, ends):
    net = fastres.accelerate(make(name))
    assert training_ops(net, torch.randn(2, 3, 64, 64)) == {
        "conv_stats": convolutions, "conv_stats_backward": convolutions, "affine_add_act": ends
    }  # fmt: skip


def autocast_gradients(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    wide = x.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16, enabled=not wide):
        loss = F.cross_entropy(net(x), torch.arange(len(x)) % 5)
    loss.backward()
    return {name: p.grad.double() for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("groups", "width"), [(1, 64), (32, 4)], ids=["ResNet", "ResNeXt, groups of 4 to 32"]
)
def test_gradients_under_autocast(groups, width):
    """Against float64, at most twice as far off as eager's in bfloat16, for every parameter.

    Of several batches together: the five errors of the last bias are small by luck in one.
    """
    net = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [2, 1, 1, 1], 5, groups=groups, width_per_group=width
    )
    ours, eager = collections.Counter[str](), collections.Counter[str]()
    for _ in range(4):
        x = torch.randn(8, 3, 64, 64)
        exact = autocast_gradients(copy.deepcopy(net).double(), x.double())
        for model, errors in ((fastres.accelerate(copy.deepcopy(net)), ours), (net, eager)):
            found = autocast_gradients(copy.deepcopy(model), x)
            for name, expected in exact.items():
                errors[name] += (found[name] - expected).square().sum().item()
    for name, error in ours.items():
        assert error <= 2**2 * eager[name], name


def losses(net: nn.Module, memory_format: torch.memory_format) -> torch.Tensor:
    net = copy.deepcopy(net).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(20):
        x = torch.randn(16, 3, 32, 32, generator=generator).to(memory_format=memory_format)
        target = torch.randint(0, 5, (16,), generator=generator)
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def test_twenty_steps_follow_eager():
    """Losses within what eager differs from itself in the other memory format."""
    net = make("resnet18")
    eager = losses(net, torch.contiguous_format)
    drift = (losses(net, torch.channels_last) - eager).abs()
    ours = losses(fastres.accelerate(copy.deepcopy(net)), torch.contiguous_format)
    difference = (ours - eager).abs()
    assert difference[0] < 1e-5
    assert difference.max() <= max(2 * drift.max(), 1e-5)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "googlenet", "regnet_y_400mf"])
def test_other_architectures(name):
    net = getattr(torchvision.models, name)(weights=None, num_classes=5).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fused = fastres.accelerate(copy.deepcopy(net))
    x = torch.randn(4, 3, 64, 64)
    for _ in range(2):
        outs = [m(x) for m in (fused, net)]
        logits = [out if isinstance(out, torch.Tensor) else out.logits for out in outs]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
        for out in logits:
            out.square().mean().backward()
    assert training_ops(fused, x)["conv_stats"] > 30
