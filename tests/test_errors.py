"""Bad arguments: the error names the argument, what was got and what was expected."""

from __future__ import annotations

import pytest
import torch

from fastres import ops, reference
from fastres.schema import packed_weight

pytestmark = pytest.mark.usefixtures("kernels")


def conv_arguments() -> dict:
    return {
        "x": torch.randn(2, 8, 5, 7),
        "packed": ops.pack_conv_weight(torch.randn(12, 4, 3, 3), None, 2),
        "shift": torch.zeros(12),
        "residual": torch.randn(2, 12, 5, 7),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1, 1, 1),
        "dilation": (1, 1),
        "groups": 2,
        "act": "relu",
        "act_slope": 0.01,
    }


def block_arguments() -> dict:
    packed = ops.pack_conv_weight
    return {
        "x": torch.randn(2, 8, 5, 7),
        "packed1": packed(torch.randn(6, 8, 1, 1)),
        "shift1": torch.zeros(6),
        "packed2": packed(torch.randn(6, 2, 3, 3), None, 3),
        "shift2": torch.zeros(6),
        "packed3": packed(torch.randn(10, 6, 1, 1)),
        "shift3": torch.zeros(10),
        "packed_down": packed(torch.randn(10, 8, 1, 1)),
        "shift_down": torch.zeros(10),
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": 3,
        "act": "relu",
    }


def call(function, arguments: dict) -> torch.Tensor:
    """Calls a public function, or an operator itself, which takes no keywords under autograd."""
    if isinstance(function, torch._ops.OpOverload):
        return function(*arguments.values())
    return function(**arguments)


def packed(*shape: int, groups: int = 1) -> torch.Tensor:
    return ops.pack_conv_weight(torch.randn(shape), None, groups)


def winograd(k: int, c: int) -> torch.Tensor:
    # As the kernels pack it: the reference refuses what they refuse.
    return reference.pack_conv_weight(
        torch.randn(k, c, 3, 3), None, 1, layout=packed_weight.WINOGRAD
    )


