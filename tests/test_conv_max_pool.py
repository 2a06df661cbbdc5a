"""conv_max_pool and live_conv_max_pool are max_pool of conv_bn_act, in one operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conv_case import (
    ACTIVATIONS,
    BANDS,
    DTYPES,
    LAYOUTS,
    PATHS,
    SLOPE,
    ConvCase,
    Inputs,
    exact,
    magnitude,
    make_inputs,
    same,
)
from nets import conv_bn, randomised
from torch import nn
from torch.nn import functional as F

import fastres
from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

STEM = PATHS["7x7/2 stem"]
DIRECT = {name: case for name, case in PATHS.items() if case.algorithm == "direct"}
TALL = {name: case for name, case in BANDS.items() if case.algorithm == "direct"}

# pool_size, pool_stride, pool_padding
WINDOWS = [
    (3, 2, 1),
    (2, 2, 0),
    ((3, 2), (1, 3), (1, 0)),
    (5, 1, 2),
    (1, 3, 0),
]


def pooled(
    case: ConvCase, inputs: Inputs, window: tuple[Any, Any, Any], act: str = "relu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both operators, and what they stand for."""
    x, weight, scale, shift, _ = inputs
    names = ("pool_size", "pool_stride", "pool_padding")
    options = dict(zip(names, window, strict=True), act=act, act_slope=SLOPE)
    geometry = case.arguments()
    packed = ops.pack_conv_weight(weight, scale, case.groups)
    out = ops.conv_max_pool(x, packed, shift, **geometry, **options)
    apart = ops.max_pool(
        ops.conv_bn_act(x, packed, shift, **geometry, act=act, act_slope=SLOPE), *window
    )
    del geometry["kernel_size"]
    live = ops.live_conv_max_pool(x, weight, scale, shift, **geometry, **options)
    return out, live, apart


def check(
    case: ConvCase, inputs: Inputs, window: tuple[Any, Any, Any], act: str = "relu"
) -> torch.Tensor:
    out, live, apart = pooled(case, inputs, window, act)
    assert torch.equal(out, apart)
    assert torch.equal(live, apart)
    assert out.stride() == live.stride() == apart.stride()
    return out


@pytest.mark.parametrize("case", DIRECT.values(), ids=list(DIRECT))
def test_every_kernel(case, set_threads):
    inputs = make_inputs(case)
    for threads in (1, 3):
        set_threads(threads)
        check(case, inputs, (3, 2, 1) if min(exact(case, inputs).shape[2:]) > 1 else (1, 1, 0))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("case", TALL.values(), ids=list(TALL))
