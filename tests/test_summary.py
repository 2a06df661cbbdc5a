"""The layers of a network: shapes, parameters, operations, bytes."""

import json

import pytest
import torch
import torchvision
from torch import nn

import fastres
from fastres.report.summary import summarize


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v3_small", "vit_b_16"])
def test_totals_are_what_torchvision_publishes(name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    summary = summarize(model)
    assert summary.parameters == weights.meta["num_params"]
    assert summary.parameters == sum(layer.parameters for layer in summary.layers)
    assert summary.macs / 1e9 == pytest.approx(weights.meta["_ops"], abs=2e-3)


def _network():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 5, 10),
    )


def test_a_layer_has_its_figures():
    conv, norm, act, flatten, linear = summarize(_network(), (2, 4, 8, 10), "mine").layers
    assert (conv.name, conv.kind, conv.output_shape) == ("0", "Conv2d 3 /2 g2", (2, 8, 4, 5))
    assert conv.parameters == 8 * 2 * 9
    assert conv.macs == 2 * 8 * 4 * 5 * 2 * 9
    assert conv.bytes == 4 * (2 * 4 * 8 * 10 + 8 * 2 * 9 + 2 * 8 * 4 * 5)
    assert (norm.kind, norm.parameters, norm.macs) == ("BatchNorm2d", 16, 0)
    assert act.bytes == 2 * 4 * 2 * 8 * 4 * 5
    assert flatten.output_shape == (2, 160)
    assert (linear.macs, linear.parameters) == (2 * 160 * 10, 1610)


def test_a_layer_names_the_operator_that_it_becomes():
    layers = summarize(fastres.models.resnext50_32x4d(), (1, 3, 64, 64)).layers
    into = {layer.name: layer.fused_into for layer in layers}
    assert into["conv1"] == into["bn1"] == into["relu"] == into["maxpool"]
    assert into["maxpool"] == "conv_max_pool #1"
    assert into["layer1.0.conv1"] == into["layer1.0.downsample.1"] == "grouped_bottleneck #2"
    assert into["layer1.0.relu"] == "grouped_bottleneck #2"
    assert into["fc"] is None


def test_a_shared_activation_goes_with_each_of_its_convolutions():
    layers = summarize(torchvision.models.resnet18(), (1, 3, 64, 64)).layers
    relus = [layer.fused_into for layer in layers if layer.name == "layer1.0.relu"]
    norms = [layer.fused_into for layer in layers if layer.name.startswith("layer1.0.bn")]
    assert relus == norms == ["conv_bn_act #2", "conv_bn_act #3"]


def test_a_module_called_twice_has_two_layers_and_its_parameters_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    first, second = summarize(Twice(), (1, 2, 3, 3)).layers
    assert (first.name, second.name) == ("conv", "conv")
    assert (first.parameters, second.parameters) == (6, 0)
    assert first.macs == second.macs == 36


def test_operations_outside_of_layers_count():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 5))
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(x) @ self.weight

    act, product = summarize(Product(), (2, 3)).layers
    assert (act.name, act.macs) == ("act", 0)
    assert (product.name, product.macs, product.parameters) == ("(the model itself)", 30, 15)


def test_a_model_that_looks_at_values_is_run():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.conv(x) if float(x.sum()) < 1 else x

    assert [layer.name for layer in summarize(Branch(), (1, 1, 2, 2)).layers] == ["conv"]


def test_the_model_is_left_alone():
    model = _network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summarize(model, (2, 4, 8, 10))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class _ReturnsNothing(nn.Sequential):
    """Overrides ``train`` without returning the module, as timm's LeViT does."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


def test_a_model_whose_train_returns_nothing():
    model = nn.Sequential(_ReturnsNothing(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)  # called as it is, also by what freeze returns
    model.eval()
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fastres.freeze(model)(x), model(x))
    for whole in (model, model[0]):
        assert summarize(whole, (1, 3, 9, 9)).layers
        assert fastres.explain(whole, input_shape=(1, 3, 9, 9)).fused


def test_an_accelerated_model_has_the_layers_of_its_original():
    model = torchvision.models.resnet18().eval()
    expected = summarize(model, (1, 3, 32, 32))
    assert summarize(fastres.accelerate(model), (1, 3, 32, 32), "ResNet") == expected


def test_it_is_text_json_and_a_picture(tmp_path):
    summary = summarize(_network(), (2, 4, 8, 10), "mine")
    text = str(summary)
    assert text.startswith("mine, input 2x4x8x10\n")
    assert "Conv2d 3 /2 g2" in text
    assert text.splitlines()[-2].startswith("0.00 M parameters")
    assert text.splitlines()[-1] == "fastres.accelerate makes 1 conv_bn_act"
    report = json.loads(json.dumps(summary.to_dict()))
    assert report["macs"] == summary.macs
    assert report["layers"][0]["output_shape"] == [2, 8, 4, 5]
    summary.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