# (changed arguments, what the message has to say); wrong values, so ValueError everywhere.
CONV_VALUES = {
    "rank 3": ({"x": torch.randn(8, 5, 7)}, r"x must .*\[8, 5, 7\]"),
    "rank 5": ({"x": torch.randn(1, 8, 5, 7, 1)}, r"x must .*\[1, 8, 5, 7, 1\]"),
    "channels": ({"x": torch.randn(2, 6, 5, 7)}, r"packed is of .*convolution.*4.*expected.*3"),
    "groups do not divide C": ({"x": torch.randn(2, 7, 5, 7)}, r"groups.*7 input channels"),
    "zero groups": ({"groups": 0}, r"groups must be positive.*0"),
    "negative groups": ({"groups": -2}, r"groups must be positive.*-2"),
    "other groups": ({"groups": 4}, r"packed is of .*convolution.*expected"),
    "other kernel": ({"kernel_size": (1, 3)}, r"packed is of .*convolution.*expected"),
    "zero kernel": ({"kernel_size": (0, 3)}, r"kernel_size must be .*positive.*0, 3"),
    "zero stride": ({"stride": (1, 0)}, r"stride must be .*positive.*1, 0"),
    "negative stride": ({"stride": (-1, 1)}, r"stride must be .*positive.*-1, 1"),
    "zero dilation": ({"dilation": (0, 1)}, r"dilation must be .*positive.*0, 1"),
    "negative padding": ({"padding": (1, 1, -1, 1)}, r"padding must .*negative.*-1"),
    "huge stride": ({"stride": (1, 2**31)}, r"stride must be at most.*2147483648"),
    "huge dilation": (
        {"dilation": (2**63 - 1, 1)},
        r"dilation must be at most.*92233720368",
    ),
    "huge padding": ({"padding": (2**62, 2**62, 1, 1)}, r"padding must be at most.*46116860184"),
    "input below kernel": (
        {"x": torch.randn(2, 8, 1, 7), "padding": (0, 1, 1, 1), "residual": None},
        r"x .*too small.*2.*3",
    ),
    "no rows": ({"x": torch.randn(2, 8, 0, 7), "padding": (2, 2, 1, 1)}, r"x .*too small"),
    "act": ({"act": "gelu"}, r"act must be .*none.*leaky_relu.*gelu"),
    "short shift": ({"shift": torch.zeros(6)}, r"shift must have shape \[12\].*\[6\]"),
    "matrix shift": ({"shift": torch.zeros(12, 1)}, r"shift must have .*\[12, 1\]"),
    "residual shape": (
        {"residual": torch.randn(2, 12, 5, 1)},
        r"residual must have .*\[2, 12, 5, 7\].*\[2, 12, 5, 1\]",
    ),
    "residual rank": ({"residual": torch.randn(12)}, r"residual must have .*\[12\]"),
    "another convolution": (
        {"packed": packed(12, 4, 5, 5, groups=2)},
        r"packed is of .*convolution.*5.*expected.*3",
    ),
    "winograd with stride": (
        {"x": torch.randn(2, 4, 5, 7), "groups": 1, "stride": (1, 2), "packed": winograd(12, 4)},
        r"packed was packed with algorithm='winograd'.*stride \(1, 2\)",
    ),
    "winograd with dilation": (
        {"x": torch.randn(2, 4, 5, 7), "groups": 1, "dilation": (2, 1), "packed": winograd(12, 4)},
        r"packed was packed with algorithm='winograd'.*dilation \(2, 1\)",
    ),
    "not packed": ({"packed": torch.zeros(500, dtype=torch.uint8)}, "packed .*header"),
    "cut": ({"packed": packed(12, 4, 3, 3, groups=2)[:-4]}, "packed .*bytes"),
    "cut header": ({"packed": packed(1, 1, 1, 1)[:10]}, r"packed must be .*\[10\]"),
}
CONV_TYPES = {
    "int x": ({"x": torch.ones(2, 8, 5, 7, dtype=torch.int32)}, r"x must be .*float32"),
    "float packed": ({"packed": torch.zeros(500)}, r"packed must be .*uint8"),
    "float64 shift": ({"shift": torch.zeros(12).double()}, r"shift must be .*float32"),
    "bfloat16 shift": ({"shift": torch.zeros(12).bfloat16()}, r"shift must be .*float32"),
    "residual dtype": (
        {"residual": torch.randn(2, 12, 5, 7).bfloat16()},
        r"residual must .*(Float|float32).*(BFloat|bfloat)16",
    ),
}
BLOCK_VALUES = {
    "rank": ({"x": torch.randn(8, 5, 7)}, r"x must .*\[8, 5, 7\]"),
    "channels": ({"x": torch.randn(2, 6, 5, 7)}, r"packed1 is of .*convolution.*expected"),
    "zero stride": ({"stride": (0, 1)}, r"stride must be .*positive.*0, 1"),
    "zero dilation": ({"dilation": (1, 0)}, r"dilation must be .*positive.*1, 0"),
    "zero groups": ({"groups": 0}, r"groups.*0"),
    "groups do not divide": ({"groups": 4}, r"groups.*6"),
    "act": ({"act": "tanh"}, r"act must be .*none.*leaky_relu.*tanh"),
    "packed1": ({"packed1": packed(6, 8, 3, 3)}, r"packed1 is of .*convolution.*expected"),
    "packed2": ({"packed2": packed(6, 6, 3, 3)}, r"packed2 is of .*convolution.*expected"),
    "packed3": ({"packed3": packed(10, 5, 1, 1)}, r"packed3 is of .*convolution.*expected"),
    "packed_down": ({"packed_down": packed(10, 9, 1, 1)}, r"packed_down is of .*expected"),
    "shift1": ({"shift1": torch.zeros(5)}, r"shift1 must have shape"),
    "shift2": ({"shift2": torch.zeros(9)}, r"shift2 must have shape"),
    "shift3": ({"shift3": torch.zeros(9)}, r"shift3 must have shape"),
    "shift_down": ({"shift_down": torch.zeros(9)}, r"shift_down must have shape"),
    "half a shortcut": (
        {"packed_down": None},
        r"shift_down .*packed_down|packed_down .*shift_down",
    ),
    "other half": ({"shift_down": None}, r"shift_down .*packed_down|packed_down .*shift_down"),
    "channels of x": (
        {"packed_down": None, "shift_down": None},
        r"without packed_down .*\[2, 10, 5, 7\].*\[2, 8, 5, 7\]",
    ),
    "channels of the shortcut": (
        {"packed_down": packed(9, 8, 1, 1), "shift_down": torch.zeros(9)},
        "packed_down must have the 10 output channels of packed3, got 9",
    ),
    "not packed": ({"packed2": torch.zeros(500, dtype=torch.uint8)}, "packed2 .*header"),
}
BLOCK_TYPES = {
    "int x": ({"x": torch.ones(2, 8, 5, 7, dtype=torch.int32)}, r"x must be .*float32"),
    "float packed3": ({"packed3": torch.zeros(500)}, r"packed3 must be .*uint8"),
    "float64 shift2": ({"shift2": torch.zeros(6).double()}, r"shift2 must be .*float32"),
}


