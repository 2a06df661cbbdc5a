"""avg_pool_linear: a network's head, alone and where accelerate and freeze call it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_case import DTYPES, LAYOUTS, laid_out
from nets import Function, conv_bn, randomised
from torch import Tensor, nn
from torch.nn import functional as F

import fastres
from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

OP = torch.ops.fastres.avg_pool_linear.default

# n, c, h, w, k
SIZES = [
    (1, 2048, 7, 7, 1000),
    (3, 512, 7, 5, 33),
    (2, 17, 1, 1, 5),
    (5, 1, 9, 13, 1),
    (1, 130, 31, 1, 67),
    (9, 65, 3, 2, 31),
]


def make(
    n: int, c: int, h: int, w: int, k: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x with an average of its own, weight and bias."""
    x = torch.randn(n, c, h, w) + torch.randn(n, c, 1, 1)
    return [t.to(dtype) for t in (x, torch.randn(k, c) / c**0.5, torch.randn(k))]


def eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), weight, bias)


def check(assert_accurate: Callable[..., None], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = ops.avg_pool_linear(x, weight, bias)
    wide = [t.double() for t in (x, weight, bias)]
    sizes = [t.abs() for t in wide]
    exact = eager(*wide)
    assert_accurate(out, eager(x, weight, bias), exact, magnitude=lambda: eager(*sizes))
    assert out.is_contiguous()
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_and_dtypes(assert_accurate, size, dtype, set_threads, kernels):
    x, weight, bias = make(*size, dtype)
    for layout in LAYOUTS:
        out = check(assert_accurate, laid_out(x, layout), weight, bias)
        assert out.dtype == dtype
    if kernels == "reference":
        return  # PyTorch's product depends on the number of threads
    for threads in (1, 3):
        set_threads(threads)
        expected = ops.avg_pool_linear(x, weight, bias)
        set_threads(2)
        assert torch.equal(ops.avg_pool_linear(x, weight, bias), expected)


def test_large_images_lose_no_digits(assert_accurate):
    check(assert_accurate, *make(1, 8, 211, 193, 3))


def test_without_bias_and_without_images():
    x, weight, bias = make(3, 17, 5, 4, 7)
    without = ops.avg_pool_linear(x, weight)
    torch.testing.assert_close(without + bias, ops.avg_pool_linear(x, weight, bias))
    assert ops.avg_pool_linear(x[:0], weight, bias).shape == (0, 7)
    assert ops.avg_pool_linear(x, weight[:0], bias[:0]).shape == (3, 0)


def test_any_strides_of_the_weight(assert_accurate, kernels):
    x, weight, bias = make(2, 33, 3, 5, 12)
    expected = ops.avg_pool_linear(x, weight, bias)
    found = check(assert_accurate, x, weight.t().contiguous().t(), bias)
    if kernels != "reference":  # PyTorch's product depends on them, on some processors
        assert torch.equal(found, expected)
    wide = torch.stack([bias, bias], dim=1)
    assert torch.equal(ops.avg_pool_linear(x, weight, wide[:, 0]), expected)


def test_what_is_not_finite_stays_in_its_image():
    x, weight, bias = make(3, 17, 5, 4, 7)
    x[1, 3, 2, 2] = float("nan")
    x[2, 5, 0, 0] = float("inf")
    out = ops.avg_pool_linear(x, weight.abs() + 0.1, bias)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert (out[2] == float("inf")).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 4)}, ValueError, "x must (be 4-D|have 4 dim)"),
        (
            {"x": torch.ones(2, 4, 0, 3)},
            ValueError,
            r"x must have pixels, got shape \[2, 4, 0, 3\]",
        ),
        ({"x": torch.ones(2, 4, 3, 3).int()}, TypeError, "x must be torch.float32"),
        (
            {"weight": torch.ones(5, 3)},
            ValueError,
            r"weight must have shape \[K, 4\], got \[5, 3\]",
        ),
        ({"weight": torch.ones(5, 4, 1)}, ValueError, r"weight must have shape \[K, 4\]"),
        ({"weight": torch.ones(5, 4).half()}, TypeError, "weight must be torch.float32"),
        ({"weight": [[1.0]]}, TypeError, "weight must be a tensor, got list"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \[5\], got \[4\]"),
        ({"bias": torch.ones(5).bfloat16()}, TypeError, "bias must be torch.float32"),
        ({"bias": torch.ones(5, device="meta")}, ValueError, "bias must be on the same device"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"x": torch.ones(2, 4, 3, 3), "weight": torch.ones(5, 4), "bias": torch.ones(5)}
    with pytest.raises(error, match=f"^avg_pool_linear: {message}"):
        ops.avg_pool_linear(**arguments | change)


def test_the_operator_checks_dtypes_itself():
    x, weight, bias = make(1, 4, 3, 3, 5)
    for name, operands in (("weight", (weight.half(), bias)), ("bias", (weight, bias.half()))):
        with pytest.raises(ValueError, match=f"avg_pool_linear: {name} must have x's dtype"):
            OP(x, *operands)


def test_opcheck():
    operands = [t.requires_grad_() for t in make(2, 5, 3, 4, 6)]
    torch.library.opcheck(OP, operands)
    torch.library.opcheck(OP, (*(t.detach() for t in operands[:2]), None))


def test_gradients():
    operands = [t.requires_grad_() for t in make(2, 3, 3, 2, 4, torch.double)]
    assert torch.autograd.gradcheck(ops.avg_pool_linear, operands)
    assert torch.autograd.gradgradcheck(ops.avg_pool_linear, operands)
    for dtype in DTYPES:
        ours = [t.requires_grad_() for t in make(2, 17, 5, 3, 9, dtype)]
        grad = torch.randn(2, 9).to(dtype)
        actual = torch.autograd.grad(ops.avg_pool_linear(*ours), ours, grad)
        expected = torch.autograd.grad(eager(*(t.double() for t in ours)), ours, grad.double())
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b)


