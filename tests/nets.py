"""Small networks in the ways that people write them, and what the rewriting tests do with them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastres
from fastres import _library

if not _library.has_kernels("cpu"):
    # accelerate leaves models alone where there are no kernels; asked for, the reference will do.
    fastres.set_backend("reference")


def randomised(model: nn.Module) -> nn.Module:
    """The model in eval mode, with BatchNorms that fold into something."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model.eval()


def ops(model: nn.Module) -> dict[str, int]:
    """How many of each operator a model runs."""
    return dict(Counter(fused.op for fused in fastres.explain(model).fused))


def reasons(model: nn.Module) -> dict[str, str]:
    """What a model leaves alone, and why."""
    return {left.module: left.reason for left in fastres.explain(model).left}


def runs_fused(model: nn.Module, *inputs: Any) -> bool:
    """Whether a call of the model runs an operator of fastres."""
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(*inputs)
    convolutions = (
        "fastres::conv_",
        "fastres::live_",
        "fastres::grouped_bottleneck",
        "fastres::bottleneck_",
    )
    return any(event.name.startswith(convolutions) for event in profile.events())


@torch.no_grad()
def check(model: nn.Module, x: Tensor, assert_accurate: Callable[..., None], **counts: int) -> None:
    """Accelerates a model: fused as counted, as accurate as before, and with the same strides."""
    randomised(model)
    exact = copy.deepcopy(model).double()(x.double())
    before = x.clone()
    eager = model(x)
    assert torch.equal(x, before) or any(getattr(m, "inplace", False) for m in model.modules())
    x.copy_(before)
    assert ops(model) == counts
    fastres.accelerate(model)
    assert runs_fused(model, x.clone()) == bool(counts)
    numerics = fastres.get_numerics()
    for setting, factor in (("strict", 2.0), ("fast", 4.0)):
        fastres.set_numerics(setting)
        out = model(x)
        x.copy_(before)
        assert_accurate(out, eager, exact, factor=factor, magnitude=exact.abs)
        assert out.stride() == eager.stride() or 1 in out.shape[-2:]
    fastres.set_numerics(numerics)


def conv_bn(channels_in: int, channels_out: int, kernel: int = 3, **kwargs: Any) -> nn.Sequential:
    kwargs.setdefault("padding", kernel // 2)
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, bias=False, **kwargs),
        nn.BatchNorm2d(channels_out),
    )


class Basic(nn.Module):
    """A residual block whose addition and activation are handed in."""

    def __init__(
        self,
        add: Callable[[Tensor, Tensor], Tensor] = torch.add,
        act: Callable[[Tensor], Tensor] = torch.relu,
        stride: int = 1,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(8, 8, stride=stride)
        self.conv2, self.bn2 = conv_bn(8, 8)
        self.add, self.act = add, act
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act(self.add(y, self.shortcut(x)))


class Bottleneck(nn.Module):
    """A bottleneck with everything that may vary."""

    def __init__(
        self,
        width: int = 8,
        groups: int = 1,
        stride: int = 1,
        dilation: int = 1,
        out: int = 16,
        act: Callable[..., nn.Module] = nn.ReLU,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = dilation if padding is None else padding
        self.conv1, self.bn1 = conv_bn(16, width, 1)
        self.conv2, self.bn2 = conv_bn(
            width, width, stride=stride, groups=groups, dilation=dilation, padding=padding
        )
        self.conv3, self.bn3 = conv_bn(width, out, 1)
        self.act = act(inplace=True)
        down = stride != 1 or out != 16
        self.downsample = conv_bn(16, out, 1, stride=stride) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.act(y)


class Function(nn.Module):
    """A module whose forward is a function of itself and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class TinyNet(nn.Module):
    """A stem, a basic block, a bottleneck and a head, in torchvision's manner."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 8, stride=2)
        self.layer1 = nn.Sequential(Basic(), nn.Conv2d(8, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(groups=4), Bottleneck(stride=2, out=32))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.pool(x), 1))