def test_rows_in_bands(case, window, set_threads):
    inputs = make_inputs(case)
    for threads in (1, 2, 5):
        set_threads(threads)
        check(case, inputs, window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_and_layouts(dtype, layout):
    check(STEM, make_inputs(STEM, dtype, layout), (3, 2, 1))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    check(STEM, make_inputs(STEM), (3, 2, 1), act)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_within_the_contract(window, assert_accurate):
    inputs = make_inputs(same(3, 64, 7, 2, h=33, w=29))
    out = check(STEM, inputs, window)
    y = exact(STEM, inputs, "relu")
    eager = F.relu(
        F.conv2d(inputs.x, inputs.weight, None, 2, 3) * inputs.scale[:, None, None]
        + inputs.shift[:, None, None]
    )
    terms = magnitude(STEM, inputs)
    assert_accurate(
        out,
        F.max_pool2d(eager, *window),
        F.max_pool2d(y, *window),
        magnitude=lambda: F.max_pool2d(terms, *window),
    )


def test_what_is_not_finite_goes_where_it_does_apart():
    inputs = make_inputs(STEM)
    for value in (float("nan"), float("inf"), -float("inf")):
        inputs.x[torch.rand_like(inputs.x) < 0.01] = value
    out, live, apart = pooled(STEM, inputs, (3, 2, 1))
    for actual in (out, live):
        torch.testing.assert_close(actual, apart, rtol=0, atol=0, equal_nan=True)


def test_fewer_rows_than_threads(set_threads):
    case = same(3, 64, 7, 2, h=13, w=14, n=1)
    inputs = make_inputs(case)
    for threads in (1, 4):
        set_threads(threads)
        check(case, inputs, (7, 7, 0))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_unpadded_images_with_channels_between(kernel):
    case = ConvCase(3, 64, (kernel, kernel), (2, 2), h=33, w=29)
    check(case, make_inputs(case, layout="channel_sliced"), (3, 2, 1))


def test_empty_batch_and_float64():
    empty = make_inputs(same(3, 64, 7, 2, h=33, w=29, n=0))
    assert check(STEM, empty, (3, 2, 1)).shape == (0, 64, 9, 8)
    double = Inputs(*(t if t is None else t.double() for t in make_inputs(STEM)))
    out = check(STEM, double, (3, 2, 1))
    torch.testing.assert_close(out, F.max_pool2d(exact(STEM, double, "relu"), 3, 2, 1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(4, 6, 6)}, ValueError, "x must"),
        ({"x": torch.ones(1, 4, 6, 6).long()}, TypeError, "x must"),
        ({"shift": torch.ones(3)}, ValueError, "shift must"),
        ({"pool_size": 0}, ValueError, "pool_size"),
        ({"pool_size": 7}, ValueError, "the convolution's output must be as large as pool_size"),
        ({"pool_stride": 0}, ValueError, "pool_stride"),
        ({"pool_padding": 2}, ValueError, "pool_padding must be 2 ints from 0 to half of pool_siz"),
        ({"pool_padding": -1}, ValueError, "pool_padding"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    weight = torch.ones(8, 4, 3, 3)
    arguments = {"x": torch.ones(1, 4, 6, 6), "shift": torch.zeros(8), "padding": 1}
    arguments |= {"pool_size": 3} | change
    x = arguments.pop("x")
    with pytest.raises(error, match=f"^conv_max_pool: .*{message}"):
        ops.conv_max_pool(x, ops.pack_conv_weight(weight), kernel_size=3, **arguments)
    with pytest.raises(error, match=f"live_conv_max_pool: .*{message}"):
        ops.live_conv_max_pool(x, weight, None, **arguments)


def test_weights_for_winograd():
    inputs = make_inputs(PATHS["3x3 winograd"])
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale, algorithm="winograd")
    call = {"kernel_size": 3, "padding": 1, "act": "relu"}
    apart = ops.max_pool(ops.conv_bn_act(inputs.x, packed, inputs.shift, **call), 3, 2, 1)
    pool = {"pool_size": 3, "pool_stride": 2, "pool_padding": 1}
    assert torch.equal(ops.conv_max_pool(inputs.x, packed, inputs.shift, **call, **pool), apart)


def _operands(x: torch.Tensor) -> tuple[Any, ...]:
    packed = ops.pack_conv_weight(torch.randn(5, 3, 3, 3), groups=1)
    geometry = ([3, 3], [2, 2], [1, 1, 1, 1], [1, 1], 1, "relu", 0.0)
    return x, packed, torch.randn(5, requires_grad=True), *geometry, [3, 3], [2, 2], [1, 1]


def test_opcheck():
    x = torch.randn(2, 3, 11, 9, requires_grad=True)
    torch.library.opcheck(torch.ops.fastres.conv_max_pool.default, _operands(x))
    live = (x.detach(), torch.randn(5, 3, 3, 3), torch.rand(5), torch.randn(5))
    torch.library.opcheck(
        torch.ops.fastres.live_conv_max_pool.default,
        (*live, [2, 2], [1, 1, 1, 1], [1, 1], 1, "relu", 0.0, [3, 3], [2, 2], [1, 1]),
    )


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_gradients_are_those_of_both_operators(act):
    x = torch.randn(2, 3, 11, 9, requires_grad=True)
    _, packed, shift, *geometry, size, stride, padding = _operands(x)
    geometry[-2] = act
    grad = torch.randn(2, 5, 3, 3)
    fused = torch.ops.fastres.conv_max_pool(x, packed, shift, *geometry, size, stride, padding)
    y = torch.ops.fastres.conv_bn_act(x, packed, shift, None, *geometry)
    apart = torch.ops.fastres.max_pool(y, size, stride, padding)
    for actual, expected in zip(
        torch.autograd.grad(fused, (x, shift), grad),
        torch.autograd.grad(apart, (x, shift), grad),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_autocast_casts_x_alone():
    inputs = make_inputs(STEM)
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale)
    call = {**STEM.arguments(), "act": "relu", "pool_size": 3, "pool_stride": 2}
    expected = ops.conv_max_pool(inputs.x.bfloat16(), packed, inputs.shift, **call)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.conv_max_pool(inputs.x, packed, inputs.shift, **call), expected)


# ---- where accelerate and freeze call it ---------------------------------------------------------


def names(model: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.no_grad(), torch.profiler.profile() as profile:
        model(x)
    return {event.name for event in profile.events() if event.name.startswith("fastres::")}


def stem(conv: nn.Module) -> nn.Module:
    return randomised(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(3, 2, 1)))


def test_a_stem_is_one_operator():
    x = torch.randn(2, 3, 31, 27)
    model = stem(conv_bn(3, 16, 7, stride=2))
    expected = model(x)
    for fused, op in (
        (fastres.freeze(model), "fastres::conv_max_pool"),
        (fastres.accelerate(model), "fastres::live_conv_max_pool"),
    ):
        torch.testing.assert_close(fused(x), expected)
        assert op in names(fused, x)


def test_what_else_reads_the_convolution_keeps_it_apart():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv_bn(3, 16, stride=2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = F.relu(self.stem(x))
            return y, F.max_pool2d(y, 3, 2, 1)

    x, model = torch.randn(2, 3, 11, 9), randomised(Both())
    frozen = fastres.freeze(model)
    torch.testing.assert_close(frozen(x), model(x))
    assert "fastres::conv_max_pool" not in names(frozen, x)


def test_a_write_to_the_input_in_between_keeps_it_apart():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv_bn(3, 16, 7, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.0
            y = F.relu(self.stem(x))
            x.mul_(2)
            return F.max_pool2d(y, 3, 2, 1) + x.mean()

    x, model = torch.randn(2, 3, 31, 27), randomised(Writes())
    expected = model(x)
    fused = fastres.accelerate(model)
    torch.testing.assert_close(fused(x), expected)
    assert "fastres::live_conv_bn_act" in names(fused, x)


def test_what_winograd_may_convolve_stays_apart():
    x, model = torch.randn(2, 32, 11, 9), stem(conv_bn(32, 32))
    assert "fastres::max_pool" in names(fastres.freeze(model), x)


def test_unpacks_to_pytorchs_operators():
    x, model = torch.randn(2, 3, 31, 27), stem(conv_bn(3, 16, 7, stride=2))
    unpacked = fastres.unpack(fastres.freeze(model))
    torch.testing.assert_close(unpacked(x), model(x))
    assert not names(unpacked, x)
