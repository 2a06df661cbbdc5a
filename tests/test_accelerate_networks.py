"""accelerate on networks of torchvision, timm and others: what is fused, and the numbers."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from nets import (
    TinyNet,
    check,
    ops,
    randomised,
    reasons,
    runs_fused,
)
from torch import nn

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 24)


@pytest.fixture
def model() -> nn.Module:
    return randomised(TinyNet())


@pytest.fixture
def fused(model) -> nn.Module:
    return fastres.accelerate(copy.deepcopy(model))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet18", {"conv_max_pool": 1, "conv_bn_act": 19}),
        ("resnext50_32x4d", {"conv_max_pool": 1, "grouped_bottleneck": 16}),
        ("wide_resnet50_2", {"conv_max_pool": 1, "grouped_bottleneck": 16}),
        ("mobilenet_v2", {"conv_bn_act": 52}),
        ("densenet121", {"conv_max_pool": 1, "conv_bn_act": 119, "affine_add_act": 62}),
        ("googlenet", {"conv_bn_act": 57}),
        ("shufflenet_v2_x0_5", {"conv_max_pool": 1, "conv_bn_act": 55}),
    ],
)
def test_torchvision(name, counts, assert_accurate):
    arguments = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(**arguments)
    check(model, torch.randn(1, 3, 64, 64), assert_accurate, **counts)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "densenet121"])
def test_bfloat16(name, assert_accurate):
    """Accelerated and frozen: packed at each call and once, on tiles with AMX."""
    model = randomised(getattr(torchvision.models, name)()).to(torch.bfloat16)
    x = torch.randn(2, 3, 96, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        eager, exact = model(x), copy.deepcopy(model).double()(x.double())
        for ours in (fastres.freeze(model), fastres.accelerate(copy.deepcopy(model))):
            for layout in (torch.contiguous_format, torch.channels_last):
                out = ours(x.to(memory_format=layout))
                assert_accurate(out, eager, exact, magnitude=exact.abs)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet50", {"conv_max_pool": 1, "grouped_bottleneck": 16}),
        ("resnext50_32x4d", {"conv_max_pool": 1, "grouped_bottleneck": 16}),
        ("resnet26d", {"conv_bn_act": 15, "grouped_bottleneck": 5}),
        ("seresnext26d_32x4d", {"conv_bn_act": 47}),
        (  # BatchNormAct2d
            "resnetv2_50",
            {"conv_max_pool": 1, "conv_bn_act": 53, "affine_add_act": 17},
        ),
    ],
)
def test_timm(name, counts, assert_accurate):
    check(timm.create_model(name), torch.randn(1, 3, 64, 64), assert_accurate, **counts)


def test_frozen_batchnorm(assert_accurate):
    """torchvision's detection models: a module of its own, made of arithmetic on buffers."""
    model = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    for name, buffer in model.named_buffers():
        buffer.uniform_(0.5, 1.5) if "mean" not in name else buffer.normal_()
    x = torch.randn(1, 3, 64, 64)
    check(model, x, assert_accurate, conv_max_pool=1, grouped_bottleneck=16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        assert out.dtype == fastres.restore(model)(x).dtype


def test_dilated_backbone(assert_accurate):
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    randomised(model)
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())["out"]
        eager = model(x)
        assert ops(model) == {"conv_max_pool": 1, "conv_bn_act": 2, "grouped_bottleneck": 16}
        out = fastres.accelerate(model)(x)
    assert type(out) is type(eager)
    assert_accurate(out["out"], eager["out"], exact, factor=4.0, magnitude=exact.abs)


def test_detection_model_is_accelerated_in_parts(assert_accurate):
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=96, max_size=96
    )
    randomised(model)
    images = [torch.rand(3, 80, 96)]
    features = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = copy.deepcopy(model.backbone).double()(features.double())
        eager = model.backbone(features)
        fastres.accelerate(model)
        out = model.backbone(features)
        (detections,) = model(images)
        head = model.rpn.head.conv(eager["0"])
    assert list(out) == list(eager)
    assert_accurate(out["0"], eager["0"], exact["0"], factor=4.0, magnitude=exact["0"].abs)
    assert set(detections) == {"boxes", "labels", "scores"}
    assert head.shape == eager["0"].shape
    assert ops(model) == {"conv_max_pool": 1, "conv_bn_act": 11, "grouped_bottleneck": 16}
    assert reasons(model)[""].startswith("tracing failed: ")
    model.train()
    target = {"boxes": torch.tensor([[1.0, 1, 40, 40]]), "labels": torch.tensor([1])}
    sum(model(images, [target]).values()).backward()
    assert model.rpn.head.cls_logits.weight.grad is not None


def test_own_models(x, fused):
    with torch.no_grad():
        assert runs_fused(fastres.accelerate(fastres.models.resnet18().eval()), x)