def test_autocast_casts_all():
    x, weight, bias = make(2, 17, 5, 4, 7)
    expected = ops.avg_pool_linear(*(t.bfloat16() for t in (x, weight, bias)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.avg_pool_linear(x, weight, bias), expected)


# ---- where accelerate and freeze call it ---------------------------------------------------------


def names(model: nn.Module, x: Tensor) -> set[str]:
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(x)
    return {event.name for event in profile.events() if event.name.startswith("fastres::")}


def body() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), nn.ReLU())


def net(forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> nn.Module:
    return randomised(Function(forward, body=body(), fc=nn.Linear(12, 5), **modules))


HEADS = {
    "torchvision": lambda: randomised(
        nn.Sequential(body(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(12, 5))
    ),
    "dropout": lambda: randomised(
        nn.Sequential(
            body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(0.3), nn.Linear(12, 5)
        )
    ),
    "flatten": lambda: net(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.body(x), 1).flatten(1))),
    "torch.flatten": lambda: net(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(m.body(x), (1, 1)), 1))
    ),
    "mean": lambda: net(lambda m, x: m.fc(m.body(x).mean((2, 3)))),
    "mean, keepdim": lambda: net(
        lambda m, x: m.fc(torch.flatten(torch.mean(m.body(x), [-1, -2], True), 1))
    ),
}
KEPT = {
    "F.linear": lambda: net(lambda m, x: F.linear(m.body(x).mean([2, 3]), m.fc.weight, m.fc.bias)),
    "no bias": lambda: net(
        lambda m, x: m.other(m.body(x).mean((2, 3))), other=nn.Linear(12, 5, False)
    ),
    "pooling read twice": lambda: net(lambda m, x: [p := m.body(x).mean((2, 3)), m.fc(p)]),
    "other pooling": lambda: net(
        lambda m, x: m.other(F.adaptive_avg_pool2d(m.body(x), (1, 2)).flatten(1)),
        other=nn.Linear(24, 5),
    ),
    "mean of one axis": lambda: net(
        lambda m, x: m.other(m.body(x).mean((3,)).flatten(1)), other=nn.Linear(12 * 8, 5)
    ),
    "no flattening": lambda: net(
        lambda m, x: m.other(F.adaptive_avg_pool2d(m.body(x), 1)), other=nn.Linear(1, 5)
    ),
    "flattened batch": lambda: net(
        lambda m, x: m.other(F.adaptive_avg_pool2d(m.body(x), 1).flatten(0)),
        other=nn.Linear(24, 5),
    ),
    "a write in between": lambda: net(_writes),
    "layer called twice": lambda: net(
        lambda m, x: m.fc((y := m.body(x)).mean((2, 3))) + m.fc(y.amax((2, 3)))
    ),
    "hooked pooling": lambda: _hooked(
        net(lambda m, x: m.fc(m.mean(m.body(x), (2, 3))), mean=Mean())
    ),
}