def cases(table: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("change", "message"), table.values(), ids=table.keys())


@pytest.mark.parametrize("function", [ops.conv_bn_act, torch.ops.fastres.conv_bn_act.default])
@cases(CONV_VALUES)
def test_conv_values(function, change, message):
    with pytest.raises(ValueError, match=f"conv_bn_act: {message}"):
        call(function, conv_arguments() | change)


@cases(CONV_TYPES)
def test_conv_types(change, message):
    with pytest.raises(TypeError, match=f"conv_bn_act: {message}"):
        ops.conv_bn_act(**conv_arguments() | change)
    with pytest.raises(ValueError, match=f"conv_bn_act: {message}"):
        call(torch.ops.fastres.conv_bn_act.default, conv_arguments() | change)


@pytest.mark.parametrize(
    "function", [ops.grouped_bottleneck, torch.ops.fastres.grouped_bottleneck.default]
)
@cases(BLOCK_VALUES)
def test_block_values(function, change, message):
    with pytest.raises(ValueError, match=f"grouped_bottleneck: .*({message})"):
        call(function, block_arguments() | change)


@cases(BLOCK_TYPES)
def test_block_types(change, message):
    with pytest.raises(TypeError, match=f"grouped_bottleneck: {message}"):
        ops.grouped_bottleneck(**block_arguments() | change)
    with pytest.raises(ValueError, match=f"grouped_bottleneck: {message}"):
        call(torch.ops.fastres.grouped_bottleneck.default, block_arguments() | change)


def test_identity_shortcut_needs_an_output_of_its_shape():
    arguments = block_arguments() | {
        "packed3": packed(8, 6, 1, 1),
        "shift3": torch.zeros(8),
        "packed_down": None,
        "shift_down": None,
    }
    assert ops.grouped_bottleneck(**arguments).shape == (2, 8, 5, 7)
    with pytest.raises(ValueError, match=r"without packed_down .*\[2, 8, 3, 4\]"):
        ops.grouped_bottleneck(**arguments | {"stride": 2})
    one_pixel = {"x": torch.randn(2, 8, 1, 1), "stride": 2}
    assert ops.grouped_bottleneck(**arguments | one_pixel).shape == (2, 8, 1, 1)


@pytest.mark.parametrize("name", ["packed", "shift", "residual"])
def test_conv_devices(name):
    arguments = conv_arguments()
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
        ops.conv_bn_act(**arguments)


