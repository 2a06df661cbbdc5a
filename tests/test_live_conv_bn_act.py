"""live_conv_bn_act is conv_bn_act of a packed weight: as accurate, errors and dtypes."""

from __future__ import annotations

import pytest
import torch
from conv_case import (
    BFLOAT16,
    DTYPES,
    PATHS,
    SLOPE,
    ConvCase,
    Inputs,
    check_case,
    check_infinite_weight,
    fused,
    make_inputs,
    same,
)
from torchvision.models.resnet import Bottleneck

import fastres
from fastres import ops, reference

pytestmark = pytest.mark.usefixtures("kernels")

# Small images with many channels: threads share the channels, and pack a panel at a time, or the
# pixels instead of the weight.
PANELS: dict[str, ConvCase] = {
    "1x1 of 1024": same(1024, 160, 1, h=5, w=5, n=1),
    "1x1 to 17": same(520, 17, 1, h=7, w=7, n=1),
    "1x1 to 1000": same(64, 1000, 1, h=2, w=3, n=1),
    "3x3 of 256": same(256, 136, h=7, w=7, n=1),
    "3x3/2": same(128, 200, 3, 2, h=9, w=7, n=1),
    "groups of 16": same(512, 512, groups=32, h=7, w=7, n=1),
    "groups of 24": same(96, 96, groups=4, h=3, w=3, n=1),
    "groups of 33 to 40": same(66, 80, groups=2, h=3, w=3, n=1),
    "two images": same(512, 96, h=7, w=7),
    "one pixel": same(96, 200, 3, h=1, w=1, n=1),
    "half a block and one": same(320, 96, 1, h=5, w=5, n=1),
    "pixels of three images": same(64, 1027, 3, 2, h=5, w=3, n=3),
    "no symmetry": ConvCase(48, 768, (2, 3), (2, 1), (1, 0, 2, 1), (1, 2), h=7, w=9, n=1),
    "more products than the cache holds": same(1300, 1024, 3, h=5, w=8, n=1),
    "1x1 in parts": same(1024, 256, 1, h=14, w=13, n=1),
    "3x3/2 in parts": same(256, 250, 3, 2, h=28, w=28, n=1),
}
# Which tiles take as they are, in bfloat16.
WHOLE_TILES = {f"tiles, {k}": v._replace(algorithm="direct") for k, v in BFLOAT16.items()}
CASES = PATHS | PANELS | WHOLE_TILES
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def live(case: ConvCase, inputs: Inputs, act: str = "none") -> torch.Tensor:
    arguments = case.arguments()
    del arguments["kernel_size"]
    return ops.live_conv_bn_act(
        inputs.x, inputs.weight, inputs.scale, inputs.shift, inputs.residual, **arguments,
        algorithm=case.algorithm, act=act, act_slope=SLOPE,
    )  # fmt: skip


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_eager(assert_accurate, case, dtype):
    for layout in ("nchw", "channels_last"):
        inputs = make_inputs(case, dtype, layout, residual_layout=layout)
        for act in ("relu", "silu"):
            check_case(assert_accurate, case, inputs, act, live)


@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_on_any_number_of_threads(kernels, case, dtype, set_threads):
    inputs = make_inputs(case, dtype)
    outputs = []
    # PyTorch's own convolutions, under the reference, choose algorithms by the thread count.
    for threads in (2, 2) if kernels == "reference" else (1, 2, 3, 16):
        set_threads(threads)
        outputs.append(live(case, inputs))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@EVERY_CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_weights_and_others(assert_accurate, case, dtype):
    inputs = make_inputs(case, dtype)
    weight = inputs.weight
    padded = weight.new_full((*weight.shape[:3], weight.shape[3] + 1), float("nan"))
    padded[..., :-1] = weight
    for other in (reference.channels_last(weight), padded[..., :-1]):
        check_case(assert_accurate, case, inputs._replace(weight=other), operator=live)


def test_weights_of_another_type_than_the_input():
    for case in WHOLE_TILES.values():
        inputs = make_inputs(case, torch.bfloat16)
        weight = inputs.weight.half().bfloat16()  # both types' values
        expected = live(case, inputs._replace(weight=weight))
        for dtype in (torch.float32, torch.float16):
            for other in (weight.to(dtype), reference.channels_last(weight.to(dtype))):
                assert torch.equal(live(case, inputs._replace(weight=other)), expected)


