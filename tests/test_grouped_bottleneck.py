"""What grouped_bottleneck computes: blocks, shapes, dtypes, strides, activations, NaN, threads."""

from __future__ import annotations

import pytest
import torch
from bottleneck_case import (
    BANDS,
    BLOCKS,
    BottleneckCase,
    block_arguments,
    check_block,
    fused_block,
    make_block,
)
from conv_case import ACTIVATIONS, DTYPES, LAYOUTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

EVERY_BLOCK = pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())
# Winograd's transforms spread what is not finite over a tile.
DIRECT = {name: case for name, case in BLOCKS.items() if case.algorithm == "direct"}
SIZES = (1, 2, 5, 7, 13, 17)


@EVERY_BLOCK
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_match_eager(assert_accurate, case, dtype):
    for layout in LAYOUTS:
        check_block(assert_accurate, case, *make_block(case, dtype, layout))


@pytest.mark.parametrize("case", BANDS.values(), ids=BANDS.keys())
def test_images_larger_than_the_cache(assert_accurate, case, set_threads):
    for threads in (1, 2):
        set_threads(threads)
        check_block(assert_accurate, case, *make_block(case))
    check_block(assert_accurate, case, *make_block(case, torch.bfloat16, "nchw"))


@pytest.mark.parametrize("height", SIZES)
@pytest.mark.parametrize("width", SIZES)
def test_odd_image_sizes(assert_accurate, height, width):
    for name in ("ResNeXt 4", "ResNeXt 4, /2", "dilated", "ResNet, first", "ResNet, winograd"):
        case = BLOCKS[name]._replace(h=height, w=width)
        check_block(assert_accurate, case, *make_block(case))


@EVERY_BLOCK
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(assert_accurate, case, act):
    x, constants = make_block(case)
    constants = constants._replace(scales=[scale * 3 for scale in constants.scales])
    check_block(assert_accurate, case, x, constants, act)


@EVERY_BLOCK
def test_is_its_three_convolutions(case):
    x, constants = make_block(case)
    packed1, shift1, packed2, shift2, packed3, shift3, *down = block_arguments(case, constants)
    h = ops.conv_bn_act(x, packed1, shift1, kernel_size=1, act="relu")
    h = ops.conv_bn_act(
        h,
        packed2,
        shift2,
        kernel_size=3,
        stride=case.stride,
        padding=case.dilation,
        dilation=case.dilation,
        groups=case.groups,
        act="relu",
    )
    shortcut = ops.conv_bn_act(x, *down, kernel_size=1, stride=case.stride) if down else x
    out = ops.conv_bn_act(h, packed3, shift3, shortcut, kernel_size=1, act="relu")
    torch.testing.assert_close(fused_block(case, x, constants, "relu"), out)


@EVERY_BLOCK
def test_empty_batch(case):
    x, constants = make_block(case)
    full, out = (fused_block(case, t, constants, "relu") for t in (x, x[:0]))
    assert out.shape == (0, *full.shape[1:])
    assert out.stride() == full.stride()


@pytest.mark.parametrize("case", DIRECT.values(), ids=DIRECT.keys())
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_not_finite_values_stay_where_eager_has_them(assert_accurate, case, value):
    for act in ("none", "relu", "relu6"):
        x, constants = make_block(case)
        x[case.n - 1, case.c // 2, case.h // 2, case.w // 2] = value
        check_block(assert_accurate, case, x, constants, act)


@EVERY_BLOCK
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(kernels, case, batch, dtype, set_threads):
    x, constants = make_block(case._replace(h=29, w=23, n=batch), dtype)
    outputs = []
    # PyTorch's own convolutions, under the reference, choose algorithms by the thread count.
    for threads in (2, 2) if kernels == "reference" else (1, 2, 3, 2):
        set_threads(threads)
        outputs.append(fused_block(case, x, constants, "relu"))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_band_by_band_and_layer_by_layer(kernels, layout, down, dtype, set_threads):
    """One thread takes the first way, two the other; nearly as fast on tiles as without."""
    if kernels == "reference":
        pytest.skip("PyTorch chooses algorithms by the thread count")
    case = BottleneckCase(192, 48, 192, down=down, h=14, w=14, n=1)
    x, constants = make_block(case, dtype, layout)
    set_threads(1)
    alone = fused_block(case, x, constants, "relu")
    set_threads(2)
    assert torch.equal(fused_block(case, x, constants, "relu"), alone)


def test_inputs_are_not_changed():
    for case in BLOCKS.values():
        x, constants = make_block(case)
        copy, arguments = x.clone(), block_arguments(case, constants)
        copies = [tensor.clone() for tensor in arguments]
        fused_block(case, x, constants, "relu")
        assert torch.equal(x, copy)
        assert all(map(torch.equal, arguments, copies))


@st.composite
def bottleneck_cases(draw: st.DrawFn) -> BottleneckCase:
    groups = draw(st.sampled_from([1, 1, 2, 3, 5, 17]))
    c, stride, dilation = (draw(st.integers(1, top)) for top in (40, 3, 3))
    winograd = groups == stride == dilation == 1 and draw(st.booleans())
    down = stride > 1 or draw(st.booleans())
    return BottleneckCase(
        c,
        groups * draw(st.integers(1, 20)),
        draw(st.integers(1, 40)) if down else c,
        groups,
        stride,
        dilation,
        down,
        h=draw(st.integers(1, 24)),
        w=draw(st.integers(1, 24)),
        n=draw(st.integers(0, 3)),
        algorithm="winograd" if winograd else "direct",
    )


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    case=bottleneck_cases(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    act=st.sampled_from(ACTIVATIONS),
    threads=st.integers(1, 3),
)
def test_any_bottleneck(assert_accurate, set_threads, case, dtype, layout, act, threads):
    torch.manual_seed(0)  # hypothesis replays and shrinks within one test
    set_threads(threads)
    check_block(assert_accurate, case, *make_block(case, dtype, layout), act)
