"""ResNeXt with Keras's conventions against a plain build with one convolution per group."""

import pytest
import torch
from nets import ops, randomised
from network_case import check_training
from torch import nn
from torch.nn import functional as F

import fastres
from fastres.models import KerasBlock, KerasResNeXt

EPSILON = 1.001e-5


def _norm(channels):
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=0.01)


class GroupConv(nn.Module):
    """A convolution per group of channels, concatenated."""

    def __init__(self, filters, stride, groups):
        super().__init__()
        width = filters // groups
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, stride) for _ in range(groups))

    def forward(self, x):
        width = x.shape[1] // len(self.convs)
        parts = [conv(x[:, i * width : (i + 1) * width]) for i, conv in enumerate(self.convs)]
        return torch.cat(parts, dim=1)


class Block(nn.Module):
    def __init__(self, channels, filters, stride, groups, first):
        super().__init__()
        self.first = first
        if first:
            self.conv0, self.bn0 = nn.Conv2d(channels, 2 * filters, 1, stride), _norm(2 * filters)
        self.conv1, self.bn1 = nn.Conv2d(channels, filters, 1), _norm(filters)
        self.conv2, self.bn2 = GroupConv(filters, stride, groups), _norm(filters)
        self.conv3, self.bn3 = nn.Conv2d(filters, 2 * filters, 1), _norm(2 * filters)

    def forward(self, x):
        shortcut = self.bn0(self.conv0(x)) if self.first else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(F.pad(x, (1, 1, 1, 1)))))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class Plain(nn.Module):
    def __init__(self, depths, groups, num_classes):
        super().__init__()
        self.groups = groups
        self.conv, self.bn = nn.Conv2d(3, 64, 7, 2), _norm(64)
        channels = 64
        blocks = []
        for stage, depth in enumerate(depths):
            filters = 128 << stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, filters, stride, groups, index == 0))
                channels = 2 * filters
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(F.pad(x, (3, 3, 3, 3)))))
        x = self.blocks(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2))
        return F.softmax(self.fc(x.mean((2, 3))), dim=1)

    def keys(self, state):
        """The weights of ours, or their gradients: both list their layers in the same order."""
        values = iter(state.values())
        kinds = {name.rpartition(".")[2] for name in state}
        result = {}
        for name in self.state_dict():
            if name.rpartition(".")[2] not in kinds:
                continue
            if ".convs." not in name:
                result[name] = next(values)
            elif ".convs.0.weight" in name:
                stem = name.removesuffix("0.weight")
                for part in ("weight", "bias"):
                    for group, value in enumerate(next(values).chunk(self.groups)):
                        result[f"{stem}{group}.{part}"] = value
        return result


@torch.no_grad()
def _damp(model, x):
    """Gives logits of about 1: a softmax of large ones is exact, whatever was done before it."""
    logits = model.eval()(x).clamp_min(1e-30).log()
    model.predictions.weight.div_(logits.std())


@pytest.mark.parametrize("groups", [4, 32])
def test_inference(groups, assert_accurate):
    ours = randomised(fastres.accelerate(KerasResNeXt((1, 2, 1, 1), groups, 10)))
    plain = Plain((1, 2, 1, 1), groups, 10).eval()
    x = torch.randn(2, 3, 64, 48)
    _damp(ours, x)
    plain.load_state_dict(plain.keys(ours.state_dict()))
    assert ops(ours) == {"conv_bn_act": 1, "grouped_bottleneck": 5}
    with torch.no_grad():
        eager, out = plain(x), ours(x)
        exact = plain.double()(x.double())
    assert 0.1 < float(eager.max()) < 0.9
    assert_accurate(out, eager, exact, factor=4.0, magnitude=exact.abs)
    torch.testing.assert_close(out.sum(1), torch.ones(len(x)))


def test_training():
    """Probabilities come out: the loss takes their logarithm."""

    def loss(probabilities, target):
        return F.nll_loss(probabilities.log(), target)

    ours = fastres.accelerate(KerasResNeXt((1, 1, 1, 1), 4, 2))
    plain = Plain((1, 1, 1, 1), 4, 2)
    check_training(ours, plain, torch.randn(4, 3, 64, 64), keys=plain.keys, loss=loss)


def test_conventions():
    model = fastres.models.keras_resnext50()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {norm.eps for norm in norms} == {EPSILON}
    assert all(conv.bias is not None for conv in convs)
    assert all(conv.padding == (0, 0) for conv in convs)
    assert sum(conv.groups == 32 for conv in convs) == 16


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="groups: got 3, expected a divisor of 128"):
        fastres.models.keras_resnext50(groups=3)
    with pytest.raises(ValueError, match="conv_shortcut: got False with stride=2"):
        KerasBlock(256, 128, 2, 32, conv_shortcut=False)
