"""What is found in a graph and put together, and what must not be."""

from __future__ import annotations

import operator

import pytest
import torch
from nets import Basic, Function, check, conv_bn, reasons
from torch import nn
from torch.nn import functional as F

import fastres


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7)


ACTS = {
    "relu module": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "relu made in forward": lambda x: nn.ReLU(inplace=True)(x),  # noqa: PLW0108
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place by position": lambda x: F.relu(x, True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu": lambda x: x.relu(),
    "x.relu_": lambda x: x.relu_(),
    "relu6": nn.ReLU6(),
    "F.relu6": F.relu6,
    "hardtanh 0 to 6": nn.Hardtanh(0, 6),
    "F.hardtanh 0 to 6": lambda x: F.hardtanh(x, 0.0, 6.0),
    "silu": nn.SiLU(inplace=True),
    "F.silu": F.silu,
    "leaky relu": nn.LeakyReLU(0.2, inplace=True),
    "F.leaky_relu": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "F.leaky_relu default": F.leaky_relu,
}


@pytest.mark.parametrize("act", ACTS)
def test_activations(act, x, assert_accurate):
    check(Basic(act=ACTS[act]), x, assert_accurate, conv_bn_act=2)


@pytest.mark.parametrize("act", [nn.Hardtanh(-1, 1), nn.GELU(), nn.PReLU(), torch.tanh])
def test_other_activations_stay(act, x, assert_accurate):
    report_ops = {"conv_bn_act": 2}
    model = Basic(act=act)
    check(model, x, assert_accurate, **report_ops)
    assert all(": " not in fused.detail and "relu" not in fused.detail
               for fused in fastres.explain(model).fused)  # fmt: skip


def _iadd(a, b):
    a += b
    return a


ADDS = {
    "+": operator.add,
    "+ reversed": lambda y, x: x + y,
    "+=": _iadd,
    "torch.add": torch.add,
    "torch.add reversed": lambda y, x: torch.add(x, y),
    "torch.add alpha 1": lambda y, x: torch.add(y, x, alpha=1),
    "x.add": lambda y, x: y.add(x),
    "x.add_": lambda y, x: y.add_(x),
    "keyword": lambda y, x: torch.add(input=y, other=x),
}


@pytest.mark.parametrize("add", ADDS)
def test_shortcuts(add, x, assert_accurate):
    model = Basic(add=ADDS[add])
    check(model, x, assert_accurate, conv_bn_act=2)
    last = fastres.explain(model).fused[-1]
    assert any("add" in module for module in last.modules), last


@pytest.mark.parametrize("add", ["+", "+=", "x.add_", "+ reversed"])
def test_downsampled_shortcut(add, x, assert_accurate):
    model = Basic(add=ADDS[add], stride=2, shortcut=conv_bn(8, 8, 1, stride=2, padding=0))
    check(model, x, assert_accurate, conv_bn_act=3)


def test_add_with_alpha_is_no_shortcut(x, assert_accurate):
    model = Basic(add=lambda y, x: torch.add(y, x, alpha=2))
    check(model, x, assert_accurate, conv_bn_act=2)
    assert not any("add" in m for f in fastres.explain(model).fused for m in f.modules)


def _fused_adds(model):
    return [m for f in fastres.explain(model).fused for m in f.modules if "add" in m]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: F.relu(m.conv(x) + x.mean((2, 3), keepdim=True)),  # [N, C, 1, 1]
        lambda m, x: F.relu(m.conv(x) + F.adaptive_avg_pool2d(x, 1)),
        lambda m, x: F.relu(m.conv(x) + x[:1]),  # [1, C, H, W]
        lambda m, x: F.relu(m.conv(x)[:, :1] + x),  # [N, 1, H, W] + [N, C, H, W]
        lambda m, x: F.relu(m.conv(x) + m.batch),  # [3, 1, 1, 1] + [1, C, H, W]
        lambda m, x: F.relu(m.conv(x) + m.place),  # [1, C, H, W], a parameter
        lambda m, x: F.relu(m.conv(x) * m.batch),
        lambda m, x: F.relu(m.conv(x) + x[..., :1]),
    ],
)
def test_broadcasts_are_no_shortcuts(forward, x, assert_accurate):
    model = Function(forward, conv=nn.Conv2d(8, 8, 3, padding=1))
    model.batch = nn.Parameter(torch.rand(3, 1, 1, 1))
    model.place = nn.Parameter(torch.randn(1, 8, 9, 7))
    check(model, x[:1].repeat(3, 1, 1, 1), assert_accurate, conv_bn_act=1)
    check(model, x[:1], assert_accurate, conv_bn_act=1)
    assert not _fused_adds(model)


