"""conv_bn_act and live_conv_bn_act on cuDNN: paths, dtypes, strides, packed weights, refusals."""

from __future__ import annotations

import pytest
import torch
from conv_case import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    PATHS,
    SLOPE,
    check_case,
    fused,
    make_inputs,
    same,
)

from fastres import ops, reference
from fastres.cudnn import convolve
from fastres.cudnn.pack_conv_weight import packed_operand
from fastres.schema import packed_weight

KINDS = ("1x1", "3x3 wide", "3x3 groups of 4", "7x7/2 stem", "asymmetric padding")
DIRECT = {name: case for name, case in PATHS.items() if case.algorithm == "direct"}
EVERY_PATH = pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
EVERY_KIND = pytest.mark.parametrize("case", [PATHS[name] for name in KINDS], ids=KINDS)


@EVERY_PATH
def test_paths_match_eager(assert_accurate, case):
    check_case(assert_accurate, case, make_inputs(case, residual_layout="nchw"), "relu")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, case, dtype):
    inputs = make_inputs(case, dtype, "nchw", residual_layout="channels_last")
    check_case(assert_accurate, case, inputs, "relu")
    check_case(assert_accurate, case, inputs._replace(residual=None))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, act):
    case = PATHS["3x3 wide"]
    check_case(assert_accurate, case, make_inputs(case, residual_layout="channels_last"), act)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, layout):
    case = PATHS["3x3 groups of 4"]
    check_case(assert_accurate, case, make_inputs(case, layout=layout, residual_layout=layout))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 2)], ids=str)
def test_odd_image_sizes(assert_accurate, size):
    for name in KINDS[1:3]:
        case = PATHS[name]._replace(h=size[0], w=size[1])
        check_case(assert_accurate, case, make_inputs(case, torch.float16), "relu")


@EVERY_KIND
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_live_weight_gives_the_same(case, dtype):
    inputs = make_inputs(case, dtype)
    options = case.arguments()
    del options["kernel_size"]
    out = ops.live_conv_bn_act(
        inputs.x, inputs.weight, inputs.scale, inputs.shift, **options, act="silu", act_slope=SLOPE
    )
    torch.testing.assert_close(out, fused(case, inputs, "silu"))


@pytest.mark.parametrize("layout", [packed_weight.PLAIN, packed_weight.IGEMM, packed_weight.LANES])
def test_weights_packed_by_other_backends(layout):
    case = same(16, 16, groups=4)
    inputs = make_inputs(case)
    foreign = reference.pack_conv_weight(inputs.weight, inputs.scale, 4, layout=layout)
    out = ops.conv_bn_act(inputs.x, foreign, inputs.shift, **case.arguments())
    torch.testing.assert_close(out, fused(case, inputs))


@EVERY_KIND
def test_packed_weights_are_read_where_they_are(case):
    weight = make_inputs(case).weight
    packed = ops.pack_conv_weight(weight, None, case.groups)
    assert packed_weight.read_header(packed).layout == packed_weight.KRSC
    for dtype in DTYPES:
        operand = packed_operand(packed, weight.shape, case.groups, dtype)
        assert operand.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
        assert torch.equal(operand, weight.to(dtype))


@pytest.mark.parametrize("offset", [256, 257])
def test_packed_weights_may_be_slices(offset):
    case = PATHS["3x3 wide"]
    inputs = make_inputs(case)
    packed = ops.pack_conv_weight(inputs.weight, inputs.scale, case.groups)
    part = torch.cat([packed.new_zeros(offset), packed])[offset:]
    out = ops.conv_bn_act(inputs.x, part, inputs.shift, **case.arguments())
    torch.testing.assert_close(out, fused(case, inputs))


def test_an_empty_batch():
    case = PATHS["3x3 wide"]._replace(n=0)
    inputs = make_inputs(PATHS["3x3 wide"])
    assert fused(case, inputs._replace(x=inputs.x[:0]), "relu").shape[0] == 0


def test_arguments_are_checked():
    case = PATHS["3x3 wide"]
    inputs = make_inputs(case)
    with pytest.raises(ValueError, match="shift must have shape"):
        fused(case, inputs._replace(shift=inputs.shift[1:]))


def test_what_cudnn_refuses_is_asked_for_once(monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise RuntimeError("FIND was unable to find an engine to execute this computation")

    monkeypatch.setattr(convolve, "_refused", set())
    monkeypatch.setattr(torch, "cudnn_convolution_relu", refuse)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refuse)
    inputs = make_inputs(PATHS["3x3 wide"], residual_layout="channels_last")
    square = [1, 1], [1, 1], [1, 1], 1
    for count, residual in ((1, None), (1, None), (2, inputs.residual), (2, inputs.residual)):
        arguments = inputs.x, inputs.weight, inputs.shift, residual, square
        assert convolve._in_one_kernel(*arguments) is None
        assert len(asked) == count


def test_no_memory_is_no_refusal(monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fail)
    inputs = make_inputs(PATHS["1x1"])
    with pytest.raises(torch.OutOfMemoryError):
        convolve._in_one_kernel(*inputs[:2], inputs.shift, None, ([1, 1], [0, 0], [1, 1], 1))
