"""The switch between Winograd and direct convolution."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastres

_WIDTH = 192  # narrower ones are convolved directly on matrix tiles


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = fastres.get_numerics()
    yield
    fastres.set_numerics(before)


def test_refuses_another_value():
    with pytest.raises(ValueError, match="numerics must be one of fast, strict, got 'exact'"):
        fastres.set_numerics("exact")


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
def test_strict_keeps_infinities():
    conv = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False)
    model = fastres.accelerate(nn.Sequential(conv, nn.ReLU()).eval())
    # Of fewer pixels a weight that is packed at each call is not worth Winograd's transform there.
    x = torch.randn(1, _WIDTH, 32, 32)
    x[0, 3, 4, 4] = float("inf")
    with torch.no_grad():
        expected = torch.relu(nn.functional.conv2d(x, conv.weight, padding=1))
        fastres.set_numerics("fast")
        assert model(x).isnan().any()  # Winograd subtracts infinities from each other
        fastres.set_numerics("strict")  # from the next call on
        torch.testing.assert_close(model(x), expected)


@pytest.mark.skipif("cpu" not in fastres.available_backends(), reason="needs the native library")
def test_strict_keeps_infinities_where_gradients_are_needed():
    # BatchNorm's stored statistics: those of an infinite image are NaN.
    eager = nn.Sequential(
        nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH)
    ).eval()
    model = fastres.accelerate(copy.deepcopy(eager))
    x = torch.randn(1, _WIDTH, 9, 9)
    x[0, 3, 4, 4] = float("inf")
    fastres.set_numerics("fast")
    assert model(x).isnan().any()
    fastres.set_numerics("strict")
    torch.testing.assert_close(model(x), eager(x))
