"""Two builds of one network: the library's, and a plain one as its users write it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from nets import ops, randomised, runs_fused
from torch import Tensor, nn
from torch.nn import functional as F

import fastres


def assert_same_keys(ours: nn.Module, plain: nn.Module) -> None:
    """Keys, shapes and dtypes agree, in order; works on the meta device."""
    assert [(k, v.shape, v.dtype) for k, v in ours.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in plain.state_dict().items()
    ]


@torch.no_grad()
def check_inference(
    ours: nn.Module,
    plain: nn.Module,
    x: Tensor,
    assert_accurate: Callable[..., None],
    keys: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state,
    **counts: int,
) -> None:
    """Ours runs fused as counted, and is as accurate as the plain build with the same weights.

    Args:
        ours: from ``fastres.models``; gets random BatchNorms.
        plain: the other build.
        x: images.
        assert_accurate: the tolerance rule.
        keys: turns the state_dict of ours into one of the plain build.
        **counts: how many of each operator both run.
    """
    randomised(ours)
    plain.load_state_dict(keys(ours.state_dict()))
    plain.eval()
    exact = copy.deepcopy(plain).double()(x.double())
    eager = plain(x)
    assert ops(ours) == counts
    assert runs_fused(ours, x)
    numerics = fastres.get_numerics()
    for setting, factor in (("strict", 2.0), ("fast", 4.0)):
        fastres.set_numerics(setting)
        assert_accurate(ours(x), eager, exact, factor=factor, magnitude=exact.abs)
    fastres.set_numerics(numerics)
    assert ops(plain) == counts  # the user's own build is accelerated as well
    scripted = torch.jit.script(ours)
    torch.testing.assert_close(scripted(x), eager, rtol=1e-4, atol=1e-5 * float(eager.abs().max()))


def check_training(
    ours: nn.Module,
    plain: nn.Module,
    x: Tensor,
    keys: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    steps: int = 3,
) -> None:
    """From the same weights: the same loss and gradients, and then losses that stay together.

    Small batches make training chaotic: where rounding turns a ReLU off, eager's own loss differs
    by a percent from memory format to memory format within three steps. So it is the first step
    that is held to a narrow bound.
    """
    plain.load_state_dict(keys(ours.state_dict()))
    target = torch.arange(len(x)) % 2
    losses: list[list[float]] = []
    gradients: list[dict[str, Tensor]] = []
    for model in (ours, plain):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        values = []
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(model(x), target)
            value.backward()
            if step == 0:
                gradients.append({k: p.grad.clone() for k, p in model.named_parameters()})
            optimizer.step()
            values.append(value.item())
        losses.append(values)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=3e-2)
    assert losses[0][-1] != losses[0][0]
    # Of a bias before a BatchNorm the gradient is nothing but rounding.
    rounding = 1e-4 * max(gradient.norm() for gradient in gradients[1].values())
    for key, gradient in keys(gradients[0]).items():
        expected = gradients[1][key]
        assert (gradient - expected).norm() <= 2e-2 * expected.norm() + rounding, key
    theirs = plain.state_dict()
    for key, value in keys(ours.state_dict()).items():
        if key.endswith(("running_mean", "running_var")):
            expected = theirs[key]
            assert (value - expected).norm() <= 1e-2 * expected.norm(), key
