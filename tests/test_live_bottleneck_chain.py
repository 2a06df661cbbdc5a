"""live_bottleneck_chain is live_bottleneck one after the other, in one operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bottleneck_case import CHAIN, LONG, BottleneckCase, make_block
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS, laid_out
from nets import Bottleneck, conv_bn, randomised
from torch import Tensor, nn

import fastres
from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

OP = torch.ops.fastres.live_bottleneck_chain.default
NAME = "fastres::live_bottleneck_chain"


def make_chain(cases: list[BottleneckCase], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The operator's arguments but x."""
    blocks = [make_block(case, dtype)[1] for case in cases]
    return {
        "weights": [weight for block in blocks for weight in block.weights],
        "scale": torch.cat([scale for block in blocks for scale in block.scales]),
        "shift": torch.cat([shift for block in blocks for shift in block.shifts]),
        "algorithms": [case.algorithm for case in cases],
        "convs": [len(case.convs()) for case in cases],
        "stride": [case.stride for case in cases],
        "dilation": [case.dilation for case in cases],
        "groups": [case.groups for case in cases],
    }


def one_by_one(x: Tensor, chain: dict[str, Any], act: str = "relu") -> Tensor:
    channels = [len(weight) for weight in chain["weights"]]
    vectors = (chain[name].split(channels) for name in ("scale", "shift"))
    convs = list(zip(chain["weights"], *vectors, strict=True))
    begin = 0
    for i, count in enumerate(chain["convs"]):
        layers = [tensor for conv in convs[begin : begin + count] for tensor in conv]
        options = {name: chain[name][i] for name in ("stride", "dilation", "groups")}
        x = ops.live_bottleneck(x, *layers, **options, algorithm=chain["algorithms"][i], act=act)
        begin += count
    return x


def make_x(dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> Tensor:
    return laid_out(torch.randn(2, 17, 13, 7).to(dtype), layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_its_blocks(dtype, layout, set_threads):
    x, chain = make_x(dtype, layout), make_chain(CHAIN, dtype)
    before = [tensor.clone() for tensor in (x, *chain["weights"])]
    expected = one_by_one(x, chain)
    for threads in (1, 2, 3):
        set_threads(threads)
        out = ops.live_bottleneck_chain(x, **chain)
        assert torch.equal(out, expected)
        assert out.dtype == dtype
        assert out.stride() == expected.stride()
    assert all(map(torch.equal, (x, *chain["weights"]), before))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    x, chain = make_x(), make_chain(CHAIN)
    assert torch.equal(ops.live_bottleneck_chain(x, **chain, act=act), one_by_one(x, chain, act))


@pytest.mark.parametrize("cases", [CHAIN[:1], LONG], ids=["one", "thirteen"])
def test_lengths(cases):
    x, _ = make_block(cases[0])
    chain = make_chain(cases)
    assert torch.equal(ops.live_bottleneck_chain(x, **chain), one_by_one(x, chain))


def test_steps_may_differ_by_axis():
    x, chain = make_x(), make_chain(CHAIN[:3])
    chain |= {"stride": [(2, 1), 1, (1, 2)], "dilation": [(1, 2), (2, 1), 1]}
    assert torch.equal(ops.live_bottleneck_chain(x, **chain), one_by_one(x, chain))


def test_defaults_are_direct_and_one():
    x, chain = make_x(), make_chain(CHAIN[:1])
    bare = {name: chain[name] for name in ("weights", "scale", "shift", "convs")}
    expected = ops.live_bottleneck_chain(x, **chain)
    assert torch.equal(ops.live_bottleneck_chain(x, **bare), expected)


def test_strided_vectors_and_weights():
    x, chain = make_x(), make_chain(CHAIN)
    expected = ops.live_bottleneck_chain(x, **chain)
    for name in ("scale", "shift"):
        chain[name] = torch.stack([chain[name], -chain[name]], dim=1)[:, 0]
    chain["weights"] = [weight.flip(0).flip(0).mT.contiguous().mT for weight in chain["weights"]]
    assert torch.equal(ops.live_bottleneck_chain(x, **chain), expected)


def test_float64_goes_to_the_reference():
    x, chain = make_x(torch.double), make_chain(CHAIN, torch.double)
    chain |= {name: chain[name].double() for name in ("scale", "shift")}
    assert torch.equal(ops.live_bottleneck_chain(x, **chain), one_by_one(x, chain))


def test_no_image():
    x, chain = make_x()[:0], make_chain(CHAIN)
    assert ops.live_bottleneck_chain(x, **chain).shape == (0, 64, 7, 4)


# ---- errors --------------------------------------------------------------------------------------


def flat(x: Any, chain: dict[str, Any]) -> tuple[Any, ...]:
    """The operator's own arguments."""
    pairs = ([n for n in chain[name] for _ in "vh"] for name in ("stride", "dilation"))
    constants = (chain[name] for name in ("weights", "scale", "shift", "algorithms", "convs"))
    return (x, *constants, *pairs, chain["groups"], "relu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convs": []}, "convs must have at least one element, got none"),
        ({"convs": [3, 5]}, "convs must be 3 or 4 of each block, got 5"),
        ({"convs": [3, 3]}, "weights must have 6 elements, got 7"),
        ({"weights": [torch.ones(4, 4, 1, 1)] * 6}, "weights must have 7 elements, got 6"),
        ({"weights": [torch.ones(4)] * 7}, r"weights\[0\] must be 4-D .*\[4\]"),
        ({"weights": [torch.ones(4, 4, 1, 1)] * 7}, r"scale must have shape \[28\], got \[179\]"),
        ({"scale": torch.zeros(5)}, r"scale must have shape \[179\], got \[5\]"),
        ({"shift": torch.zeros(5)}, r"shift must have shape \[179\], got \[5\]"),
        ({"algorithms": ["direct"]}, "algorithms must have 2 elements, got 1"),
        ({"algorithms": ["direct", "fft"]}, "block 1: .*algorithm must be"),
        ({"algorithms": ["direct", "winograd"]}, "block 1: .*winograd"),
        ({"groups": [1]}, "groups must have 2 elements, got 1"),
        ({"stride": [1]}, "stride must have 4 elements, got 2"),
        ({"dilation": [1, 1, 1]}, "dilation must have 4 elements, got 6"),
        ({"groups": [1, 5]}, "block 1: .*groups"),
        ({"stride": [1, 2]}, r"block 1: .*\[2, 33, 7, 4\]"),
        ({"stride": [0, 1]}, "block 0: stride must be"),
    ],
)
@pytest.mark.parametrize("function", [ops.live_bottleneck_chain, OP], ids=["public", "operator"])
def test_errors_name_the_block_and_the_argument(function, change, message):
    x, chain = make_x(), make_chain(CHAIN[:2]) | change
    arguments, options = (flat(x, chain), {}) if function is OP else ((x,), chain)
    with pytest.raises(ValueError, match=f"^live_bottleneck_chain: {message}"):
        function(*arguments, **options)


