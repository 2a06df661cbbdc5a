"""What training keeps for backward, and ``memory="save"``, which keeps less."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torchvision
from nets import Bottleneck, TinyNet, conv_bn
from torch import nn
from torch.nn import functional as F
from training_step import gradients, randomised_for_training, training_ops

import fastres
from fastres._saved import saved_bytes


@pytest.mark.parametrize(
    ("network", "keep", "save"),
    [(torchvision.models.resnext50_32x4d, 0.74, 0.5), (torchvision.models.resnet50, 0.81, 0.5)],
)
def test_bytes_against_eager(network, keep, save):
    """At 224 px, where the figures of the documentation are from; one image and no backward."""
    net = network(weights=None).train()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    x = torch.randn(1, 3, 224, 224)
    eager = saved_bytes(net, x)
    for memory, share in (("keep", keep), ("save", save)):
        fused = fastres.accelerate(copy.deepcopy(net), memory=memory)
        assert saved_bytes(fused, x) / eager <= share


NETS = {
    "tiny": TinyNet,
    "a pool that is read twice": lambda: nn.Sequential(
        *conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), *conv_bn(8, 4)
    ),
    "bottlenecks": lambda: nn.Sequential(
        *conv_bn(3, 16, 1), nn.ReLU(), Bottleneck(groups=4), Bottleneck(out=24, stride=2)
    ),
    "pool of a wide window": lambda: nn.Sequential(
        *conv_bn(3, 8), nn.SiLU(), nn.MaxPool2d((7, 5), (2, 3), (3, 1)), nn.Conv2d(8, 4, 1)
    ),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_gradients_are_the_same_bits(make, autocast):
    net = randomised_for_training(make())
    saving = fastres.accelerate(copy.deepcopy(net), memory="save")
    keeping = fastres.accelerate(net)
    x = torch.randn(3, 3, 21, 23)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ours, theirs = gradients(saving, x), gradients(keeping, x)
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=name)
    for a, b in zip(saving.buffers(), keeping.buffers(), strict=True):
        assert torch.equal(a, b)
    assert saved_bytes(saving, x) < saved_bytes(keeping, x)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_explain_tells_the_bytes_that_are_not_kept(make):
    net = make().train()
    eager = saved_bytes(net, x := torch.randn(3, 3, 21, 23))
    saving = fastres.accelerate(copy.deepcopy(net), memory="save")
    report = fastres.explain(saving, input_shape=x.shape)
    keeping = fastres.accelerate(net)
    assert report.saving is not None
    assert report.saving.bytes * len(x) == saved_bytes(keeping, x) - saved_bytes(saving, x)
    assert report.saving.bytes == sum(one.bytes for one in report.rebuilt)
    assert report.saving.eager_bytes == eager // len(x)
    told = [part for part in report.training_fused if "MiB an image not kept" in part.detail]
    assert [part.modules[0] for part in told] == [one.module for one in report.rebuilt]
    assert f"of the {eager / len(x) / 2**20:.2f} MiB that eager keeps" in str(report)


def test_explain_tells_the_work_of_rebuilding():
    net = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), nn.Conv2d(8, 512, 1), *conv_bn(512, 4, 1))
    report = fastres.explain(fastres.accelerate(net, memory="save"), input_shape=(2, 3, 9, 9))
    assert [(one.module, one.multiply_adds) for one in report.rebuilt] == [("0", 27)]
    assert report.saving.bytes == 8 * 81 * 4
    work = 8 * 27, 512 * 8, 4 * 512
    assert report.saving.extra_work == pytest.approx(work[0] / sum(work))


def test_explain_shares_out_what_is_called_twice():
    block = nn.Sequential(*conv_bn(4, 4), nn.ReLU())
    net = nn.Sequential(*conv_bn(3, 4), nn.ReLU(), block, block).train()
    saving = fastres.accelerate(copy.deepcopy(net), memory="save")
    report = fastres.explain(saving, input_shape=(2, 3, 11, 7))
    x = torch.randn(2, 3, 11, 7)
    saved = saved_bytes(fastres.accelerate(net), x) - saved_bytes(saving, x)
    assert report.saving.bytes * 2 == saved


def test_explain_of_a_shape_that_the_model_refuses():
    saving = fastres.accelerate(TinyNet(), memory="save")
    with pytest.raises(ValueError, match=r"input_shape must be one .* got \(1, 4, 9, 9\): "):
        fastres.explain(saving, input_shape=(1, 4, 9, 9))


def test_rebuilds_once_each_and_updates_statistics_once():
    saving = fastres.accelerate(TinyNet().train(), memory="save")
    x = torch.randn(2, 3, 33, 31)
    counts = training_ops(saving, x)
    # Eleven, and once again each but the two whose output is not BatchNorm's alone.
    assert 11 < counts["conv_stats"] <= 21
    saving(x).sum().backward()
    assert saving.bn1.num_batches_tracked == 1


def test_retain_graph_and_parts_of_the_graph():
    net = randomised_for_training(TinyNet())
    saving = fastres.accelerate(copy.deepcopy(net), memory="save")
    keeping = fastres.accelerate(net)
    x = torch.randn(2, 3, 33, 31)
    found = []
    for model in (saving, keeping):
        loss = model(x).square().sum()
        some = [model.layer2[1].conv3.weight, model.layer2[0].bn1.weight]
        first = torch.autograd.grad(loss, some, retain_graph=True)
        loss.backward(retain_graph=True)
        second = [p.grad.clone() for p in model.parameters()]
        loss.backward()
        found.append([*first, *second, *(p.grad for p in model.parameters())])
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert all(map(torch.equal, *found))


def test_frozen_parts_are_not_rebuilt():
    saving = fastres.accelerate(TinyNet().train(), memory="save")
    saving.requires_grad_(False)
    saving.fc.requires_grad_()
    assert training_ops(saving.train(), torch.randn(2, 3, 33, 31)).keys() >= {"conv_stats"}
    x = torch.randn(2, 3, 33, 31)
    with torch.profiler.profile() as profile:
        saving(x).sum().backward()
    assert sum(event.name == "fastres::conv_stats" for event in profile.events()) == 11


def test_changed_weights_are_noticed_before_rebuilding():
    saving = fastres.accelerate(TinyNet().train(), memory="save")
    loss = saving(torch.randn(2, 3, 33, 31)).sum()
    with torch.no_grad():
        saving.layer2[0].conv2.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_order_is_refused():
    saving = fastres.accelerate(TinyNet().train(), memory="save")
    x = torch.randn(2, 3, 33, 31, requires_grad=True)
    with pytest.raises(RuntimeError, match="memory='save' can be differentiated once"):
        torch.autograd.grad(saving(x).sum(), x, create_graph=True)


def test_nothing_is_left_after_backward():
    saving = fastres.accelerate(TinyNet().train(), memory="save")
    loss = saving(torch.randn(2, 3, 65, 63)).sum()
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
    convolutions = [node for node in seen if type(node).__name__ == "ConvolutionBackward"]
    assert len(convolutions) == 11
    loss.backward()
    assert all(node.value is None for node in convolutions)


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
def test_weight_gradients_are_where_those_before_were():
    """But not where one is still in use; and activations of the same size are elsewhere."""
    layer = fastres.accelerate(nn.Sequential(*conv_bn(256, 256, 1)).train())
    x = torch.randn(2, 256, 8, 16)  # as many values as the weight has
    weight = layer[0].weight
    layer(x).sum().backward()
    place, weight.grad = weight.grad.data_ptr(), None
    activations = [layer(x) for _ in range(3)]
    assert place not in [y.data_ptr() for y in activations]
    activations[-1].sum().backward()
    assert weight.grad.data_ptr() == place
    kept, weight.grad = weight.grad, None
    copied = kept.clone()
    layer(x + 1).sum().backward()
    assert weight.grad.data_ptr() != place
    assert torch.equal(kept, copied)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_save_too(copy_of):
    net = fastres.accelerate(TinyNet().train(), memory="save")
    x = torch.randn(2, 3, 33, 31)
    expected = saved_bytes(net, x)
    assert saved_bytes(copy_of(net), x) == expected
    F.cross_entropy(copy_of(net)(x), torch.tensor([0, 1])).backward()


def test_unknown_memory():
    with pytest.raises(ValueError, match="memory must be one of keep, save, got 'less'"):
        fastres.accelerate(TinyNet(), memory="less")
