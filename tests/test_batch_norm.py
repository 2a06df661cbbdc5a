"""BatchNorm as an affine between training operators: values, gradients, running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres import ops
from fastres.batch_norm import batch_norm_affine

pytestmark = pytest.mark.usefixtures("backend")

OPTIONS = {
    "usual": {},
    "average of all batches": {"momentum": None},
    "no running statistics": {"track_running_stats": False},
    "no affine": {"affine": False},
    "other constants": {"momentum": 0.3, "eps": 0.1},
}


def fused(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    y, mean, m2 = ops.conv_stats(
        x, conv.weight, stride=conv.stride, padding=conv.padding, groups=conv.groups
    )
    return ops.affine_add_act(y, *batch_norm_affine(norm, y, mean, m2, conv.bias), act="relu")


def eager(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.relu(norm(conv(x)))


def make(bias: bool = True, **options) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    norm = nn.BatchNorm2d(8, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return nn.Conv2d(8, 8, 3, 2, 1, groups=2, bias=bias), norm


def assert_buffers_close(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, our), their in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_trains_as_batch_norm_does(options, bias):
    ours = make(bias, **options)
    theirs = copy.deepcopy(ours)
    for mode in (True, True, False, True):
        x = torch.randn(3, 8, 7, 5)
        for modules in (ours, theirs):
            modules[1].train(mode).zero_grad()
            modules[0].zero_grad()
        out, expected = fused(*ours, x), eager(*theirs, x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        grad = torch.randn_like(out)
        out.backward(grad)
        expected.backward(grad)
        parameters = [(*ours[0].named_parameters(), *ours[1].named_parameters())]
        others = [*theirs[0].parameters(), *theirs[1].parameters()]
        for (name, our), their in zip(*parameters, others, strict=True):
            if name == "bias" and our is ours[0].bias:
                continue  # its gradient is rounding noise, or with running statistics conv's own
            torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-5, msg=name)
        assert_buffers_close(ours[1], theirs[1])


def test_one_value_per_channel_raises_what_pytorch_raises():
    conv, norm = make()
    x = torch.randn(1, 8, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        eager(conv, norm, x)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        fused(conv, norm, x)
    assert str(ours.value) == str(theirs.value)


class Block(nn.Module):
    """A bottleneck whose shortcut has a BatchNorm of its own."""

    def __init__(self, groups: int = 4, stride: int = 2) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.down, self.bn4 = nn.Conv2d(12, 24, 1, stride, bias=False), nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.bn4(self.down(x)))

    def fused(self, x: Tensor) -> Tensor:
        """No activation between the convolutions is ever stored."""

        def run(conv, norm, x, affine, act):
            y, mean, m2 = ops.conv_stats(
                x, conv.weight, *affine, in_act=act, stride=conv.stride, padding=conv.padding,
                groups=conv.groups,
            )  # fmt: skip
            return y, batch_norm_affine(norm, y, mean, m2)

        y1, affine1 = run(self.conv1, self.bn1, x, (), "none")
        y2, affine2 = run(self.conv2, self.bn2, y1, affine1, "relu")
        y3, affine3 = run(self.conv3, self.bn3, y2, affine2, "relu")
        y4, affine4 = run(self.down, self.bn4, x, (), "none")
        return ops.affine_add_act(y3, *affine3, y4, *affine4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_whole_block_has_eagers_gradients(assert_accurate, dtype):
    block = Block().to(dtype)
    x = torch.randn(3, 12, 9, 7, dtype=dtype)

    def run(block: Block, forward, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        out = forward(block, x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        found = torch.autograd.grad(out, [x, *block.parameters()], weights.to(out.dtype))
        return [out, *found, *(b for b in block.buffers() if b.is_floating_point())]

    ours = run(copy.deepcopy(block), Block.fused, x)
    theirs = run(copy.deepcopy(block), Block.forward, x)
    exact = run(copy.deepcopy(block).double(), Block.forward, x.double())
    for our, their, true in zip(ours, theirs, exact, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(our, true, rtol=1e-11, atol=1e-12)
        else:
            assert_accurate(our, their, true, magnitude=true.abs)
