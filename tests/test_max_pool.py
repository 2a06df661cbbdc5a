"""max_pool is F.max_pool2d, and what accelerate and freeze call for it."""

from __future__ import annotations

import pytest
import torch
from conv_case import DTYPES, LAYOUTS, laid_out
from nets import conv_bn, randomised
from torch import nn
from torch.nn import functional as F

import fastres
from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

# kernel_size, stride, padding, height, width
WINDOWS = [
    (3, 2, 1, 112, 8),
    (3, 2, 1, 7, 5),
    (2, 2, 0, 9, 8),
    ((3, 2), (1, 3), (1, 0), 5, 11),
    (5, 1, 2, 4, 4),
    (1, 3, 0, 7, 7),
    (3, 2, 1, 1, 1),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_pytorchs(kernel, stride, padding, height, width, dtype, set_threads):
    for channels in (1, 17, 64):
        values = torch.randn(2, channels, height, width).to(dtype)
        for layout in LAYOUTS:
            x = laid_out(values, layout)
            expected = F.max_pool2d(x, kernel, stride, padding)
            for threads in (1, 3):
                set_threads(threads)
                out = ops.max_pool(x, kernel, stride, padding)
                assert torch.equal(out, expected)
                assert out.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_finite_goes_where_it_does_in_pytorch():
    x = torch.randn(2, 19, 9, 9)
    for value in (float("nan"), float("inf"), -float("inf")):
        x[torch.rand_like(x) < 0.2] = value
    out = ops.max_pool(x, 3, 2, 1)
    torch.testing.assert_close(out, F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0, equal_nan=True)


def test_empty_batch_and_float64():
    assert ops.max_pool(torch.empty(0, 4, 6, 6), 2).shape == (0, 4, 3, 3)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(ops.max_pool(x, 3, 2, 1), F.max_pool2d(x, 3, 2, 1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4, 6, 6)}, ValueError, "x must"),
        ({"x": torch.ones(1, 4, 6, 6).long()}, TypeError, "x must"),
        ({"kernel_size": 0}, ValueError, "kernel_size"),
        ({"kernel_size": 7}, ValueError, "x must be as large as kernel_size"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": 2}, ValueError, "padding must be 2 ints from 0 to half of kernel_size"),
        ({"padding": -1}, ValueError, "padding"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"x": torch.ones(1, 4, 6, 6), "kernel_size": 3} | change
    with pytest.raises(error, match=f"max_pool: .*{message}"):
        ops.max_pool(**arguments)


def test_opcheck():
    x = torch.randn(2, 5, 7, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.fastres.max_pool.default, (x, [3, 3], [2, 2], [1, 1]))


def test_gradients_are_pytorchs():
    x = torch.randn(2, 5, 7, 6).relu().requires_grad_()  # with ties
    grad = torch.randn(2, 5, 4, 3)
    (expected,) = torch.autograd.grad(F.max_pool2d(x, 3, 2, 1), x, grad)
    (actual,) = torch.autograd.grad(ops.max_pool(x, 3, 2, 1), x, grad)
    assert torch.equal(actual, expected)


def test_gradcheck():
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.max_pool(x, 3, 2, 1), x)
    assert torch.autograd.gradgradcheck(lambda x: ops.max_pool(x, 3, 2, 1), x)


def stem(**options: bool) -> nn.Module:
    return randomised(nn.Sequential(conv_bn(32, 32), nn.ReLU(), nn.MaxPool2d(3, 2, 1, **options)))


def pools(model: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(x)
    return {event.name for event in profile.events() if "max_pool" in event.name}


def test_follows_fused_convolutions():
    x = torch.randn(2, 32, 11, 9)
    for model in (stem(), stem(ceil_mode=True)):
        expected = model(x)
        for fused in (fastres.freeze(model), fastres.accelerate(model)):
            out = fused(x)
            torch.testing.assert_close(out, expected)
            assert out.stride() == expected.stride()
    assert "fastres::max_pool" in pools(fastres.accelerate(stem()), x)


def test_hooks_and_changes_of_the_window_are_seen():
    model, x = fastres.accelerate(stem()), torch.randn(2, 32, 11, 9)
    with torch.no_grad():
        assert model(x).shape[2:] == (6, 5)
        model[2].stride = 3
        assert model(x).shape[2:] == (4, 3)
        seen = []
        model[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
        model(x)
    assert len(seen) == 1