def test_pooling_may_match_a_strided_convolution(assert_accurate):
    """Same size only where it is proven: even heights here, other heights elsewhere."""

    def forward(m, x):
        return F.relu(m.conv(x) + F.max_pool2d(x, 2))

    model = Function(forward, conv=nn.Conv2d(4, 4, 2, stride=2))
    check(model, torch.randn(1, 4, 8, 8), assert_accurate, conv_bn_act=1)
    assert _fused_adds(model)  # floor((H - 2) / 2) + 1 on both sides
    other = Function(forward, conv=nn.Conv2d(4, 4, 3, stride=2, padding=1))
    check(other, torch.randn(1, 4, 8, 8), assert_accurate, conv_bn_act=1)
    assert not _fused_adds(other)  # equal for even heights only


@pytest.mark.parametrize("add", ["+", "+=", "x.add_"])
def test_x_plus_itself(add, x, assert_accurate):
    def forward(m, x):
        y = m.conv(x)
        return ADDS[add](y, y)

    check(Function(forward, conv=nn.Conv2d(8, 8, 1)), x, assert_accurate, conv_bn_act=1)


# ---- convolutions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(8, 12, (3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(8, 12, 3, stride=(2, 1), dilation=(1, 2), padding=2),
        nn.Conv2d(8, 12, 4, padding="same"),
        nn.Conv2d(8, 12, 3, padding="same", dilation=2),
        nn.Conv2d(8, 12, 3, padding="valid"),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 16, 3, groups=8, padding=1),
        nn.Conv2d(8, 12, 7, stride=2, padding=3),
    ],
)
def test_convolution_arguments(conv, x, assert_accurate):
    check(nn.Sequential(conv), x, assert_accurate, conv_bn_act=1)
    check(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)), x, assert_accurate, conv_bn_act=1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.ConvTranspose2d(8, 8, 3), "ConvTranspose2d has no kernel"),
        (nn.Sequential(nn.Unflatten(2, (3, 3)), nn.Conv3d(8, 8, 1)), "Conv3d has no kernel"),
    ],
)
def test_layers_without_kernel_stay(layer, reason, x, assert_accurate):
    check(nn.Sequential(layer, nn.ReLU()), x, assert_accurate)
    assert set(reasons(nn.Sequential(layer, nn.ReLU())).values()) == {reason}


def test_functional_form(x, assert_accurate):
    def forward(m, x):
        y = F.conv2d(x, m.weight, m.offset, 1, 1)
        y = F.batch_norm(y, m.mean, m.var, m.gamma, m.beta, False, 0.1, 1e-3)
        y = torch.conv2d(F.relu(y), weight=m.conv.weight, bias=None, padding="same")
        return F.relu(F.batch_norm(y, m.mean, m.var, eps=1e-3) + x)

    model = Function(forward, conv=nn.Conv2d(8, 8, 3))
    model.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
    for name in ("offset", "gamma", "beta"):
        setattr(model, name, nn.Parameter(torch.randn(8)))
    model.register_buffer("mean", torch.randn(8))
    model.register_buffer("var", torch.rand(8) + 0.5)
    check(model, x, assert_accurate, conv_bn_act=2)


def test_computed_weights_stay(x, assert_accurate):
    def forward(m, x):
        weight = m.conv.weight
        return F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True), m.conv.bias)

    model = Function(forward, conv=nn.Conv2d(8, 8, 3))
    check(model, x, assert_accurate)
    assert list(reasons(model).values()) == ["its weight is computed in forward"]


def test_weights_that_forward_changes_stay(x, assert_accurate):
    def forward(m, x):
        m.conv.weight.data.clamp_(-0.1, 0.1)
        return m.conv(x)

    model = Function(forward, conv=nn.Conv2d(8, 8, 3))
    fastres.accelerate(model)
    with torch.no_grad():
        model.conv.weight.mul_(100)
        assert torch.equal(model(x), model.function(model, x))


def test_weights_given_as_input_stay(x):
    class Dynamic(nn.Module):
        def forward(self, x, weight):
            return F.conv2d(x, weight)

    model = fastres.accelerate(Dynamic())
    weight = torch.randn(8, 8, 3, 3)
    assert torch.equal(model(x, weight), F.conv2d(x, weight))


