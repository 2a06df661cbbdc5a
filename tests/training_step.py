"""One training step of a model, eager and accelerated, and the errors of both against float64."""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastres
from fastres import _measure

#: Running statistics after a step, relative; or twice eager's error, where a network amplifies it.
STATISTICS_LIMIT = 1e-5

Gradients = dict[str, Tensor]


def randomised_for_training(model: nn.Module) -> nn.Module:
    """The model in training mode, with BatchNorms and biases that are not 1 and 0."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            low, high = (-0.5, 0.5) if "bias" in name else (0.5, 1.5)
            nn.init.uniform_(parameter, low, high)
    return model.train()


def gradients(model: nn.Module, x: Tensor) -> Gradients:
    """Of a fixed projection of the output, for every parameter and for the input."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator).to(out)).mean()
        for out in _measure.output_tensors(model(x))
    )
    loss.backward()
    named = {"input": x.grad}
    named.update({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return named


def training_ops(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How many of each training operator, and of eager's convolutions, a step of a copy runs."""
    model = copy.deepcopy(model)
    with torch.profiler.profile() as profile:
        gradients(model, x)
    names = [event.name.removeprefix("fastres::") for event in profile.events()]
    kinds = ("conv_stats", "affine_add_act", "conv_stats_backward", "aten::convolution")
    return {kind: count for kind, count in Counter(names).items() if kind in kinds}


def errors(model: nn.Module, x: Tensor, exact: Gradients) -> dict[str, float]:
    found = gradients(model, x)
    assert found.keys() == exact.keys()
    return {name: _measure.relative_error(found[name], exact[name]) for name in exact}


def check_training(
    model: nn.Module, x: Tensor, *, noise: tuple[str, ...] = (), neighbours: int = 2
) -> nn.Module:
    """A step of the model and of an accelerated copy: gradients, running statistics, layout.

    A rounding error that flips the sign of a ReLU's input changes gradients by far more than
    itself. So both take their step on inputs a rounding error apart, too, and the median of the
    accelerated model's errors has to keep to what eager's reach in either memory format.

    Args:
        model: in training mode; is not changed.
        x: the input.
        noise: names of parameters whose gradient is zero but for rounding.
        neighbours: how many further inputs.

    Returns:
        The accelerated copy, after its steps.
    """
    double = copy.deepcopy(model).double()
    exact = gradients(double, x.double())
    eager = copy.deepcopy(model)
    fused = fastres.accelerate(copy.deepcopy(model))
    assert training_ops(fused, x).get("conv_stats"), "nothing was fused"
    ours = [errors(fused, x, exact)]
    theirs = [errors(eager, x, exact)]
    buffers = zip(fused.named_buffers(), eager.buffers(), double.buffers(), strict=True)
    for (name, our), their, true in buffers:
        error, eagers = (_measure.relative_error(t, true) for t in (our, their))
        assert error <= max(2 * eagers, STATISTICS_LIMIT), f"{name}: {error:.2e}, {eagers:.2e}"
    generator = torch.Generator().manual_seed(0)
    other_format = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for _ in range(neighbours):
        near = x * (1 + torch.finfo(x.dtype).eps * torch.randn(x.shape, generator=generator).to(x))
        ours.append(errors(fused, near, exact))
        theirs.append(errors(eager, near, exact))
        nhwc = near.to(memory_format=torch.channels_last)
        theirs.append(errors(other_format, nhwc, exact))
    for name in exact.keys() - set(noise):
        error = statistics.median(e[name] for e in ours)
        limit = _measure.error_limit(max(e[name] for e in theirs))
        assert error <= limit, f"{name}: error {error:.2e}, allowed {limit:.2e}"
    return fused


def same_steps(
    ours: nn.Module, theirs: nn.Module, step: Callable[[nn.Module, int], Any], count: int = 3
) -> None:
    """Takes steps of both, and compares what they return and the models' states."""
    for i in range(count):
        for our, their in zip(
            _measure.output_tensors(step(ours, i)), _measure.output_tensors(step(theirs, i)),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
    states = ours.state_dict(), theirs.state_dict()
    for (name, our), their in zip(states[0].items(), states[1].values(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-4, msg=name)
