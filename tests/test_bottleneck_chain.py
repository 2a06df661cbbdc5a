"""bottleneck_chain is grouped_bottleneck one after the other, in one operator."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from bottleneck_case import CHAIN, LONG, BottleneckCase, block_arguments, make_block
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS, laid_out
from nets import Bottleneck, conv_bn, randomised
from torch import nn

import fastres
from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

REQUIRED = ("packed", "shift", "sizes", "channels", "convs")
OP = torch.ops.fastres.bottleneck_chain.default


def make_chain(cases: list[BottleneckCase], scale: float = 1.0) -> dict[str, Any]:
    """The operator's arguments but x."""
    parts: list[torch.Tensor] = []
    for case in cases:
        _, constants = make_block(case)
        constants = constants._replace(scales=[scale * s for s in constants.scales])
        parts += block_arguments(case, constants)
    packed, shift = parts[::2], parts[1::2]
    return {
        "packed": ops.join_packed(packed),
        "shift": torch.cat(shift),
        "sizes": [one.numel() for one in packed],
        "channels": [one.numel() for one in shift],
        "convs": [len(case.convs()) for case in cases],
        "stride": [case.stride for case in cases],
        "dilation": [case.dilation for case in cases],
        "groups": [case.groups for case in cases],
    }


def joined_sizes(sizes: list[int]) -> list[int]:
    return [-(-size // 64) * 64 for size in sizes]


def one_by_one(x: torch.Tensor, chain: dict[str, Any], act: str = "relu") -> torch.Tensor:
    packed = chain["packed"].split(joined_sizes(chain["sizes"]))
    shift = chain["shift"].split(chain["channels"])
    begin = 0
    for i, count in enumerate(chain["convs"]):
        constants = []
        for conv in range(begin, begin + count):
            constants += [packed[conv][: chain["sizes"][conv]], shift[conv]]
        options = {name: chain[name][i] for name in ("stride", "dilation", "groups")}
        x = ops.grouped_bottleneck(x, *constants, **options, act=act)
        begin += count
    return x


def make_x(dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> torch.Tensor:
    return laid_out(torch.randn(2, 17, 13, 7).to(dtype), layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_its_blocks(dtype, layout, set_threads):
    x, chain = make_x(dtype, layout), make_chain(CHAIN)
    before = x.clone()
    expected = one_by_one(x, chain)
    for threads in (1, 2, 3):
        set_threads(threads)
        out = ops.bottleneck_chain(x, **chain)
        assert torch.equal(out, expected)
        assert out.dtype == dtype
        assert out.stride() == expected.stride()
    assert torch.equal(x, before)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    x, chain = make_x(), make_chain(CHAIN)
    assert torch.equal(ops.bottleneck_chain(x, **chain, act=act), one_by_one(x, chain, act))


@pytest.mark.parametrize("cases", [CHAIN[:1], LONG], ids=["one", "thirteen"])
def test_lengths(cases):
    x, _ = make_block(cases[0])
    chain = make_chain(cases)
    assert torch.equal(ops.bottleneck_chain(x, **chain), one_by_one(x, chain))


def test_steps_may_differ_by_axis():
    x, chain = make_x(), make_chain(CHAIN[:3])
    chain |= {"stride": [(2, 1), 1, (1, 2)], "dilation": [(1, 2), (2, 1), 1]}
    assert torch.equal(ops.bottleneck_chain(x, **chain), one_by_one(x, chain))


def test_defaults_are_one():
    x, chain = make_x(), make_chain(CHAIN[:1])
    bare = {name: chain[name] for name in REQUIRED}
    assert torch.equal(ops.bottleneck_chain(x, **bare), ops.bottleneck_chain(x, **chain))


def test_no_image():
    x, chain = make_x()[:0], make_chain(CHAIN)
    assert ops.bottleneck_chain(x, **chain).shape == (0, 64, 7, 4)


# ---- errors --------------------------------------------------------------------------------------


def flat(x: Any, chain: dict[str, Any]) -> tuple[Any, ...]:
    """The operator's own arguments."""
    pairs = ([n for n in chain[name] for _ in "vh"] for name in ("stride", "dilation"))
    return (x, *(chain[name] for name in REQUIRED), *pairs, chain["groups"], "relu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convs": []}, "convs must have at least one element, got none"),
        ({"convs": [3, 5]}, "convs must be 3 or 4 of each block, got 5"),
        ({"convs": [3, 3]}, "sizes must have 6 elements, got 7"),
        ({"channels": [16] * 6}, "channels must have 7 elements, got 6"),
        ({"channels": [16] * 6 + [0]}, "channels must be positive, got 0"),
        ({"channels": [16] * 7}, r"shift must have shape \[112\], got \[179\]"),
        ({"channels": [17, 15, 33, 33, 24, 24, 33]}, "block 0: "),
        ({"sizes": [0] * 7}, "sizes must be positive, got 0"),
        ({"sizes": [128] * 3 + [2**62] * 4}, "packed must be what join_packed returned"),
        ({"sizes": [640] * 7}, "packed must be what join_packed returned .*4480 bytes"),
        ({"packed": torch.zeros(9, dtype=torch.uint8)}, "packed must be what join_packed returned"),
        ({"shift": torch.zeros(5)}, r"shift must have .*\[5\]"),
        ({"groups": [1]}, "groups must have 2 elements, got 1"),
        ({"stride": [1]}, "stride must have 4 elements, got 2"),
        ({"dilation": [1, 1, 1]}, "dilation must have 4 elements, got 6"),
        ({"groups": [1, 5]}, "block 1: groups"),
        ({"groups": [1, 4]}, "block 1: "),
        ({"stride": [1, 2]}, r"block 1: without .*\[2, 33, 7, 4\]"),
        ({"stride": [0, 1]}, "block 0: stride must be"),
    ],
)
@pytest.mark.parametrize("function", [ops.bottleneck_chain, OP], ids=["public", "operator"])
def test_errors_name_the_block_and_the_argument(function, change, message):
    x, chain = make_x(), make_chain(CHAIN[:2]) | change
    arguments, options = (flat(x, chain), {}) if function is OP else ((x,), chain)
    with pytest.raises(ValueError, match=f"^bottleneck_chain: {message}"):
        function(*arguments, **options)


def test_damaged_weights_are_found():
    x, chain = make_x(), make_chain(CHAIN[:2])
    header = sum(joined_sizes(chain["sizes"])[:4])
    chain["packed"][header] += 1  # the magic number of block 1's first weight
    with pytest.raises(ValueError, match=r"^bottleneck_chain: block 1: .*(header|made by)"):
        ops.bottleneck_chain(x, **chain)


def test_types_and_devices():
    x, chain = make_x(), make_chain(CHAIN[:2])
    for name, wrong, error, message in (
        ("packed", torch.zeros(99), TypeError, "packed must be torch.uint8"),
        ("shift", torch.zeros(33, dtype=torch.float16), TypeError, "shift must be torch.float32"),
        ("shift", torch.zeros(33, device="meta"), ValueError, "shift must be on the same device"),
    ):
        with pytest.raises(error, match=f"bottleneck_chain: {message}"):
            ops.bottleneck_chain(x, **chain | {name: wrong})


def test_joined_weights():
    weights = [ops.pack_conv_weight(torch.randn(k, 3, 1, 1)) for k in (5, 16, 33)]
    joined = ops.join_packed(weights)
    assert torch.equal(torch.ops.fastres.join_packed(weights), joined)
    sizes = [weight.numel() for weight in weights]
    for weight, part in zip(weights, joined.split(joined_sizes(sizes)), strict=True):
        assert torch.equal(part[: weight.numel()], weight)
        assert not part[weight.numel() :].any()
    torch.library.opcheck(torch.ops.fastres.join_packed.default, (weights,))
    for wrong, error, message in (
        ([], ValueError, "packed must have at least one element"),
        ([*weights, torch.zeros(99)], TypeError, r"packed\[3\] must be torch.uint8"),
        ([torch.zeros(9, dtype=torch.uint8)], ValueError, "packed must be what pack_conv_weight"),
    ):
        with pytest.raises(error, match=f"join_packed: {message}"):
            ops.join_packed(wrong)


# ---- what torch does with operators --------------------------------------------------------------


def test_opcheck():
    x, chain = make_x().requires_grad_(), make_chain(CHAIN[:3])
    chain["shift"].requires_grad_()
    torch.library.opcheck(OP, flat(x, chain))


def test_gradients_are_those_of_its_blocks():
    x, chain = make_x().requires_grad_(), make_chain(CHAIN)
    wanted = [x, chain["shift"].requires_grad_()]
    expected = one_by_one(x, chain)
    grad = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, wanted, grad)
    ours = torch.autograd.grad(ops.bottleneck_chain(x, **chain), wanted, grad)
    assert all(map(torch.equal, ours, theirs))
    out = ops.bottleneck_chain(x.detach(), **chain)
    assert torch.equal(torch.autograd.grad(out, wanted[1], grad)[0], theirs[1])


