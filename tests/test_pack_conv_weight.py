"""pack_conv_weight: its bytes, their independence of the kernels, what it rounds."""

from __future__ import annotations

import pytest
import torch

from fastres import _library, ops, reference
from fastres.schema import packed_weight

SHAPES = {  # [K, C/groups, R, S], groups
    "one value": ((1, 1, 1, 1), 1),
    "1x1": ((17, 33, 1, 1), 1),
    "3x3": ((32, 5, 3, 3), 1),
    "stem": ((64, 3, 7, 7), 1),
    "1x7": ((5, 3, 1, 7), 1),
    "depthwise": ((33, 1, 3, 3), 33),
    "groups of 2": ((34, 2, 3, 3), 17),
    "groups of 4": ((20, 4, 3, 3), 5),
    "groups of 8": ((24, 8, 3, 3), 3),
    "groups of 16": ((48, 16, 3, 3), 3),
    "groups of 6": ((18, 6, 3, 3), 3),
    "groups of 4 to 8": ((24, 4, 3, 3), 3),
    "groups of 3 to 17": ((34, 3, 2, 2), 2),
}
EVERY_SHAPE = pytest.mark.parametrize(("shape", "groups"), SHAPES.values(), ids=SHAPES.keys())


@EVERY_SHAPE
@pytest.mark.parametrize("scaled", [False, True])
def test_unpacks_to_the_scaled_weight(kernels, shape, groups, scaled):
    weight = torch.randn(shape)
    scale = torch.randn(shape[0]) if scaled else None
    packed = ops.pack_conv_weight(weight, scale, groups)
    expected = weight * scale[:, None, None, None] if scaled else weight
    assert torch.equal(reference.unpack_conv_weight(packed), expected)


@EVERY_SHAPE
def test_bytes_do_not_depend_on_the_kernels(kernels, shape, groups):
    weight, scale = torch.randn(shape), torch.randn(shape[0])
    layout = (
        packed_weight.PLAIN
        if kernels == "reference"
        else packed_weight.native_layout(shape, groups, "direct")
    )
    packed = ops.pack_conv_weight(weight, scale, groups)
    assert torch.equal(packed, reference.pack_conv_weight(weight, scale, groups, layout=layout))


@pytest.mark.parametrize("shape", [(1, 1), (17, 5), (32, 16)], ids=str)
def test_winograd_packs_the_transformed_weight(kernels, shape):
    weight, scale = torch.randn(*shape, 3, 3), torch.randn(shape[0])
    layout = packed_weight.PLAIN if kernels == "reference" else packed_weight.WINOGRAD
    packed = ops.pack_conv_weight(weight, scale, algorithm="winograd")
    assert torch.equal(packed, reference.pack_conv_weight(weight, scale, 1, layout=layout))
    expected = weight * scale[:, None, None, None]
    torch.testing.assert_close(reference.unpack_conv_weight(packed), expected)


@pytest.mark.parametrize(
    ("shape", "groups"), [((64, 32, 1, 1), 1), ((96, 64, 3, 3), 1), ((128, 32, 3, 2), 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bfloat16_packs_the_rounded_weight(kernels, shape, groups, dtype):
    weight, scale = torch.randn(shape).to(dtype), torch.randn(shape[0])
    layout = packed_weight.PLAIN if kernels == "reference" else packed_weight.BFLOAT16
    packed = ops.pack_conv_weight(weight, scale, groups, "bfloat16")
    assert torch.equal(packed, reference.pack_conv_weight(weight, scale, groups, layout=layout))
    if layout == packed_weight.BFLOAT16:
        expected = (weight.float() * scale[:, None, None, None]).bfloat16().float()
        assert torch.equal(reference.unpack_conv_weight(packed), expected)
        assert len(packed) == 64 + 2 * weight.numel()


@pytest.mark.parametrize(("shape", "groups"), [((64, 33, 1, 1), 1), ((64, 32, 3, 3), 4)])
def test_bfloat16_takes_whole_tiles_alone(kernels, shape, groups):
    with pytest.raises(
        (ValueError, RuntimeError), match="multiples of 32 channels in each group, got shape"
    ):
        ops.pack_conv_weight(torch.randn(shape), None, groups, "bfloat16")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_holds_reduced_dtypes_as_float32(kernels, dtype):
    weight, scale = torch.randn(17, 5, 3, 3).to(dtype), torch.randn(17)
    packed = ops.pack_conv_weight(weight, scale)
    assert torch.equal(packed, ops.pack_conv_weight(weight.float(), scale))


def test_float64_stays_float64(kernels):
    weight, scale = torch.randn(17, 5, 3, 3).double(), torch.randn(17).double()
    packed = ops.pack_conv_weight(weight, scale)
    assert torch.equal(reference.unpack_conv_weight(packed), weight * scale[:, None, None, None])


def test_any_strides(kernels):
    weight, scale = torch.randn(17, 5, 3, 3), torch.randn(34)
    packed = ops.pack_conv_weight(weight, scale[::2].contiguous())
    channels_last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(packed, ops.pack_conv_weight(channels_last, scale[::2]))
    sliced = torch.randn(18, 10, 3, 3)[1:, ::2].copy_(weight)
    assert torch.equal(packed, ops.pack_conv_weight(sliced, scale[::2]))


def test_keeps_values_that_are_not_finite(kernels):
    weight = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0]).view(4, 1, 1, 1)
    unpacked = reference.unpack_conv_weight(ops.pack_conv_weight(weight))
    assert torch.equal(unpacked.view(torch.int32), weight.view(torch.int32))


def test_survives_casts_and_copies_of_a_module(kernels):
    module = torch.nn.Module()
    module.register_buffer("packed", ops.pack_conv_weight(torch.randn(17, 5, 3, 3)))
    before = module.packed.clone()
    for change in (module.to(torch.bfloat16), module.half(), module.double()):
        assert torch.equal(change.packed, before)


def test_weight_that_needs_a_gradient_is_an_error(kernels):
    weight = torch.randn(4, 4, 1, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"weight requires grad.*weight\.detach\(\)"):
        ops.pack_conv_weight(weight)
    with pytest.raises(ValueError, match=r"scale requires grad.*scale\.detach\(\)"):
        ops.pack_conv_weight(weight.detach(), torch.ones(4, requires_grad=True))
    with torch.no_grad():
        packed = ops.pack_conv_weight(weight)
    assert torch.equal(packed, ops.pack_conv_weight(weight.detach()))


@pytest.mark.skipif(
    "cpu" not in _library.available_backends(), reason="compares the native library with Python"
)
def test_kernels_refuse_what_the_reference_packed():
    packed = reference.pack_conv_weight(torch.randn(4, 4, 1, 1), None, 1)
    with pytest.raises(ValueError, match="packed by the reference"):
        ops.conv_bn_act(torch.randn(1, 4, 2, 2), packed, torch.zeros(4), kernel_size=1)
