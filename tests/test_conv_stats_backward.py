"""Gradients of conv_stats: against float64, what is wanted alone, threads, again, errors."""

from __future__ import annotations

import pytest
import torch
from conv_case import ACTIVATIONS, DTYPES, FACTORS, LAYOUTS, ConvCase, same
from torch import Tensor
from training_case import (
    CASES,
    KINDS,
    Inputs,
    check_gradients,
    check_gradients_through_a_block_end,
    check_shared_gradients,
    eager,
    fused,
    given_gradients,
    gradient_magnitudes,
    gradients,
    make_inputs,
)

from fastres import _measure, ops

pytestmark = pytest.mark.usefixtures("kernels")

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
EVERY_KIND = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)
SIZES = (1, 2, 5, 13)


@EVERY_CASE
@pytest.mark.parametrize("affine", [True, False], ids=["prologue", "plain"])
def test_paths_match_eager(assert_accurate, case, affine):
    inputs = make_inputs(case, affine=affine)
    check_gradients(assert_accurate, case, inputs, "relu" if affine else "none")


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_reduced_dtypes(assert_accurate, case, dtype):
    for layout in ("nchw", "channels_last"):
        check_gradients(assert_accurate, case, make_inputs(case, dtype, layout))


@pytest.mark.parametrize("height", SIZES)
@pytest.mark.parametrize("width", SIZES)
def test_odd_image_sizes(assert_accurate, height, width):
    for name in KINDS:
        case = CASES[name]._replace(h=height, w=width)
        check_gradients(assert_accurate, case, make_inputs(case))


