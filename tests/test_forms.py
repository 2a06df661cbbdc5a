"""The three forms of a ResNeXt block are one function, in inference and in training."""

import copy

import pytest
import torch
import torchvision
from nets import ops, randomised
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.forms import ConcatenatedBranches, SummedBranches, form_of, to_form

FORMS = ["a", "b", "c"]


def _block(groups=4, stride=1, dilation=1):
    projection = None
    if stride != 1:
        projection = fastres.nn.projection(32, 32, stride)
    block = fastres.nn.Bottleneck(
        32, 8, stride, projection, groups=groups, base_width=16, dilation=dilation
    )
    return randomised(block)


def written_out(block, x):
    """Figure 3a word for word, with nothing but slices of the grouped block's weights."""
    groups = block.conv2.groups
    width = block.conv2.out_channels // groups

    def norm(y, bn, at):
        values = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return F.batch_norm(y, *(v[at] for v in values), False, 0.0, bn.eps)

    total = 0
    for group in range(groups):
        at = slice(group * width, (group + 1) * width)
        y = F.relu(norm(F.conv2d(x, block.conv1.weight[at]), block.bn1, at))
        y = F.conv2d(
            y, block.conv2.weight[at], None, block.conv2.stride, block.conv2.padding,
            block.conv2.dilation,
        )  # fmt: skip
        y = F.relu(norm(y, block.bn2, at))
        total = total + F.conv2d(y, block.conv3.weight[:, at])
    shortcut = x if block.downsample is None else block.downsample(x)
    return F.relu(norm(total, block.bn3, slice(None)) + shortcut)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kwargs", [{}, {"groups": 1}, {"groups": 8}, {"stride": 2}, {"dilation": 2}], ids=str
)
def test_all_forms_are_the_papers(kwargs, form):
    block = _block(**kwargs).double()
    x = torch.randn(2, 32, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        expected = written_out(block, x)
        torch.testing.assert_close(to_form(block, form)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("middle", FORMS)
@pytest.mark.parametrize("start", FORMS)
@pytest.mark.parametrize("end", FORMS)
def test_every_way_leads_to_the_same_bits(start, middle, end):
    block = to_form(_block(), start)
    there = to_form(to_form(block, middle), end)
    direct = to_form(block, end)
    assert form_of(there) == end
    assert list(there.state_dict()) == list(direct.state_dict())
    for key, value in direct.state_dict().items():
        assert torch.equal(value, there.state_dict()[key]), key
    assert sum(p.numel() for p in there.parameters()) == sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("form", ["a", "b"])
def test_a_training_step_is_the_same_in_every_form(form):
    """Gradients, statistics and counts: the step, then the conversion, and the other way round."""
    block = _block(stride=2).double().train()
    other = to_form(block, form)
    x = torch.randn(4, 32, 8, 8, dtype=torch.float64)
    grads = []
    for model in (block, other):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        leaf = x.clone().requires_grad_()
        model(leaf).square().mean().backward()
        optimizer.step()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)
    back = to_form(other, "c").state_dict()
    assert list(back) == list(block.state_dict())
    for key, value in block.state_dict().items():
        torch.testing.assert_close(back[key], value, rtol=1e-9, atol=1e-12)


def test_branches_have_the_papers_widths():
    block = fastres.nn.Bottleneck(256, 64, groups=32, base_width=4)
    summed, concatenated = to_form(block, "a"), to_form(block, "b")
    assert isinstance(summed, SummedBranches)
    assert isinstance(concatenated, ConcatenatedBranches)
    assert len(summed.branches) == len(concatenated.branches) == 32
    shapes = [tuple(m.weight.shape) for m in summed.branches[31] if isinstance(m, nn.Conv2d)]
    assert shapes == [(4, 256, 1, 1), (4, 4, 3, 3), (256, 4, 1, 1)]
    assert tuple(concatenated.conv3.weight.shape) == (256, 128, 1, 1)


@pytest.mark.parametrize("form", FORMS)
def test_accelerated_and_scripted(form, assert_accurate):
    block = _block()
    converted = to_form(block, form)
    count = {
        "a": {"conv_bn_act": 12, "affine_add_act": 1},
        "b": {"conv_bn_act": 9},
        "c": {"grouped_bottleneck": 1},
    }
    assert ops(converted) == count[form]
    x = torch.randn(2, 32, 9, 7)
    with torch.no_grad():
        exact = written_out(copy.deepcopy(block).double(), x.double())
        eager = fastres.restore(copy.deepcopy(converted))(x)
        assert_accurate(converted(x), eager, exact, factor=4.0, magnitude=exact.abs)
        scripted = torch.jit.script(converted)
        torch.testing.assert_close(scripted(x), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["torchvision", "fastres"])
def test_a_network_is_converted_as_a_whole(library):
    construct = (torchvision if library == "torchvision" else fastres).models
    model = randomised(construct.resnext50_32x4d(num_classes=5))
    converted = to_form(model, "a")
    assert not converted.training
    assert sum(isinstance(m, SummedBranches) for m in converted.modules()) == 16
    assert not any(form_of(m) == "c" for m in converted.modules())
    back = to_form(converted, "c")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(converted(x), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(back(x), expected, rtol=1e-3, atol=1e-3)
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_the_original_shares_nothing_and_modes_stay():
    block = _block().train()
    block.conv1.weight.requires_grad_(False)
    converted = to_form(block, "b")
    assert converted.training
    assert not converted.branches[0][0].weight.requires_grad
    assert converted.branches[0][3].weight.requires_grad
    before = block.conv3.weight.clone()
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert torch.equal(block.conv3.weight, before)


@pytest.mark.parametrize("end", FORMS)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen norms", "norms that train alone"])
def test_batch_norms_keep_their_modes(end, frozen):
    block = _block(stride=2).train(frozen)
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train(not frozen)
    x = torch.randn(2, 32, 9, 7)
    converted = to_form(block, end)
    assert converted.training == frozen
    assert {m.training for m in converted.modules() if isinstance(m, nn.BatchNorm2d)} == {
        not frozen
    }
    torch.testing.assert_close(converted(x), block(x), rtol=1e-3, atol=1e-4)


def test_what_has_no_such_form_is_refused():
    with pytest.raises(ValueError, match="form: got 'd', expected 'a', 'b' or 'c'"):
        to_form(_block(), "d")
    with pytest.raises(ValueError, match="module: ReLU has no ResNeXt block"):
        to_form(nn.ReLU(), "a")
    biased = _block()
    biased.conv3.bias = nn.Parameter(torch.zeros(32))
    with pytest.raises(ValueError, match="conv3: has a bias, expected none"):
        to_form(biased, "a")
    grouped = fastres.nn.Bottleneck(32, 8, norm_layer=lambda c: nn.GroupNorm(4, c))
    with pytest.raises(TypeError, match="bn1: got GroupNorm, expected BatchNorm2d"):
        to_form(grouped, "b")
    uneven = to_form(_block(), "a")
    uneven.branches[1][4].eps = 1e-3
    with pytest.raises(ValueError, match="branches: their BatchNorms differ in eps"):
        to_form(uneven, "c")
    counted = to_form(_block(), "b")
    counted.branches[0][1].num_batches_tracked += 1
    with pytest.raises(ValueError, match=r"branches: their BatchNorms have seen \[0, 1\] batches"):
        to_form(counted, "c")
    halted = to_form(_block(), "b")
    halted.branches[2][4].train()
    with pytest.raises(ValueError, match="branches: their BatchNorms differ in training"):
        to_form(halted, "c")
    for layer, what in ((1, "BatchNorms"), (3, "convolutions")):
        partly = to_form(_block(), "b")
        partly.branches[2][layer].requires_grad_(False)
        with pytest.raises(ValueError, match=f"branches: their {what} differ in requires_grad"):
            to_form(partly, "c")
    uneven = to_form(_block(), "b")
    uneven.branches[1][0].bias = nn.Parameter(torch.zeros(uneven.branches[1][0].out_channels))
    with pytest.raises(ValueError, match="branches: some of their convolutions have a bias"):
        to_form(uneven, "c")
