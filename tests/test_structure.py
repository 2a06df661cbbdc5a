"""What is read off a network's graph: resolutions, blocks, shortcuts, memory."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import fastres
from fastres._activation_memory import activation_memory
from fastres.cli.main import main
from fastres.models import CONSTRUCTORS
from fastres.report.structure import structure_of
from fastres.report.summary import summarize


def _structure(name, size=(64, 64)):
    library = torchvision.models if hasattr(torchvision.models, name) else fastres.models
    with torch.device("meta"):
        model = fastres.restore(getattr(library, name)()).eval()
    return structure_of(model, (1, 3, *size))


@pytest.mark.parametrize(
    ("name", "chain"),
    [
        (
            "resnet34",
            "720x1280 → 360x640x64 → 180x320x64 → 90x160x128 → 45x80x256 → 23x40x512",
        ),
        (
            "resnet50",
            "720x1280 → 360x640x64 → 180x320x256 → 90x160x512 → 45x80x1024 → 23x40x2048",
        ),
        (
            "densenet121",
            "720x1280 → 360x640x64 → 180x320x128 → 90x160x256 → 45x80x512 → 22x40x1024",
        ),
    ],
)
def test_chain(name, chain):
    assert str(_structure(name, (720, 1280))) == chain


def test_explicit_padding_is_no_resolution():
    assert str(_structure("keras_resnext50", (224, 224))) == (
        "224x224 → 112x112x64 → 56x56x256 → 28x28x512 → 14x14x1024 → 7x7x2048"
    )


@pytest.mark.parametrize(
    ("name", "kind", "version", "depths", "first"),
    [
        ("resnet18", "basic", "", (2, 2, 2, 2), "identity"),
        ("resnet34", "basic", "", (3, 4, 6, 3), "identity"),
        ("resnet50", "bottleneck", "v1.5", (3, 4, 6, 3), "conv"),
        ("resnet50_v1", "bottleneck", "v1", (3, 4, 6, 3), "conv"),
        ("resnet50_v2", "bottleneck", "v2", (3, 4, 6, 3), "conv"),
        ("resnet18_v2", "basic", "v2", (2, 2, 2, 2), "identity"),
        ("resnext101_32x8d", "bottleneck", "v1.5", (3, 4, 23, 3), "conv"),
        ("small_resnet50", "bottleneck", "v1.5", (3, 4, 6, 3), "conv"),
        ("resnext29_8x64d", "bottleneck", "v1.5", (3, 3, 3), "conv"),
        ("keras_resnext50", "bottleneck", "v1.5", (3, 4, 6, 3), "conv"),
    ],
)
def test_blocks(name, kind, version, depths, first):
    structure = _structure(name, (96, 96))
    assert {block.kind for block in structure.blocks} == {kind}
    assert structure.version == version
    shortcuts = [block.shortcut for block in structure.blocks]
    expected = []
    for stage, depth in enumerate(depths):
        expected += ["conv" if stage else first, *["identity"] * (depth - 1)]
    assert shortcuts == expected


def test_blocks_have_their_modules_parameters_and_operations():
    model = torchvision.models.resnet50()
    summary = summarize(model, (1, 3, 64, 64))
    assert [block.name for block in summary.structure.blocks][:4] == [
        "layer1.0",
        "layer1.1",
        "layer1.2",
        "layer2.0",
    ]
    for block in summary.structure.blocks:
        layers = summary.layers_of(block)
        parameters = sum(p.numel() for p in model.get_submodule(block.name).parameters())
        assert sum(layer.parameters for layer in layers) == parameters
    first = sum(layer.macs for layer in summary.layers_of(summary.structure.blocks[0]))
    assert first == 16 * 16 * (64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256)


def test_blocks_are_found_whatever_they_are_called():
    class Odd(nn.Module):
        """Three convolutions, functional ReLUs, an addition in place, a doubled shortcut."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.parts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
            self.down = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.stem(x)
            y = x
            for part in self.parts:
                y = F.relu(part(y))
            y += self.down(x)
            return F.relu(y).mean((2, 3))

    (block,) = structure_of(Odd().to("meta").eval(), (2, 3, 8, 8)).blocks
    assert (block.kind, block.shortcut, block.version) == ("3 convolutions", "conv", "")
    assert block.output_shape == (2, 8, 8, 8)


def test_what_is_no_image_network_has_no_structure():
    assert structure_of(nn.Linear(3, 4).to("meta"), (2, 3)) is None
    plain = structure_of(torchvision.models.vgg11().to("meta").eval(), (1, 3, 64, 64))
    assert plain.blocks == ()
    assert summarize(nn.Sequential(nn.Linear(3, 4)), (2, 3)).structure is None


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mib"), [("resnet50", 82), ("resnext50_32x4d", 107)])
def test_what_training_keeps_is_what_autograd_keeps(name, mib):
    """Counted on real tensors, too, on a smaller image."""
    with torch.device("meta"):
        model = CONSTRUCTORS[name]()
    memory = activation_memory(fastres.restore(model), (1, 3, 224, 224))
    assert memory.training / 2**20 == pytest.approx(mib, abs=0.5)


def test_training_counts_each_storage_once():
    model = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    memory = activation_memory(model.to("meta"), (2, 4, 5, 5))
    values = 2 * 5 * 5
    # The convolution keeps its input, BatchNorm its input and two vectors, ReLU its output.
    assert memory.training == 4 * (4 * values + 8 * values + 8 + 8 + 8 * values)


def test_inference_counts_what_is_alive_at_once():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 1), nn.ReLU(inplace=True))
    memory = activation_memory(model.to("meta"), (2, 4, 5, 5))
    # The caller holds the input, while the second convolution reads 8 channels and writes 16.
    assert memory.inference == 4 * 2 * 5 * 5 * (4 + 8 + 16)
    longer = nn.Sequential(*model, nn.Conv2d(16, 1, 1), nn.Conv2d(1, 1, 1))
    assert activation_memory(longer, (2, 4, 5, 5)).inference == memory.inference


def test_a_model_that_has_to_compute_has_no_figure():
    class Branch(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) < 1 else -x

    assert activation_memory(Branch(), (1, 3, 4, 4)) is None


def test_the_command_prints_all_of_it(capsys, tmp_path):
    picture = tmp_path / "network.png"
    assert main(["summary", "resnet34", "--input", "1x3x720x1280", "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "720x1280 → 360x640x64 → 180x320x64 → 90x160x128 → 45x80x256 → 23x40x512" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["layer2.0", "basic", "conv", "1x128x90x160", "230,144", "3,303.0"] in lines
    assert "MiB kept for the backward pass in training" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