@pytest.mark.parametrize("group_channels", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("groups", [2, 5])
def test_group_widths(assert_accurate, group_channels, groups):
    channels = groups * group_channels
    for stride in (1, 2):
        case = same(channels, channels, 3, stride, groups, h=5, w=7)
        check_gradients(assert_accurate, case, make_inputs(case))


@EVERY_CASE
@pytest.mark.parametrize("affine", [True, False], ids=["prologue", "plain"])
def test_a_scale_and_another_gradient_of_the_input(assert_accurate, case, affine):
    inputs = make_inputs(case, affine=affine)
    check_shared_gradients(assert_accurate, case, inputs, "relu" if affine else "none")


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scale_and_another_gradient_of_any_strides(assert_accurate, case, layout):
    for dtype in DTYPES[:2]:
        inputs = make_inputs(case, dtype, layout)
        check_shared_gradients(assert_accurate, case, inputs, layout=layout)


@EVERY_CASE
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_through_the_end_of_a_block(assert_accurate, case, dtype):
    check_gradients_through_a_block_end(assert_accurate, case, make_inputs(case, dtype))


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_through_the_end_of_a_block_of_any_strides(assert_accurate, case, layout):
    for act in ACTIVATIONS:
        inputs = make_inputs(case, layout=layout)
        check_gradients_through_a_block_end(assert_accurate, case, inputs, act, layout)


PLAIN = {
    "few channels": same(64, 48, 1, h=19, w=21),
    "weights kept": same(256, 192, 1, h=19, w=21),
    "weights split for each slice": same(256, 512, 1, h=19, w=21),
    "gradients apart": same(512, 512, 1, h=9, w=11),
    "no whole blocks of channels": same(40, 64, 1, h=19, w=21),
    "strided": same(64, 96, 1, 2, h=19, w=21),
    "3x3 without padding": ConvCase(64, 48, h=13, w=12, n=2),
    "narrow groups": ConvCase(32, 32, groups=8, h=13, w=12, n=2),
}


@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("layout", ["channels_last", "channel_sliced", "expanded", "sliced"])
def test_plain_inputs(assert_accurate, case, layout):
    """Read where they lie, by an input's gradient that nothing or a block's end finishes."""
    for act in ("relu", "silu"):
        inputs = make_inputs(case, layout=layout)
        check_gradients_through_a_block_end(assert_accurate, case, inputs, act, layout)
    plain = make_inputs(case, layout=layout, affine=False)
    check_shared_gradients(assert_accurate, case, plain, "none", layout)


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(assert_accurate, case, layout):
    inputs = make_inputs(case, layout=layout)
    for other in ("nchw", layout):
        check_gradients(assert_accurate, case, inputs, given=given_gradients(case, inputs, other))
    weight = inputs.weight.to(memory_format=torch.channels_last)
    check_gradients(assert_accurate, case, inputs._replace(weight=weight))


@EVERY_KIND
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_of_the_input(assert_accurate, case, act):
    for affine in (True, False):
        check_gradients(assert_accurate, case, make_inputs(case, affine=affine), act)


@pytest.mark.parametrize("name", ["1x1", "4x4", "groups of 6"])
def test_a_mean_far_larger_than_the_deviation(assert_accurate, name):
    case = CASES[name]._replace(h=29, w=23, padding=(0, 0, 0, 0))
    check_gradients(assert_accurate, case, make_inputs(case, mean=1e3), "none")


def test_images_larger_than_the_cache(assert_accurate):
    for case in (
        same(128, 48, h=37, w=61, n=1),
        same(128, 48, h=37, w=61, n=1, algorithm="winograd"),
        same(256, 256, 3, 2, 32, h=33, w=37, n=2),
    ):
        check_gradients(assert_accurate, case, make_inputs(case))


@EVERY_KIND
@pytest.mark.parametrize("given", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_gradients_of_some_outputs(assert_accurate, case, given):
    inputs = make_inputs(case)
    grads = given_gradients(case, inputs)
    some = tuple(g if i in given else torch.zeros_like(g) for i, g in enumerate(grads))
    true = gradients(eager, case, inputs.double(), "relu", some)
    theirs = gradients(eager, case, inputs, "relu", some)
    leaves = inputs.leaves()
    outputs = fused(case, leaves, "relu")
    found = torch.autograd.grad(
        [outputs[i] for i in given], leaves.tensors(), [some[i] for i in given]
    )
    terms = gradient_magnitudes(case, inputs, some)
    for ours, their, exact, term in zip(found, theirs, true, terms, strict=True):
        assert_accurate(ours, their, exact, factor=FACTORS[case.algorithm], magnitude=term.abs)


@EVERY_KIND
def test_only_what_is_wanted(case):
    inputs, given = make_inputs(case), given_gradients(case, make_inputs(case))
    all_of_them = gradients(fused, case, inputs, "relu", given)
    for i, expected in enumerate(all_of_them):
        x, weight, *affine = (t.clone() for t in inputs.tensors())
        tensors = [x, weight, *affine]
        tensors[i].requires_grad_()
        out = fused(case, Inputs(x, weight, tuple(affine)), "relu")
        (alone,) = torch.autograd.grad(out, tensors[i], given)
        assert torch.equal(alone, expected)


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_at_the_same_number_of_threads(kernels, case, dtype, set_threads):
    case = case._replace(h=29, w=23, n=3)
    inputs = make_inputs(case, dtype)
    given = given_gradients(case, inputs)
    results: dict[int, list[list[Tensor]]] = {}
    for threads in (1, 2, 3, 1, 2, 3):
        set_threads(threads)
        found = gradients(fused, case, inputs, "relu", given)
        results.setdefault(threads, []).append(found)
    for first, second in results.values():
        assert all(map(torch.equal, first, second))
    if kernels == "reference":
        return
    for first, _ in results.values():
        # The weight's gradient may be summed from one part per thread, all others never. An element
        # that cancels may differ in all of its digits: the norm tells.
        for i, (ours, one) in enumerate(zip(first, results[1][0], strict=True)):
            assert torch.equal(ours, one) or (i == 1 and _measure.relative_error(ours, one) < 1e-3)


def test_any_number_of_threads_is_accurate(assert_accurate, set_threads):
    for threads in (2, 3, 5):
        set_threads(threads)
        for name in KINDS:
            case = CASES[name]._replace(h=29, w=23, n=3)
            check_gradients(assert_accurate, case, make_inputs(case))


@EVERY_KIND
def test_empty_batch(case):
    inputs = make_inputs(case)
    leaves = inputs._replace(x=inputs.x[:0]).leaves()
    outputs = fused(case, leaves, "relu")
    found = torch.autograd.grad(outputs, leaves.tensors(), [torch.ones_like(o) for o in outputs])
    for grad, leaf in zip(found, leaves.tensors(), strict=True):
        assert grad.shape == leaf.shape
        assert grad.count_nonzero() == 0


def test_float64_has_the_right_gradients():
    case = same(4, 6, 3, 2, 2, h=5, w=3)
    leaves = make_inputs(case).double().leaves()

    def run(x, weight, *affine):
        return fused(case, Inputs(x, weight, affine), "silu")

    assert torch.autograd.gradcheck(run, leaves.tensors())
    assert torch.autograd.gradgradcheck(run, leaves.tensors())


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_twice(act):
    case = same(8, 8, 3, 2, 2, h=5, w=3)
    inputs = make_inputs(case)

    def penalty(function, inputs: Inputs) -> tuple[Tensor, ...]:
        leaves = inputs.leaves()
        total = sum(out.square().sum() for out in function(case, leaves, act))
        first = torch.autograd.grad(total, leaves.tensors(), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves.tensors())

    ours, true = penalty(fused, inputs), penalty(eager, inputs.double())
    for our, exact in zip(ours, true, strict=True):
        assert (our - exact).norm() <= 1e-4 * exact.norm()


@EVERY_KIND
@pytest.mark.parametrize("affine", [True, False], ids=["prologue", "plain"])
def test_opcheck(case, affine):
    inputs = make_inputs(case, affine=affine)
    grad_y, grad_mean, grad_m2 = given_gradients(case, inputs)
    y, mean, _ = fused(case, inputs, "relu")
    constants = inputs.affine or (None,) * 3
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    arguments = (inputs.x, *constants, "relu", 0.01, inputs.weight)
    leaves = tuple(
        t.detach().clone().requires_grad_() if isinstance(t, Tensor) else t for t in arguments
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.fastres.conv_stats.default,
        (*leaves, *geometry, case.algorithm),
        test_utils=tests,
    )
    for mask in ((True, True, True), (False, True, False), (True, False, True)):
        images = [torch.randn_like(inputs.x) for _ in range(3)]
        shared = (torch.randn(case.k), images[0], case.algorithm, *images[1 : 3 if affine else 1])
        for more in ((), shared):
            torch.library.opcheck(
                torch.ops.fastres.conv_stats_backward.default,
                (grad_y, grad_mean, grad_m2, *arguments, y, mean, *geometry, *mask, *more),
                test_utils=tests,
            )


def test_compiles_whole():
    case = same(8, 8, 3, 1, 2)
    inputs = make_inputs(case)
    given = given_gradients(case, inputs)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    expected = gradients(fused, case, inputs, "relu", given)
    found = gradients(compiled, case, inputs, "relu", given)
    assert all(map(torch.equal, found, expected))


def test_wrong_gradients():
    x, weight = torch.randn(2, 8, 5, 7), torch.randn(12, 4, 3, 3)
    y, mean, m2 = ops.conv_stats(x, weight, groups=2)
    call, affine = torch.ops.fastres.conv_stats_backward, (torch.ones(8),) * 3
    for name, changed in (
        ("grad_y", {"grad_y": y[:, :, 1:]}),
        ("grad_y", {"grad_y": y.bfloat16()}),
        ("grad_mean", {"grad_mean": mean[1:]}),
        ("grad_m2", {"grad_m2": m2.double()}),
        ("y", {"y": y[1:]}),
        ("mean", {"mean": mean[None]}),
        ("grad_scale", {"grad_scale": mean[1:]}),
        ("grad_in", {"grad_in": x[1:]}),
        ("grad_in", {"grad_in": x.half()}),
        ("in_residual and activated", {"activated": x}),
        ("in_residual", {"in_residual": x[1:], "activated": x, "affine": affine}),
        ("activated", {"in_residual": x, "activated": x.half(), "affine": affine}),
    ):
        given = {"grad_y": y, "grad_mean": mean, "grad_m2": m2, "y": y, "mean": mean, **changed}
        with pytest.raises(ValueError, match=f"{name} must"):
            call(
                given["grad_y"], given["grad_mean"], given["grad_m2"], x,
                *given.get("affine", (None,) * 3), "none", 0.01, weight, given["y"], given["mean"],
                (1, 1), (0,) * 4, (1, 1), 2,
                True, True, True, given.get("grad_scale"), given.get("grad_in"), "direct",
                given.get("in_residual"), given.get("activated"),
            )  # fmt: skip


@pytest.mark.parametrize("dilation", [1, 2])
def test_an_infinity_stays_in_its_input_channel(dilation, set_threads):
    case = ConvCase(128, 128, padding=(dilation,) * 4, dilation=(dilation,) * 2, h=9, w=9)
    inputs = make_inputs(case, affine=False)
    infinite = inputs._replace(x=inputs.x.clone())
    infinite.x[0, 0, 5, 5] = torch.inf
    for threads in (1, 2, 3):
        set_threads(threads)
        grads = []
        for some in (inputs, infinite):
            leaves = some.leaves()
            y, *_ = fused(case, leaves, "none")
            (grad,) = torch.autograd.grad(y, leaves.weight, torch.ones_like(y))
            grads.append(grad[:, 1:])
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_winograd_gradients_do_not_depend_on_what_memory_held(set_threads):
    """Of 200 channels the last block has eight, and nothing is written beside them."""
    set_threads(2)
    op = torch.ops.fastres
    x = torch.randn(4, 200, 14, 14).to(memory_format=torch.channels_last)
    weight, none = torch.randn(200, 200, 3, 3) / 42, (None, None, None, "none", 0.0)
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    y, mean, _ = op.conv_stats(x, *none, weight, *geometry, "winograd")
    wanted = (False, False, True, None, None, "winograd")

    def gradient() -> torch.Tensor:
        found = op.conv_stats_backward(y, None, None, x, *none, weight, y, mean, *geometry, *wanted)
        return found[4].clone()

    expected = gradient()
    for _ in range(2):
        sizes = (mib * 2**20 // 64 for mib in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16))
        held = [
            op.max_pool(torch.full((1, 16, 1, n), torch.nan), [1, 1], [1, 1], [0, 0]) for n in sizes
        ]
        del held
        assert torch.equal(gradient(), expected)