def test_types_devices_and_gradients():
    x, chain = make_x(), make_chain(CHAIN[:1])
    weights, scale = chain["weights"], chain["scale"]
    for change, error, message in (
        ({"weights": [*weights[:3], weights[3].int()]}, TypeError, r"weights\[3\] must be"),
        ({"scale": scale.half()}, TypeError, "scale must be torch.float32"),
        ({"shift": scale.to("meta")}, ValueError, "shift must be on the same device"),
        ({"scale": scale.clone().requires_grad_()}, ValueError, "scale requires grad"),
        ({"weights": [w.clone().requires_grad_() for w in weights]}, ValueError, r"weights\[0\] r"),
    ):
        with pytest.raises(error, match=f"live_bottleneck_chain: {message}"):
            ops.live_bottleneck_chain(x, **chain | change)


def test_opcheck():
    torch.library.opcheck(OP, flat(make_x(), make_chain(CHAIN[:3])))


def test_autocast_casts_x_alone():
    x, chain = make_x(), make_chain(CHAIN)
    expected = ops.live_bottleneck_chain(x.bfloat16(), **chain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.live_bottleneck_chain(x, **chain), expected)


# ---- where accelerate calls it -------------------------------------------------------------------


def calls(model: nn.Module, x: Tensor) -> list[str]:
    """The operators of bottlenecks that a call runs; checks its value."""
    expected = fastres.restore(model)(x)
    fastres.accelerate(model)
    model(x)
    with torch.profiler.profile() as profile:
        out = model(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    names = [event.name for event in profile.events()]
    if NAME in names:  # whose blocks the reference calls as operators
        names = [name for name in names if name != "fastres::live_bottleneck"]
    return [name for name in names if name.startswith("fastres::live_bottleneck")]


def stage(**options: Any) -> nn.Sequential:
    first = Bottleneck(stride=2, **options)
    return randomised(nn.Sequential(first, Bottleneck(**options), Bottleneck(**options)))


class Bare(nn.Module):
    """A bottleneck without BatchNorm, whose convolutions have no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(16, 16, kernel, padding=kernel // 2) for kernel in (1, 3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        y = third(torch.relu(second(torch.relu(first(x)))))
        return torch.relu(y + x)


@pytest.mark.parametrize(
    ("model", "chains"),
    [
        (stage(), 1),
        (nn.Sequential(Bare(), Bottleneck()), 1),
        (nn.Sequential(stage(), conv_bn(16, 16), nn.ReLU(), stage()), 2),
        (nn.Sequential(Bottleneck(), nn.Sigmoid(), Bottleneck()), 0),
    ],
    ids=["a stage", "no BatchNorm", "something between two", "something between blocks"],
)
@torch.no_grad()
def test_accelerate_joins_blocks(kernels, model, chains):
    x = torch.randn(2, 16, 9, 7)
    found = calls(randomised(model), x)
    if kernels != "reference":
        assert found.count(NAME) == chains
        assert bool(chains) == (len(found) == chains)


@torch.no_grad()
def test_a_chain_is_never_stale():
    model, x = stage(), torch.randn(2, 16, 9, 7)
    plain = fastres.restore(model)
    for change in (
        lambda block: block.conv2.weight.data.mul_(2),
        lambda block: block.bn3.running_var.data.mul_(3),
        lambda block: setattr(block.bn1, "weight", nn.Parameter(block.bn1.weight * 0.5)),
        lambda block: block.conv1.to(memory_format=torch.channels_last),
    ):
        fastres.accelerate(model)
        model(x)
        change(model[1])
        out = model(x)
        torch.testing.assert_close(out, fastres.restore(plain)(x), rtol=1e-4, atol=1e-4)


def test_vectors_of_a_call_in_inference_mode_serve_others():
    model, x = fastres.accelerate(stage()), torch.randn(2, 16, 9, 7)
    with torch.inference_mode():
        expected = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