@pytest.mark.parametrize("name", ["one pixel", "1x1 to 1000", "1x1 in parts", "3x3/2 in parts"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_not_finite_values_stay_where_eager_has_them(assert_accurate, name, value):
    case = PANELS[name]
    inputs = make_inputs(case)
    inputs.x[0, case.c // 2, -1, -1] = value
    check_case(assert_accurate, case, inputs, "relu", live)


@pytest.mark.parametrize("channel", [0, 63, 64, 159])
def test_not_finite_weights_of_a_later_panel(channel):
    check_infinite_weight(live, channel)


@pytest.mark.parametrize("name", ["1x1 in parts", "3x3/2 in parts"])
@pytest.mark.parametrize("part", [0, -1])
def test_not_finite_weights_of_any_part(assert_accurate, name, part):
    case = PANELS[name]
    inputs = make_inputs(case)
    inputs.weight[case.k // 2, part, -1, -1] = float("nan")
    check_case(assert_accurate, case, inputs, "relu", live)


def test_float64_goes_to_the_reference():
    case = PATHS["3x3 groups of 4"]
    inputs = Inputs(*(None if t is None else t.double() for t in make_inputs(case)))
    assert torch.equal(live(case, inputs), fused(case, inputs))


def test_scale_and_shift_are_optional():
    case = PATHS["1x1"]
    inputs = make_inputs(case)
    plain = inputs._replace(scale=torch.ones(case.k), shift=torch.zeros(case.k))
    assert torch.equal(ops.live_conv_bn_act(inputs.x, inputs.weight), live(case, plain))


def test_empty_batch():
    x = torch.empty(0, 4, 5, 5)
    assert ops.live_conv_bn_act(x, torch.ones(6, 4, 3, 3)).shape == (0, 6, 3, 3)


def test_follows_the_weight():
    weight, x = torch.randn(32, 16, 1, 1), torch.randn(1, 16, 4, 4)
    before = ops.live_conv_bn_act(x, weight)
    weight.mul_(2)
    assert torch.equal(ops.live_conv_bn_act(x, weight), before * 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(8, 3, 3, 3)}, ValueError, "weight"),
        ({"weight": torch.ones(8, 4, 3)}, ValueError, "weight must be 4-D"),
        ({"weight": torch.ones(8, 4, 3, 3).long()}, TypeError, "weight must be"),
        ({"scale": torch.ones(7)}, ValueError, "scale must have shape"),
        ({"shift": torch.ones(7)}, ValueError, "shift must have shape"),
        ({"residual": torch.ones(1, 8, 5, 5)}, ValueError, "residual must have the output's shape"),
        ({"groups": 3}, ValueError, "groups"),
        ({"stride": 0}, ValueError, "stride"),
        ({"algorithm": "fft"}, ValueError, "algorithm must be"),
        ({"algorithm": "winograd", "stride": 2}, ValueError, "stride"),
        ({"act": "tanh"}, ValueError, "act must be"),
        ({"weight": torch.ones(8, 4, 3, 3, requires_grad=True)}, ValueError, "requires grad"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"x": torch.ones(1, 4, 6, 6), "weight": torch.ones(8, 4, 3, 3)} | change
    with pytest.raises(error, match=f"live_conv_bn_act: .*{message}"):
        ops.live_conv_bn_act(**arguments)


def test_opcheck():
    arguments = (
        *(torch.randn(2, 8, 6, 5), torch.randn(16, 8, 3, 3), torch.rand(16), torch.randn(16)),
        *(torch.randn(2, 16, 6, 5), [1, 1], [1, 1, 1, 1], [1, 1], 1, "winograd", "relu", 0.0),
    )
    torch.library.opcheck(torch.ops.fastres.live_conv_bn_act.default, arguments)


def test_autocast_casts_input_and_residual_and_not_the_vectors():
    case = PATHS["3x3"]
    inputs = make_inputs(case, residual_layout="nchw")
    with torch.autocast("cpu", torch.bfloat16):
        out = live(case, inputs)
    assert out.dtype == torch.bfloat16
    cast = inputs._replace(x=inputs.x.bfloat16(), residual=inputs.residual.bfloat16())
    assert torch.equal(out, live(case, cast))


def test_small_batches_keep_the_weights_of_wide_convolutions_as_they_are(set_threads):
    """What accelerate packs at each call, it packs as that call is best served."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(320, 320, 3, padding=1)
    model = fastres.accelerate(torch.nn.Sequential(conv).eval())
    image = torch.randn(1, 320, 7, 7)
    with torch.inference_mode():
        alone, among = model(image), model(image.expand(8, -1, -1, -1))[:1]
    direct = ops.live_conv_bn_act(image, conv.weight.detach(), None, conv.bias.detach(), padding=1)
    assert torch.equal(alone, direct)
    torch.testing.assert_close(among, direct, rtol=1e-4, atol=1e-4)


def test_no_activation_changes_its_memory_format_on_the_way(kernels):
    """A copy to NCHW before a convolution would double its time."""
    if kernels == "reference":
        pytest.skip("the reference copies as it needs")
    blocks = [Bottleneck(1024, 256) for _ in range(2)]
    model = fastres.accelerate(torch.nn.Sequential(*blocks).eval())
    image = torch.randn(1, 1024, 7, 7)
    with torch.inference_mode():
        model(image)
        with torch.profiler.profile() as profile:
            model(image)
    names = [event.name for event in profile.events()]
    assert names.count("fastres::live_bottleneck_chain") == 1
    assert names.count("aten::copy_") <= 1  # of the output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_images_with_rows_between_them(kernels, dtype):
    """Evenly spaced rows of all images, where a strided 1x1 ends before the last image does."""
    base = torch.randn(2, 512, 8, 8).to(dtype).to(memory_format=torch.channels_last)
    weight, shift = torch.randn(256, 512, 1, 1), torch.zeros(256)
    x = base[:, :, 1:, 1:]
    dense = x.clone(memory_format=torch.channels_last)
    found, expected = (
        ops.live_conv_bn_act(t, weight.to(dtype), None, shift, stride=2) for t in (x, dense)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
