"""Plans on a GPU, without one: PyTorch's fake tensors raise where devices would be mixed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from network_on_kernels import small_resnext
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor

from fastres.fx.pools import MaxPoolWindow
from fastres.fx.sources import PLAIN_TYPES
from fastres.fx.tracing import default_pattern
from fastres.rewrite.plan import Fusion, Plan
from fastres.rewrite.training_functions import MaxPool
from fastres.rewrite.training_plan import TrainingPlan
from fastres.weights.recipes import Unusable


@pytest.fixture(autouse=True)
def _fake_parameters() -> Iterator[None]:
    """Parameters of a class of their own are left alone; here fake ones are let through."""
    PLAIN_TYPES.add(FakeTensor)
    yield
    PLAIN_TYPES.remove(FakeTensor)


def move_to_gpu(model: nn.Module) -> None:
    """Puts fakes of a GPU's tensors in place of a traced model's."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                is_parameter = isinstance(value, nn.Parameter)
                tensors[name] = nn.Parameter(fake) if is_parameter else fake


def test_an_inference_plan_stays_on_the_gpu():
    model = small_resnext().eval()
    plan = Plan(model, Fusion(model, default_pattern(model), False, True), "content")
    with FakeTensorMode(), torch.no_grad():
        move_to_gpu(model)
        x = torch.randn(2, 3, 32, 32, device="cuda")
        out = plan.run(model, [x])
        assert (out.device.type, *out.shape) == ("cuda", 2, 32, 8, 8)
        constants = plan._program._packer.constants(model).all()  # what freeze keeps
        assert {value.device.type for value in constants.values()} == {"cuda"}
        with pytest.raises(Unusable, match="different devices, cpu and cuda:0"):
            plan.run(model, [torch.randn(2, 3, 32, 32)])


@pytest.mark.parametrize("memory", ["keep", "save"])
def test_a_training_plan_stays_on_the_gpu(memory):
    model = small_resnext().train()
    plan = TrainingPlan(model, default_pattern(model), False, True, memory)
    with FakeTensorMode():
        move_to_gpu(model)
        out = plan.run(model, [torch.randn(2, 3, 32, 32, device="cuda")])
        assert out.device.type == "cuda"
        assert out.requires_grad
        with pytest.raises(Unusable, match="different devices"):
            plan.run(model, [torch.randn(2, 3, 32, 32)])


def test_max_pooling_goes_back_on_the_gpu():
    window = MaxPoolWindow((3, 3), (2, 2), (1, 1), (1, 1), False)
    context = SimpleNamespace()
    context.save_for_backward = lambda places: setattr(context, "saved_tensors", (places,))
    with FakeTensorMode():
        x = torch.randn(2, 8, 9, 9, device="cuda").to(memory_format=torch.channels_last)
        grad = torch.ones_like(MaxPool.forward(context, x, window))
        grad_x, _ = MaxPool.backward(context, grad)
        assert (grad_x.device.type, grad_x.shape) == ("cuda", x.shape)


def test_parameters_on_two_devices_are_unusable():
    model = small_resnext().eval()
    plan = Plan(model, Fusion(model, default_pattern(model), False, True), "content")
    with FakeTensorMode():
        move_to_gpu(model[4])
        with pytest.raises(Unusable, match="different devices"):
            plan.run(model, [torch.randn(2, 3, 32, 32)])
