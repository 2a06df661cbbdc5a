"""A small ResNeXt through ``accelerate`` and ``freeze``: for whatever kernels are set."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from nets import randomised, runs_fused
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

import fastres


def small_resnext() -> nn.Module:
    """Stem, pooling, and two grouped bottlenecks, one of them with a stride and a projection."""
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(16, 8, 2, shortcut, groups=4, base_width=32),
        Bottleneck(32, 8, groups=4, base_width=32),
    )


def check_inference(assert_accurate: Callable[..., None]) -> None:
    """Accelerated and frozen, it runs fused, is accurate, and follows its parameters."""
    model, x = randomised(small_resnext()), torch.randn(2, 3, 19, 14)
    frozen = fastres.freeze(model)
    for staleness in ("content", "version"):
        fused = fastres.accelerate(copy.deepcopy(model), staleness=staleness)
        assert runs_fused(fused, x)
        _compare(assert_accurate, fused, model, x)
        with torch.no_grad():
            again = fused(x)
            assert torch.equal(again, frozen(x))
            fused[0].weight.mul_(2)
            fused[4].bn1.running_mean.add_(1)
        changed = fastres.restore(copy.deepcopy(fused))
        _compare(assert_accurate, fused, changed, x)


@torch.no_grad()
def _compare(
    assert_accurate: Callable[..., None], fused: nn.Module, model: nn.Module, x: Tensor
) -> None:
    exact = copy.deepcopy(model).double()(x.double())
    assert_accurate(fused(x), model(x), exact, magnitude=exact.abs)


def check_training(assert_accurate: Callable[..., None], **options: str) -> None:
    """A step gives eager's output, running statistics and gradients."""
    eager, x = small_resnext().train(), torch.randn(4, 3, 19, 14)
    fused, exact = fastres.accelerate(copy.deepcopy(eager), **options), copy.deepcopy(eager)
    outputs, gradients = [], []
    for model, image in ((fused, x), (eager, x), (exact.double(), x.double())):
        leaf = image.clone().requires_grad_()
        out = model(leaf)
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append([leaf.grad, *(p.grad for p in model.parameters())])
    assert_accurate(*outputs, magnitude=outputs[2].abs)
    for ours, theirs, true in zip(*gradients, strict=True):
        assert_accurate(ours, theirs, true, factor=4, magnitude=lambda true=true: true.abs() * 64)
    for ours, theirs in zip(fused.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