@pytest.mark.parametrize("name", ["packed1", "shift2", "packed_down"])
def test_block_devices(name):
    arguments = block_arguments()
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} must be on the same device as x, got meta"):
        ops.grouped_bottleneck(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x must be a tensor, got list"),
        ({"packed": None}, "packed must be a tensor, got NoneType"),
        ({"kernel_size": 3.0}, "kernel_size must be an int or a pair of ints, got 3.0"),
        ({"stride": (1, 2, 3)}, r"stride must be an int or a pair of ints, got \(1, 2, 3\)"),
        ({"dilation": "2"}, "dilation must be an int or a pair of ints, got '2'"),
        ({"padding": (1, 2, 3)}, r"padding must be .* got \(1, 2, 3\)"),
        ({"padding": (1, 1, 1, 0.5)}, r"padding must be .* got \(1, 1, 1, 0.5\)"),
        ({"padding": None}, "padding must be .* got None"),
    ],
    ids=str,
)
def test_arguments_of_no_use(change, message):
    with pytest.raises(TypeError, match=message):
        ops.conv_bn_act(**conv_arguments() | change)


def test_padding_strings():
    with pytest.raises(ValueError, match="padding must be ints, 'same' or 'valid', got 'reflect'"):
        ops.conv_bn_act(**conv_arguments() | {"padding": "reflect"})
    with pytest.raises(ValueError, match=r"padding 'same' needs stride 1, got \(1, 2\)"):
        ops.conv_bn_act(**conv_arguments() | {"padding": "same", "stride": (1, 2)})


@pytest.mark.parametrize(
    ("weight", "scale", "groups", "algorithm", "message"),
    [
        (torch.randn(4, 4), None, 1, "direct", r"weight must .*\[4, 4\]"),
        (torch.randn(4, 4, 3), None, 1, "direct", r"weight must .*\[4, 4, 3\]"),
        (torch.randn(4, 0, 1, 1), None, 1, "direct", r"weight must .*\[4, 0, 1, 1\]"),
        (torch.randn(4, 4, 1, 1), None, 0, "direct", r"groups must be positive.*0"),
        (torch.randn(4, 4, 1, 1), None, 3, "direct", r"groups.*4 output channels"),
        (
            torch.randn(4, 4, 1, 1),
            torch.ones(3),
            1,
            "direct",
            r"scale must have shape \[4\].*\[3\]",
        ),
        (
            torch.randn(4, 4, 1, 1),
            torch.ones(4, 1),
            1,
            "direct",
            r"scale must have shape \[4\].*\[4, 1\]",
        ),
        (torch.randn(4, 4, 3, 3), None, 1, "fft", "algorithm must be 'direct' or 'winograd'.*fft"),
        (
            torch.randn(4, 4, 1, 1),
            None,
            1,
            "winograd",
            r"algorithm 'winograd' needs .*\[4, 4, 1, 1\]",
        ),
        (torch.randn(4, 2, 3, 3), None, 2, "winograd", r"algorithm 'winograd' needs .*2 groups"),
    ],
)
def test_pack_values(weight, scale, groups, algorithm, message):
    for function in (ops.pack_conv_weight, torch.ops.fastres.pack_conv_weight):
        with pytest.raises(ValueError, match=f"pack_conv_weight: {message}"):
            function(weight, scale, groups, algorithm)


def test_pack_types():
    with pytest.raises(TypeError, match=r"weight must be .*float32.*got torch\.int64"):
        ops.pack_conv_weight(torch.ones(4, 4, 1, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"scale must be torch\.float32, got torch\.bfloat16"):
        ops.pack_conv_weight(torch.randn(4, 4, 1, 1), torch.ones(4).bfloat16())
    with pytest.raises(TypeError, match="weight must be a tensor, got list"):
        ops.pack_conv_weight([1.0])
    with pytest.raises(ValueError, match="scale must be on the same device as"):
        ops.pack_conv_weight(torch.randn(4, 4, 1, 1), torch.ones(4, device="meta"))
