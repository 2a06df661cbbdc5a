"""Gradients that nodes hand to each other in backward: what that saves, and when it must not be."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Basic, Function, TinyNet, conv_bn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from training_step import check_training, gradients, randomised_for_training

import fastres


def downsampled(first: str) -> nn.Module:
    """A block whose shortcut has a convolution, which is called before or after the others."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.stem(x))
        if first == "shortcut":
            y = m.down(x)
            return m.head(F.relu(m.main(x) + y))
        y = m.main(x)
        return m.head(F.relu(m.down(x) + y))

    return Function(
        run,
        stem=nn.Sequential(*conv_bn(16, 8), nn.ReLU(), nn.MaxPool2d(2)),
        main=nn.Sequential(*conv_bn(8, 8, stride=2), nn.ReLU(), *conv_bn(8, 12)),
        down=nn.Sequential(*conv_bn(8, 12, 1, stride=2)),
        head=nn.Conv2d(12, 4, 1),
    )


def read_by_a_third() -> nn.Module:
    return Function(
        lambda m, x: (x := F.relu(m.stem(x))).mean() + F.relu(m.main(x) + x),
        stem=nn.Sequential(*conv_bn(16, 8), nn.ReLU(), nn.MaxPool2d(2)),
        main=nn.Sequential(*conv_bn(8, 8), nn.ReLU(), *conv_bn(8, 8)),
    )


def detached_inside() -> nn.Module:
    return Function(
        lambda m, x: F.relu(m.b(F.relu(m.a(x := F.relu(m.stem(x)))).detach()) + x),
        stem=nn.Sequential(*conv_bn(16, 8), nn.ReLU(), nn.MaxPool2d(2)),
        a=nn.Sequential(*conv_bn(8, 8)),
        b=nn.Sequential(*conv_bn(8, 8)),
    )


BLOCKS = {
    "shortcut's convolution first": lambda: downsampled("shortcut"),
    "shortcut's convolution last": lambda: downsampled("main"),
    "read by a third": read_by_a_third,
    "detached inside": detached_inside,
}


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS.keys())
def test_gradients(make):
    check_training(randomised_for_training(make()), torch.randn(3, 16, 13, 9))


def additions(model: nn.Module, x: Tensor) -> int:
    """How many images of gradients autograd adds up in a backward pass."""
    loss = model(x).square().sum()
    with torch.profiler.profile(record_shapes=True) as profile:
        loss.backward()
    return sum(
        event.name in ("aten::add", "aten::add_")
        and len(event.input_shapes[0]) == len(event.input_shapes[1]) == 4
        for event in profile.events()
    )


@pytest.mark.parametrize("memory", ["keep", "save"])
def test_autograd_adds_up_no_images(memory):
    x = torch.randn(2, 3, 33, 31)
    assert additions(TinyNet().train(), x) == 3  # where its three blocks start
    assert additions(fastres.accelerate(TinyNet().train(), memory=memory), x) == 0


def test_what_a_third_reads_is_added_up():
    x = torch.randn(3, 16, 13, 9)
    eager = read_by_a_third().train()
    assert additions(fastres.accelerate(copy.deepcopy(eager)), x) == additions(eager, x) == 2


def test_a_block_end_has_one_gradient_for_both_sides():
    outputs = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.fastres.affine_add_act_backward.default:
                outputs.append((args[5] is not None, out[4].numel()))
            return out

    loss = fastres.accelerate(TinyNet().train())(torch.randn(2, 3, 33, 31)).sum()
    with Watch():
        loss.backward()
    # The stem's and two blocks'. The gradient of the third, whose shortcut is its input and whose
    # output starts a block, passes it in that block's first convolution.
    assert sorted(outputs) == [(False, 0), (True, 0), (True, 0)]


def test_part_of_a_graph_leaves_nothing_for_the_next_pass():
    eager = randomised_for_training(TinyNet())
    fused = fastres.accelerate(copy.deepcopy(eager))
    x = torch.randn(2, 3, 33, 31)
    expected = gradients(fused, x)
    leaf = x.clone().requires_grad_()
    out = fused(leaf)
    loss = (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean()
    # Gradients of a shortcut are handed to convolutions that these passes do not reach.
    for wanted in (fused.layer2[1].downsample[0].weight, fused.layer2[0].conv3.weight):
        torch.autograd.grad(loss, wanted, retain_graph=True)
    fused.zero_grad()
    loss.backward()
    assert torch.equal(leaf.grad, expected["input"])
    for name, parameter in fused.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def in_a_row() -> nn.Module:
    """Blocks that start where another ends, with each kind of shortcut and several activations."""
    return nn.Sequential(
        *(Basic(), Basic(act=nn.SiLU()), Basic(act=lambda y: F.leaky_relu(y, 0.2))),
        *(Basic(stride=2, shortcut=conv_bn(8, 8, 1, stride=2)), Basic(), nn.Conv2d(8, 4, 1)),
    )


def test_blocks_in_a_row():
    check_training(randomised_for_training(in_a_row()), torch.randn(3, 8, 13, 9))


@pytest.mark.parametrize("wanted", ["", "3.", "3.shortcut.0", "1.conv2"])
def test_twice(wanted):
    """Gradients of a penalty on gradients, of all of them or of those that few nodes compute."""
    torch.manual_seed(2)
    net = randomised_for_training(in_a_row())
    fused = fastres.accelerate(copy.deepcopy(net))
    found = []
    for model, dtype in ((fused, torch.float32), (net.double(), torch.float64)):
        torch.manual_seed(1)
        x = torch.randn(3, 8, 13, 9, dtype=torch.float64).to(dtype).requires_grad_()
        some = [p for name, p in model.named_parameters() if name.startswith(wanted)]
        first = torch.autograd.grad(model(x).square().mean(), some, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(penalty, [x, *some], materialize_grads=True))
    assert found[0]
    for ours, true in zip(*found, strict=True):
        assert (ours - true).norm() <= 1e-3 * true.norm() + 1e-6
