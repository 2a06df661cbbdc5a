"""max_pool_places and its backward are PyTorch's max-pooling with short indices."""

from __future__ import annotations

import pytest
import torch
from conv_case import DTYPES, LAYOUTS, laid_out
from nets import conv_bn, randomised
from torch import nn
from torch.nn import functional as F

import fastres
from fastres._measure import relative_error

pytestmark = pytest.mark.usefixtures("kernels")

OPS = torch.ops.fastres

# kernel_size, stride, padding, height, width
WINDOWS = [
    ([3, 3], [2, 2], [1, 1], 112, 8),
    ([3, 3], [2, 2], [1, 1], 7, 5),
    ([2, 2], [2, 2], [0, 0], 9, 8),
    ([3, 2], [1, 3], [1, 0], 5, 11),
    ([5, 5], [1, 1], [2, 2], 4, 4),
    ([1, 1], [3, 3], [0, 0], 7, 7),
    ([16, 16], [2, 1], [8, 8], 5, 6),
    ([3, 3], [2, 2], [1, 1], 1, 1),
]


def pooled(
    x: torch.Tensor, grad: torch.Tensor | None, kernel: list[int], *window: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's output, and the gradient of its input."""
    x = x.detach().requires_grad_()
    y = F.max_pool2d(x, kernel, *window)
    (grad_x,) = torch.autograd.grad(y, x, torch.ones_like(y) if grad is None else grad)
    return y.detach(), grad_x


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), WINDOWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_pytorchs(kernel, stride, padding, height, width, layout, set_threads):
    for channels in (1, 17, 64):
        values = torch.randn(2, channels, height, width).relu()  # with ties
        x = laid_out(values, layout)
        y, _ = pooled(values if layout != "expanded" else x, None, kernel, stride, padding)
        grad = laid_out(torch.randn_like(y), layout)
        _, grad_x = pooled(x, grad, kernel, stride, padding)
        for threads in (1, 3):
            set_threads(threads)
            out, places = OPS.max_pool_places(x, kernel, stride, padding)
            assert torch.equal(out, y)
            assert places.dtype == torch.uint8
            for tensor in (out, places):
                assert tensor.is_contiguous(memory_format=torch.channels_last)
            size = [height, width]
            back = OPS.max_pool_places_backward(grad, places, size, kernel, stride, padding)
            assert torch.equal(back, grad_x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype):
    x = torch.randn(2, 19, 9, 9).to(dtype)
    window = [3, 3], [2, 2], [1, 1]
    out, places = OPS.max_pool_places(x, *window)
    assert torch.equal(out, F.max_pool2d(x, *window))
    grad = torch.randn(out.shape).to(dtype)
    back = OPS.max_pool_places_backward(grad, places, [9, 9], *window)
    # Sums of four rounded values, rounded once.
    _, expected = pooled(x.float(), grad.float(), *window)
    torch.testing.assert_close(back, expected.to(dtype))
    assert back.dtype == dtype


def test_what_is_not_finite_goes_where_it_does_in_pytorch():
    x = torch.randn(2, 19, 9, 9)
    for value in (float("nan"), float("inf"), -float("inf")):
        x[torch.rand_like(x) < 0.3] = value
    x[0, 0] = -float("inf")
    window = [3, 3], [2, 2], [1, 1]
    out, places = OPS.max_pool_places(x, *window)
    y, expected = pooled(x, torch.ones_like(out), *window)
    torch.testing.assert_close(out, y, rtol=0, atol=0, equal_nan=True)
    back = OPS.max_pool_places_backward(torch.ones_like(out), places, [9, 9], *window)
    assert torch.equal(back, expected)


def test_empty_batch():
    window = [3, 3], [2, 2], [1, 1]
    out, places = OPS.max_pool_places(torch.empty(0, 4, 6, 6), *window)
    assert out.shape == places.shape == (0, 4, 3, 3)
    back = OPS.max_pool_places_backward(out, places, [6, 6], *window)
    assert back.shape == (0, 4, 6, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": [0, 3]}, "kernel_size"),
        ({"kernel_size": [17, 16], "x": torch.ones(1, 4, 20, 20)}, "at most 256 places"),
        ({"kernel_size": [9, 9]}, "x must be as large as kernel_size"),
        ({"stride": [0, 1]}, "stride"),
        ({"padding": [2, 2]}, "padding must be 2 ints from 0 to half of kernel_size"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"x": torch.ones(1, 4, 6, 6), "kernel_size": [3, 3], "stride": [2, 2]}
    arguments |= {"padding": [1, 1]} | change
    with pytest.raises(ValueError, match=f"max_pool_places: .*{message}"):
        OPS.max_pool_places(*arguments.values())


def test_opcheck():
    x, window = torch.randn(2, 5, 7, 6), ([3, 3], [2, 2], [1, 1])
    torch.library.opcheck(OPS.max_pool_places.default, (x, *window))
    out, places = OPS.max_pool_places(x, *window)
    torch.library.opcheck(
        OPS.max_pool_places_backward.default, (torch.randn_like(out), places, [7, 6], *window)
    )


# ---- in training ---------------------------------------------------------------------------------


def net(pool: nn.Module) -> nn.Module:
    return randomised(nn.Sequential(*conv_bn(16, 8), nn.ReLU(), pool, *conv_bn(8, 8))).train()


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.MaxPool2d((17, 16), 1, 8),
    ],
    ids=str,
)
def test_a_networks_gradients(pool):
    x = torch.randn(2, 16, 12, 10)
    exact = net(pool).double()
    fused = fastres.accelerate(net(pool))
    fused.load_state_dict(exact.state_dict())
    factor = torch.randn(exact(x.double()).shape)  # a sum of squares would hardly depend on weights
    for model, image in ((exact, x.double()), (fused, x)):
        (model(image) * factor).sum().backward()
    for actual, expected in zip(fused.parameters(), exact.parameters(), strict=True):
        assert relative_error(actual.grad, expected.grad) < 1e-4


def test_double_backward():
    x = torch.randn(1, 16, 6, 6, requires_grad=True)
    model = net(nn.MaxPool2d(3, 2, 1))
    fused = fastres.accelerate(net(nn.MaxPool2d(3, 2, 1)))
    fused.load_state_dict(model.state_dict())
    results = []
    for m in (model, fused):
        (grad,) = torch.autograd.grad(m(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)
