"""DenseNets against torchvision's, and against a plain build by the paper's formula."""

import inspect
import re

import pytest
import torch
import torchvision
from network_case import assert_same_keys, check_inference, check_training
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.models import DenseNet, densenet

NAMES = ["densenet121", "densenet161", "densenet169", "densenet201"]


class Layer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
        )
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class Transition(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class Plain(nn.Module):
    """H(x) = conv(relu(bn(...))) of everything so far, concatenated as it grows."""

    def __init__(self, growth, depths, channels, num_classes):
        super().__init__()
        layers = {
            "conv0": nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        for number, depth in enumerate(depths, start=1):
            block = nn.Sequential()
            for index in range(depth):
                block.add_module(f"denselayer{index + 1}", Layer(channels, growth))
                channels += growth
            layers[f"denseblock{number}"] = block
            if number < len(depths):
                layers[f"transition{number}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential()
        for name, layer in layers.items():
            self.features.add_module(name, layer)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.classifier(F.relu(self.features(x)).mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = getattr(fastres.models, name)(), getattr(torchvision.models, name)()
    assert_same_keys(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_torchvisions(name):
    ours = inspect.signature(getattr(fastres.models, name)).parameters
    theirs = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_one_seed_gives_torchvisions_network():
    torch.manual_seed(0)
    ours = fastres.models.densenet121(num_classes=5)
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(num_classes=5)
    for key, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key


def test_inference(assert_accurate):
    ours = fastres.models.densenet121()
    plain = Plain(32, (6, 12, 24, 16), 64, 1000)
    # One BatchNorm before each 1x1, and the last.
    counts = {"conv_max_pool": 1, "conv_bn_act": 119, "affine_add_act": 62}
    check_inference(ours, plain, torch.randn(1, 3, 64, 64), assert_accurate, **counts)


def test_training():
    ours = fastres.accelerate(DenseNet(8, (2, 3, 2), 16, num_classes=2))
    check_training(ours, Plain(8, (2, 3, 2), 16, 2), torch.randn(4, 3, 64, 64))


def test_dropout_drops_in_training_only():
    model = fastres.accelerate(DenseNet(8, (2, 2), 16, drop_rate=0.5, num_classes=2))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(x), model(x))
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        assert not torch.equal(model(x), model(x))


def test_published_weights_with_their_old_names_load(monkeypatch):
    state = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.", k): v for k, v in state.items()}
    assert old.keys() != state.keys()
    enum = torchvision.models.DenseNet121_Weights
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **kwargs: old)
    ours = fastres.models.densenet121(weights="IMAGENET1K_V1")
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    with pytest.raises(ValueError, match=r"num_classes: got 5, expected 1000 \(of the weights\)"):
        fastres.models.densenet121(weights="DEFAULT", num_classes=5)
    with pytest.raises(ValueError, match="expected one of IMAGENET1K_V1"):
        densenet.densenet121(weights="IMAGENET1K_V7")
