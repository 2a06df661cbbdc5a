"""Training where BatchNorm comes first: its affine and activation go into the next convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Function, conv_bn
from torch import nn
from torch.nn import functional as F
from training_step import check_training, randomised_for_training, training_ops

import fastres


class PreActivation(nn.Module):
    """A block whose first activation goes to the shortcut's convolution, too."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.down = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.act = act

    def forward(self, x):
        x = self.act(self.bn1(x))
        return self.conv2(self.act(self.bn2(self.conv1(x)))) + self.down(x)


class Dense(nn.Module):
    """Layers that read everything before them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True), *conv_bn(8 + 4 * i, 6, 1),
                nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1, bias=False),
            )
            for i in range(3)
        )  # fmt: skip

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


BLOCKS = {
    "pre-activation": lambda: PreActivation(nn.ReLU(inplace=True)),
    "SiLU": lambda: PreActivation(nn.SiLU()),
    "no activation": lambda: PreActivation(nn.Identity()),
    "dense": Dense,
    "without parameters": lambda: nn.Sequential(
        nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.Conv2d(8, 5, 3)
    ),
    "average of all batches": lambda: nn.Sequential(
        nn.BatchNorm2d(8, momentum=None), nn.ReLU6(), nn.Conv2d(8, 5, 1)
    ),
}


def _statistics(model: nn.Module) -> int:
    fused = fastres.explain(model).training_fused
    return sum(one.op == "statistics" for one in fused)


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients(make, mode):
    block = randomised_for_training(make())
    if mode == "eval":
        for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
            if norm.track_running_stats:
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                norm.eval()
    fused = check_training(block, torch.randn(3, 8, 13, 10) + 1)
    assert _statistics(fused) == (3 if isinstance(block, Dense) else 1)


@pytest.mark.parametrize("name", ["resnet18_v2", "resnet50_v2", "densenet121"])
def test_all_but_the_last_norm_goes_into_convolutions(name):
    model = fastres.accelerate(getattr(fastres.models, name)(num_classes=2)).train()
    (left,) = fastres.explain(model).training_left  # an average is what reads its value
    assert left.reason == "its BatchNorm follows no convolution"
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    ran = training_ops(model, torch.randn(2, 3, 32, 32))
    assert ran["conv_stats"] == ran["conv_stats_backward"] == convolutions


def test_keeps_no_activation():
    """A norm's output, which eager keeps for the convolution, is not there."""
    kept = []
    for model in (Dense(), fastres.accelerate(Dense())):
        sizes: dict[int, int] = {}

        def pack(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(2, 8, 32, 32))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.75 * kept[0]


def test_is_computed_where_others_read_it_or_write_its_input():
    conv, bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    for forward in (
        lambda m, x: m.conv(y := m.bn(x)) + y,
        lambda m, x: m.conv(m.bn(x)) + F.relu(x) if m.bn(x).dim() == 4 else x,
        lambda m, x: (y := m.bn(x), x.mul_(2), m.conv(y))[-1],
    ):
        model = Function(forward, conv=copy.deepcopy(conv), bn=copy.deepcopy(bn))
        fused = fastres.accelerate(copy.deepcopy(model))
        x = torch.randn(2, 8, 6, 5)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(fused(x.clone()), model(x.clone()))
        torch.testing.assert_close(fused.bn.running_mean, model.bn.running_mean)


def test_a_mean_far_from_zero_loses_no_variance():
    net = randomised_for_training(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    check_training(net, torch.randn(4, 8, 9, 7) + 1e3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_dtypes_have_float32_statistics(dtype):
    net = randomised_for_training(PreActivation(nn.ReLU())).to(dtype)
    fused = fastres.accelerate(copy.deepcopy(net))
    x = torch.randn(4, 8, 12, 10, dtype=dtype) + 2
    exact = copy.deepcopy(net).double()(x.double())
    errors = [(m(x).double() - exact).norm() for m in (fused, net)]
    assert errors[0] <= 2 * errors[1]


def test_under_autocast():
    net = randomised_for_training(nn.Sequential(nn.Conv2d(3, 8, 3), PreActivation(nn.ReLU())))
    fused = fastres.accelerate(copy.deepcopy(net))
    x = torch.randn(4, 3, 20, 16)
    exact = copy.deepcopy(net).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        outs = [m(x) for m in (fused, net)]
        first = PreActivation(nn.ReLU())  # an input that autocast has not cast
        assert fastres.accelerate(first)(torch.randn(2, 8, 6, 6)).dtype == torch.bfloat16
    assert outs[0].dtype == outs[1].dtype
    errors = [(out.double() - exact).norm() for out in outs]
    assert errors[0] <= 2 * errors[1]


def test_one_value_and_no_value_per_channel():
    net = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    for model in (net, fastres.accelerate(copy.deepcopy(net))):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(torch.randn(1, 8, 1, 1))
        assert model(torch.randn(0, 8, 3, 3)).shape == (0, 4, 3, 3)


def test_can_be_differentiated_twice():
    net = randomised_for_training(nn.Sequential(nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 3, 1)))
    found = []
    for model in (net.double(), fastres.accelerate(copy.deepcopy(net).float())):
        dtype = next(model.parameters()).dtype
        x = torch.linspace(-2, 3, 4 * 30).reshape(2, 4, 5, 3).to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(found[1].double(), found[0], rtol=1e-3, atol=1e-3)
