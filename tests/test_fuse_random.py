"""Random programs with writes in place and aliases: fused, they compute what they say."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from nets import ops, randomised
from torch import Tensor, nn
from torch.nn import functional as F

import fastres

Values = list[Tensor]
Step = Callable[[nn.Module, Values], None]

# Each maker draws its operands now and returns what will be done to them: every step appends a
# value of one and the same shape, or writes to one, or both.


def _put(function: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Callable[..., Step]:
    def make(draw: random.Random, count: int) -> Step:
        i, j = draw.randrange(count), draw.randrange(count)
        if draw.random() < 0.7:  # mostly the last value, so that chains come about
            i = count - 1

        def step(m: nn.Module, values: Values) -> None:
            values.append(function(m, values[i], values[j]))

        return step

    return make


def _written(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        function(x)
        return x

    return apply


def _iadd(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def _bottleneck(draw: random.Random, count: int) -> Step:
    """A bottleneck of the last value, or nearly one: values leak, or are written between."""
    leaks = [draw.random() < 0.1 for _ in range(3)]
    writes = draw.random() < 0.15
    inplace, reverse = draw.random() < 0.5, draw.random() < 0.5

    def step(m: nn.Module, values: Values) -> None:
        x = values[-1]
        h1 = F.relu(m.norms[0](m.convs[0](x)), inplace)
        h2 = F.relu(m.convs[1](h1), inplace)
        y = m.norms[1](m.convs[2](h2))
        if writes:
            values[0].mul_(0.5)
        values.extend(v for v, leak in zip((h1, h2, y), leaks, strict=True) if leak)
        y = x + y if reverse else _iadd(m, y, x)
        values.append(F.relu(y, inplace))

    return step


MAKERS = [
    *[_bottleneck] * 3,
    *[_put(lambda m, x, y, i=i: m.convs[i](x)) for i in range(3)] * 3,
    *[_put(lambda m, x, y, i=i: m.norms[i](x)) for i in range(2)] * 3,
    *[_put(lambda m, x, y: F.relu(x))] * 2,
    *[_put(lambda m, x, y: m.act(x))] * 2,
    *[_put(lambda m, x, y: x + y)] * 2,
    *[_put(_iadd)] * 2,
    _put(lambda m, x, y: torch.add(y, x)),
    _put(_written(lambda x: x.relu_())),
    _put(_written(lambda x: x[:1].mul_(0.5))),
    _put(_written(lambda x: x.flatten(1).sub_(0.1))),
    _put(lambda m, x, y: x.view(x.shape)),
    _put(lambda m, x, y: m.same(x)),
    _put(lambda m, x, y: x * 0.5),
    _put(lambda m, x, y: x * m.scale),
    _put(lambda m, x, y: F.max_pool2d(x, 3, 1, 1)),
    _put(lambda m, x, y: torch.cat([x, y], 1)[:, ::2]),
    _put(lambda m, x, y: x * y.mean((2, 3), keepdim=True)),
]


class Program(nn.Module):
    """Eight to twenty steps, drawn by a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        groups = draw.choice([1, 2, 4])
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(4, 4, 1, bias=False),
                nn.Conv2d(4, 4, 3, padding=1, groups=groups),
                nn.Conv2d(4, 4, 1),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.act, self.same = nn.ReLU(inplace=True), nn.Identity()
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        count = draw.randint(8, 20)
        self.steps = [draw.choice(MAKERS)(draw, i + 1) for i in range(count)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x]
        for step in self.steps:
            step(self, values)
        return values[-1], values[len(values) // 2]


@pytest.mark.parametrize("block", range(10))
def test_random_programs(block):
    fused = Counter()
    for seed in range(block * 25, block * 25 + 25):
        torch.manual_seed(seed)
        model = randomised(Program(seed))
        x = torch.randn(2, 4, 5, 6)
        if seed % 2:
            x = x.contiguous(memory_format=torch.channels_last)
        given, *copies = (x.clone(memory_format=torch.preserve_format) for _ in range(3))
        with torch.no_grad():
            eager = model(given)
            frozen = fastres.freeze(model, x)(copies[1])
            out = fastres.accelerate(model)(copies[0])
            fused.update(ops(model))
        for results, written in ((out, copies[0]), (frozen, copies[1])):
            message = f"seed {seed}"
            torch.testing.assert_close(written, given, rtol=1e-4, atol=1e-4, msg=message)
            for result, expected in zip(results, eager, strict=True):
                scale = expected.abs().max().item() + 1
                difference = (result - expected).abs().max().item()
                assert difference <= 1e-5 * scale, message
        assert [r.stride() for r in out] == [r.stride() for r in eager], f"seed {seed}"
    assert fused["conv_bn_act"] > 25
    assert fused["grouped_bottleneck"] > 5