def test_backward_under_autocast_is_that_of_the_forward():
    x, chain = make_x().requires_grad_(), make_chain(CHAIN)
    out = ops.bottleneck_chain(x, **chain)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, grad, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (actual,) = torch.autograd.grad(out, x, grad)
    assert torch.equal(actual, expected)


def test_gradcheck():
    chain = make_chain(CHAIN[:2])
    packed = []
    for case in CHAIN[:2]:
        _, constants = make_block(case)
        packed += block_arguments(case, constants.map(torch.Tensor.double))[::2]
    shift = chain["shift"].double().requires_grad_()
    chain |= {"packed": ops.join_packed(packed), "sizes": [one.numel() for one in packed]}
    x = torch.randn(1, 17, 3, 2, dtype=torch.double, requires_grad=True)

    def run(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return ops.bottleneck_chain(x, **chain | {"shift": shift}, act="silu")

    assert torch.autograd.gradcheck(run, (x, shift))
    assert torch.autograd.gradgradcheck(run, (x, shift))


def test_autocast_casts_x_alone():
    x, chain = make_x(), make_chain(CHAIN)
    expected = ops.bottleneck_chain(x.bfloat16(), **chain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.bottleneck_chain(x, **chain), expected)


def test_vmap_over_inputs_and_constants():
    x, chain = torch.stack([make_x(), make_x()], dim=1), make_chain(CHAIN)
    shifts = torch.stack([chain["shift"], -chain["shift"]])

    def run(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return ops.bottleneck_chain(x, **chain | {"shift": shift})

    mapped = torch.vmap(run, in_dims=(1, 0))(x, shifts)
    assert torch.equal(mapped, torch.stack([run(x[:, i], shifts[i]) for i in range(2)]))


# ---- where freeze calls it -----------------------------------------------------------------------


def operators(frozen: Any) -> list[str]:
    names = (str(node.target) for node in frozen.graph.nodes if node.op == "call_function")
    return [name for name in names if name.startswith("fastres")]


def stage(**options: Any) -> nn.Sequential:
    first = Bottleneck(stride=2, **options)
    return randomised(nn.Sequential(first, Bottleneck(**options), Bottleneck(**options)))


def test_freeze_joins_blocks():
    model, x = stage(), torch.randn(2, 16, 9, 7)
    frozen = fastres.freeze(model, x)
    assert operators(frozen) == ["fastres.bottleneck_chain"]
    with torch.inference_mode():
        torch.testing.assert_close(frozen(x), model(x))
        assert torch.equal(copy.deepcopy(frozen)(x), frozen(x))
        buffer = io.BytesIO()
        scripted = torch.jit.script(frozen)
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        assert torch.equal(torch.jit.load(buffer)(x), frozen(x))
        folded = torch.jit.freeze(scripted.eval())  # what is constant there is used at every call
        for _ in range(4):
            assert torch.equal(folded(x), frozen(x))
        exported = torch.export.export(frozen, (x,)).module()
        assert torch.equal(exported(x), frozen(x))
        torch.testing.assert_close(fastres.unpack(frozen)(x), frozen(x), rtol=1e-4, atol=1e-4)


def test_unpacking_parts_several_chains():
    model = randomised(nn.Sequential(stage(), conv_bn(16, 16), nn.ReLU(), stage()))
    x = torch.randn(2, 16, 9, 7)
    frozen = fastres.freeze(model, x)
    assert operators(frozen).count("fastres.bottleneck_chain") == 2
    with torch.no_grad():
        torch.testing.assert_close(fastres.unpack(frozen)(x), model(x), rtol=1e-4, atol=1e-4)
        assert operators(fastres.unpack(frozen)) == []
        assert operators(frozen).count("fastres.bottleneck_chain") == 2


class Taps(nn.Module):
    """The blocks of a stage, whose values somebody else reads as well."""

    def __init__(self, read: int) -> None:
        super().__init__()
        self.blocks, self.read = stage(), read

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        taken = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.read:
                taken.append(x.mean())
        return [*taken, x]


@pytest.mark.parametrize(
    ("model", "joined"),
    [
        (Taps(0), ["grouped_bottleneck", "bottleneck_chain"]),
        (Taps(1), ["bottleneck_chain", "grouped_bottleneck"]),
        (Taps(2), ["bottleneck_chain"]),
        (nn.Sequential(stage(), stage(act=nn.SiLU)[1]), ["bottleneck_chain", "grouped_bottleneck"]),
        (nn.Sequential(Bottleneck(), nn.Sigmoid(), Bottleneck()), ["grouped_bottleneck"] * 2),
    ],
    ids=["first read", "second read", "last read", "two activations", "something between"],
)
def test_what_freeze_leaves_apart(model, joined):
    x = torch.randn(2, 16, 9, 7)
    model = randomised(model)
    frozen = fastres.freeze(model, x)
    assert operators(frozen) == [f"fastres.{name}" for name in joined]
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x))


def test_freeze_without_blocks_has_none():
    assert set(operators(fastres.freeze(stage(), fuse_blocks=False))) == {"fastres.conv_bn_act"}
