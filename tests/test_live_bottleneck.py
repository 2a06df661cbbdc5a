"""live_bottleneck is grouped_bottleneck of packed weights: as accurate, errors and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bottleneck_case import (
    BANDS,
    BLOCKS,
    BottleneckCase,
    Constants,
    check_block,
    fused_block,
    make_block,
)
from conv_case import DTYPES
from torch import Tensor

from fastres import ops, reference

pytestmark = pytest.mark.usefixtures("kernels")

EVERY_BLOCK = pytest.mark.parametrize("case", BLOCKS.values(), ids=BLOCKS.keys())


def live(case: BottleneckCase, x: Tensor, constants: Constants, act: str = "relu") -> Tensor:
    layers = [tensor for layer in zip(*constants, strict=True) for tensor in layer]
    return ops.live_bottleneck(
        x, *layers, stride=case.stride, dilation=case.dilation, groups=case.groups,
        algorithm=case.algorithm, act=act,
    )  # fmt: skip


@EVERY_BLOCK
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_match_eager(assert_accurate, case, dtype):
    for layout in ("nchw", "channels_last"):
        x, constants = make_block(case, dtype, layout)
        check_block(assert_accurate, case, x, constants, "silu", live)


@EVERY_BLOCK
def test_same_bits_on_any_number_of_threads(kernels, case, set_threads):
    x, constants = make_block(case)
    outputs = []
    # PyTorch's own convolutions, under the reference, choose algorithms by the thread count.
    for threads in (2, 2) if kernels == "reference" else (1, 2, 3, 16):
        set_threads(threads)
        outputs.append(live(case, x, constants))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("case", BANDS.values(), ids=BANDS.keys())
def test_images_larger_than_the_cache(assert_accurate, case, set_threads):
    for threads in (1, 2):
        set_threads(threads)
        check_block(assert_accurate, case, *make_block(case), operator=live)


@pytest.mark.parametrize("name", ["ResNeXt 4", "last of ResNet-50"])
def test_channels_last_weights_and_others(assert_accurate, name):
    case = BLOCKS[name]
    x, constants = make_block(case)
    for laid_out in (reference.channels_last, lambda w: w.flip(0).flip(0)):
        other = constants._replace(weights=[laid_out(w) for w in constants.weights])
        check_block(assert_accurate, case, x, other, operator=live)


def test_float64_goes_to_the_reference():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    wide = constants.map(Tensor.double)
    assert torch.equal(live(case, x.double(), wide), fused_block(case, x.double(), wide, "relu"))


def test_scales_are_optional():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    ones = constants._replace(scales=[torch.ones_like(scale) for scale in constants.scales])
    none: Any = [None] * len(constants.scales)
    assert torch.equal(live(case, x, constants._replace(scales=none)), live(case, x, ones))


def test_empty_batch():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    assert live(case, x[:0], constants).shape == (0, *x.shape[1:])


def arguments() -> dict[str, Any]:
    return {
        "x": torch.ones(1, 8, 6, 6),
        "weight1": torch.ones(4, 8, 1, 1),
        "scale1": None,
        "shift1": torch.ones(4),
        "weight2": torch.ones(4, 4, 3, 3),
        "scale2": None,
        "shift2": torch.ones(4),
        "weight3": torch.ones(8, 4, 1, 1),
        "scale3": None,
        "shift3": torch.ones(8),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(8, 6, 6)}, ValueError, "x must"),
        ({"weight1": torch.ones(4, 7, 1, 1)}, ValueError, "weight"),
        ({"weight1": torch.ones(4, 8, 3, 3)}, ValueError, "weight1"),
        ({"weight2": torch.ones(4, 4, 1, 1)}, ValueError, "weight2"),
        ({"weight3": torch.ones(8, 5, 1, 1)}, ValueError, "weight"),
        ({"weight3": torch.ones(9, 4, 1, 1), "shift3": torch.ones(9)}, ValueError, "shape"),
        ({"weight1": torch.ones(4, 8, 1, 1).long()}, TypeError, "weight1 must be"),
        ({"scale2": torch.ones(5)}, ValueError, "scale"),
        ({"scale2": torch.ones(4).double()}, TypeError, "scale2 must be"),
        ({"shift3": torch.ones(7)}, ValueError, "shift"),
        ({"weight_down": torch.ones(8, 8, 1, 1)}, ValueError, "given together"),
        ({"groups": 3}, ValueError, "groups"),
        ({"stride": 0}, ValueError, "stride"),
        ({"dilation": (1, 0)}, ValueError, "dilation"),
        ({"stride": 2}, ValueError, "shape"),
        ({"algorithm": "fft"}, ValueError, "algorithm"),
        ({"algorithm": "winograd", "dilation": 2}, ValueError, "dilation"),
        ({"act": "tanh"}, ValueError, "act must be"),
        ({"weight2": torch.ones(4, 4, 3, 3, requires_grad=True)}, ValueError, "weight2 requires"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=f"live_bottleneck: .*{message}"):
        ops.live_bottleneck(**arguments() | change)


@pytest.mark.parametrize("name", ["ResNeXt 4", "ResNet, first", "ResNet, winograd"])
def test_opcheck(name):
    case = BLOCKS[name]
    x, constants = make_block(case)
    layers: list[Any] = [tensor for layer in zip(*constants, strict=True) for tensor in layer]
    layers += [None] * (12 - len(layers))
    options = ([case.stride] * 2, [case.dilation] * 2, case.groups, case.algorithm, "relu")
    torch.library.opcheck(torch.ops.fastres.live_bottleneck.default, (x, *layers, *options))


def test_autocast_casts_the_input_and_not_the_vectors():
    case = BLOCKS["ResNeXt 4"]
    x, constants = make_block(case)
    with torch.autocast("cpu", torch.bfloat16):
        out = live(case, x, constants)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, live(case, x.bfloat16(), constants))