def _writes(m: Any, x: Tensor) -> Tensor:
    y = m.body(x)
    pooled = y.mean((2, 3))
    y.zero_()
    return m.fc(pooled)


class Mean(nn.Module):
    """Called ``mean``, and no mean."""

    def forward(self, x: Tensor, dims: tuple[int, int]) -> Tensor:
        return x.amax(dims)


def _hooked(model: nn.Module) -> nn.Module:
    model.mean.register_forward_hook(lambda module, args, out: out + 1)
    return model


@pytest.mark.parametrize("make_net", HEADS.values(), ids=HEADS.keys())
def test_heads(make_net):
    model, x = make_net(), torch.randn(2, 3, 8, 9)
    expected = model(x).detach()
    frozen = fastres.freeze(model)
    for ours in (frozen, torch.jit.script(frozen), fastres.accelerate(copy.deepcopy(model))):
        torch.testing.assert_close(ours(x).detach(), expected)
        assert "fastres::avg_pool_linear" in names(ours, x)
    torch.testing.assert_close(fastres.unpack(frozen)(x), expected)


@pytest.mark.parametrize("make_net", KEPT.values(), ids=KEPT.keys())
def test_what_is_no_head_stays(make_net):
    model, x = make_net(), torch.randn(2, 3, 8, 9)
    with torch.no_grad():
        expected = model(x)
        for ours in (fastres.freeze(model), fastres.accelerate(copy.deepcopy(model))):
            torch.testing.assert_close(ours(x), expected)
            assert "fastres::avg_pool_linear" not in names(ours, x)


def test_an_accelerated_head_follows_its_layer():
    model, x = HEADS["torchvision"](), torch.randn(2, 3, 8, 9)
    accelerated = fastres.accelerate(copy.deepcopy(model))
    changes: list[Callable[[nn.Module], Any]] = [
        lambda m: m[3].weight.data.mul_(2),
        lambda m: setattr(m[3], "bias", nn.Parameter(torch.arange(5.0))),
        lambda m: m[3].register_forward_hook(lambda module, args, out: out + 1),
        lambda m: setattr(m[3], "bias", None),
    ]
    with torch.no_grad():
        for change in changes:
            for each in (model, accelerated):
                change(each)
            torch.testing.assert_close(accelerated(x), model(x))
        linear = nn.Linear(12, 3)
        for each in (model, accelerated):
            each[3] = linear
        torch.testing.assert_close(accelerated(x), model(x))


class Foreign(Tensor):
    """A weight that computes by itself, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, bias = args
            return F.linear(x, 2 * weight.as_subclass(Tensor), bias)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_parameters_of_a_type_of_their_own():
    model, x = HEADS["torchvision"](), torch.randn(2, 3, 8, 9)
    before, after = fastres.accelerate(copy.deepcopy(model)), copy.deepcopy(model)
    for each in (model, before, after):
        plain = each[3].weight.detach()
        each[3].weight = nn.Parameter(plain.as_subclass(Foreign), requires_grad=False)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(before(x), expected)
        torch.testing.assert_close(fastres.accelerate(after)(x), expected)


def test_contiguous_form_copies_nothing():
    frozen = fastres.freeze(HEADS["torchvision"]())
    assert "contiguous" not in frozen.code


def test_a_head_trains():
    model, x = HEADS["torchvision"](), torch.randn(2, 3, 8, 9)
    accelerated = fastres.accelerate(copy.deepcopy(model))
    for each in (model, accelerated):
        each(x).square().sum().backward()
    torch.testing.assert_close(accelerated[3].weight.grad, model[3].weight.grad)
    torch.testing.assert_close(accelerated[3].bias.grad, model[3].bias.grad)