def test_no_batchnorm_no_activation(x, assert_accurate):
    check(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), x, assert_accurate, conv_bn_act=1)
    check(nn.Sequential(*conv_bn(8, 8), nn.Tanh()), x, assert_accurate, conv_bn_act=1)


def test_identities_and_dropout_are_looked_through(x, assert_accurate):
    layers = [nn.Conv2d(8, 8, 3), nn.Identity(), nn.BatchNorm2d(8), nn.Dropout2d(), nn.ReLU()]
    model = nn.Sequential(*layers)
    check(model, x, assert_accurate, conv_bn_act=1)
    assert len(fastres.explain(model).fused[0].modules) == 3

    def forward(m, x):
        return F.relu(m.bn(F.dropout(m.conv(x), 0.5, training=m.training)))

    model = Function(forward, conv=nn.Conv2d(8, 8, 3), bn=nn.BatchNorm2d(8))
    check(model, x, assert_accurate, conv_bn_act=1)


def test_preactivation(x, assert_accurate):
    def forward(m, x):
        y = m.conv1(F.relu(m.bn1(x)))
        y = m.conv2(F.relu(m.bn2(y)))
        return y + x

    model = Function(
        forward,
        bn1=nn.BatchNorm2d(8),
        conv1=nn.Conv2d(8, 8, 3, padding=1),
        bn2=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 8, 3, padding=1),
    )
    check(model, x, assert_accurate, conv_bn_act=2, affine_add_act=1)
    assert reasons(model) == {}
    assert "bn2" in fastres.explain(model).fused[1].modules


def test_shared_modules(x, assert_accurate):
    def forward(m, x):
        return m.body(m.body(x))

    body = nn.Sequential(*conv_bn(8, 8), nn.ReLU())
    check(Function(forward, body=body), x, assert_accurate, conv_bn_act=2)


def test_batchnorm_without_affine(x, assert_accurate):
    check(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)), x, assert_accurate,
          conv_bn_act=1)  # fmt: skip


def test_batchnorm_without_statistics_stays(x, assert_accurate):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    check(model, x, assert_accurate)
    assert set(reasons(model).values()) == {"its BatchNorm keeps no running statistics"}


def test_batchnorm_momentum_none(x, assert_accurate):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None))
    check(model, x, assert_accurate, conv_bn_act=1)


def test_sync_batchnorm_folds(x, assert_accurate):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*conv_bn(8, 8)))
    check(model, x, assert_accurate, conv_bn_act=1)


class _Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class _Renamed(nn.BatchNorm2d):
    pass


class _RenamedConv(nn.Conv2d):
    pass


def test_subclasses(x, assert_accurate):
    model = nn.Sequential(_RenamedConv(8, 8, 3), _Renamed(8), nn.ReLU())
    check(model, x, assert_accurate, conv_bn_act=1)
    assert len(fastres.explain(model).fused[0].modules) == 3
    model = nn.Sequential(nn.Conv2d(8, 8, 3), _Scaled(8), nn.ReLU())
    check(model, x, assert_accurate, conv_bn_act=1)
    assert len(fastres.explain(model).fused[0].modules) == 1


# ---- scales and offsets --------------------------------------------------------------------------


def _touched(m, x):
    scale = m.scale * 2
    y = m.conv(x) * scale
    scale.add_(1)
    return y + scale


@pytest.mark.parametrize(
    ("forward", "operations"),
    [
        (lambda m, x: m.conv(x) * m.scale, 2),
        (lambda m, x: m.scale.reshape(1, -1, 1, 1) * m.conv(x) + m.offset[:, None, None], 3),
        (lambda m, x: F.relu((m.offset * 2).view(8, 1, 1) + m.bn(m.conv(x))), 4),
        (lambda m, x: F.relu(m.conv(x) * 0.1 + x), 4),
        (lambda m, x: F.relu(m.conv(x).mul_(0.1).add_(1.5)), 4),
        (lambda m, x: m.conv(x) * m.one, 2),
        (lambda m, x: F.relu(m.conv(x) * m.scale).mul(m.scale), 3),
        (lambda m, x: m.bn(m.conv(x) + m.scale) * x, 3),
        (lambda m, x: m.conv(x) * m.scale.mean(), 1),
        (_touched, 1),
    ],
)
def test_scales_and_offsets_fold(forward, operations, x, assert_accurate):
    conv, bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    model = Function(forward, conv=conv, bn=bn)
    model.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
    model.offset = nn.Parameter(torch.randn(8))
    model.register_buffer("one", torch.tensor(0.7))
    check(model, x, assert_accurate, conv_bn_act=1)
    assert len(fastres.explain(model).fused[0].modules) == operations
    with torch.no_grad():
        model.scale.data.mul_(3)
        model.offset.data.add_(1)
        torch.testing.assert_close(model(x), forward(model, x), rtol=1e-4, atol=1e-5)


def test_scales_of_another_dtype_stay(x):
    model = Function(lambda m, x: m.conv(x) * m.scale, conv=nn.Conv2d(8, 8, 3).bfloat16())
    model.scale = nn.Parameter(torch.rand(8, 1, 1))
    model.eval()
    with torch.no_grad():
        eager = model(x.bfloat16())
        out = fastres.accelerate(model)(x.bfloat16())
    assert out.dtype == eager.dtype == torch.float32
    assert torch.equal(out, eager)


# ---- aliasing ------------------------------------------------------------------------------------


def test_inner_value_used_twice(x, assert_accurate):
    def forward(m, x):
        y = m.conv(x)
        return m.bn(y) + y.sigmoid()

    model = Function(forward, conv=nn.Conv2d(8, 8, 3), bn=nn.BatchNorm2d(8))
    check(model, x, assert_accurate, conv_bn_act=1, affine_add_act=1)
    assert fastres.explain(model).fused[0].modules == ("conv",)


@pytest.mark.parametrize(
    "forward",
    [
        # The convolution's output, used again after something wrote to it.
        lambda m, x: [y := m.conv(x), z := F.relu(y, inplace=True), y * z][-1],
        lambda m, x: [y := m.conv(x), F.relu_(y), y * 2][-1],
        lambda m, x: [y := m.conv(x), y.add_(x), y * 2][-1],
        lambda m, x: [y := m.bn(m.conv(x)), v := y[:, :2], v.mul_(3), y + x][-1],
        lambda m, x: [y := m.bn(m.conv(x)), v := y.flatten(1), v.mul_(3), y + x][-1],
        # The shortcut, overwritten between the addition and the activation.
        lambda m, x: [s := x * 1, y := m.bn(m.conv(x)) + s, s.zero_(), F.relu(y) + s][-1],
        # Added into the shortcut, which is used again, or not.
        lambda m, x: [s := x * 1, s.add_(m.conv(x)), s * 2][-1],
        lambda m, x: [s := x * 1, t := _iadd(s, m.bn(m.conv(x))), F.relu(t) * s][-1],
        lambda m, x: [s := x * 1, t := _iadd(s, m.bn(m.conv(x))), F.relu(t)][-1],
        lambda m, x: [s := x * 1, v := s[:1], t := _iadd(s, m.conv(x)), F.relu(t) + v][-1],
    ],
)
def test_writes_in_place(forward, x, assert_accurate):
    model = Function(forward, conv=nn.Conv2d(8, 8, 3, padding=1), bn=nn.BatchNorm2d(8))
    check(model, x, assert_accurate, conv_bn_act=1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: [s := x * 1, y := m.conv(s), s.mul_(0), F.relu(m.bn(y))][-1],
        lambda m, x: [s := x * 1, y := m.conv(s), t := F.relu(s, True), F.relu(m.bn(y) + t)][-1],
        lambda m, x: [s := x * 1, v := s[:1], y := m.conv(s), v.zero_(), F.relu(m.bn(y))][-1],
    ],
)
def test_what_the_convolution_reads_is_written_before_its_batchnorm(forward, x, assert_accurate):
    model = Function(forward, conv=nn.Conv2d(8, 8, 3, padding=1), bn=nn.BatchNorm2d(8))
    check(model, x, assert_accurate, conv_bn_act=1, affine_add_act=1)


def test_input_written_in_place_is_written_all_the_same(x):
    def forward(m, x):
        x += 1
        return m.conv(x)

    model = fastres.accelerate(Function(forward, conv=nn.Conv2d(8, 8, 1)))
    expected = x + 1
    with torch.no_grad():
        model(x)
    assert torch.equal(x, expected)


def test_shortcut_added_in_place_to_the_input_is_written_all_the_same(x):
    def forward(m, x):
        x += m.conv(x)
        return F.relu(x)

    conv = nn.Conv2d(8, 8, 1)
    model = fastres.accelerate(Function(forward, conv=conv))
    with torch.no_grad():
        expected = x + conv(x)
        model(x)
    torch.testing.assert_close(x, expected)
