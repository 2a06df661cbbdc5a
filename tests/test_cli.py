"""The command line, from MODEL and --image to exit codes and files."""

import json
import subprocess
import sys

import child_process
import numpy
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms._presets import ImageClassification

import fastres
from fastres.accelerate import is_accelerated
from fastres.cli import contenders, models
from fastres.cli.errors import CliError
from fastres.cli.images import load_photos, photo_batch, prepare
from fastres.cli.main import main
from fastres.cli.models import calibrate_batch_norm, load_model

SMALL = """
import torch, fastres, helper
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        fastres.nn.ConvBNAct(3, 32, 7, stride=2),
        fastres.nn.Bottleneck(32, 8, groups=4, base_width=16),
        fastres.nn.Bottleneck(32, 16, stride=2, downsample=fastres.nn.projection(32, 64, 2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 8),
    )

def trained():
    model = net()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.01)
    return model

def fails():
    raise RuntimeError("out of luck")

def no_module():
    return 3

def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
"""


@pytest.fixture
def small(tmp_path):
    """A file with functions that return models; it imports a neighbour."""
    (tmp_path / "helper.py").write_text("")
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture
def offline(monkeypatch):
    """No download is tried."""
    monkeypatch.setattr(models, "_is_reachable", lambda url: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "huggingface_hub" in sys.modules:  # an earlier test had timm imported; it has read that
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _fails(capsys, argv, *expected):
    """Whether the command ends with exit code 2 and one line that says what is expected."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"fastres {argv[0]}: error: ")
    for text in expected:
        assert text in captured.err


# ---- photos --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 427), (200, 500), (256, 256), (37, 41)])
def test_a_photo_is_prepared_as_torchvision_does(size):
    generator = numpy.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=numpy.uint8))
    expected = ImageClassification(crop_size=224, resize_size=256)(photo)
    torch.testing.assert_close(prepare(photo), expected, rtol=0, atol=1e-6)
    assert prepare(photo, 64).shape == (3, 64, 64)


def test_a_batch_goes_round_the_photos_and_their_mirror_images():
    photos = load_photos(None)
    assert len(photos) == 2
    batch = photo_batch(photos, 5, size=32)
    assert batch.shape == (5, 3, 32, 32)
    torch.testing.assert_close(batch[2], batch[0].flip(-1))
    torch.testing.assert_close(batch[4], batch[0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_photos_of_every_mode_become_rgb(mode, tmp_path):
    path = tmp_path / "photo.tiff"
    Image.new(mode, (30, 20)).save(path)
    assert load_photos(str(path))[0].mode == "RGB"


def test_files_that_are_no_photos_are_refused(capsys, tmp_path, small):
    text, truncated, strip = (tmp_path / name for name in ("a.jpg", "b.png", "c.png"))
    text.write_text("not a photo")
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), numpy.uint8)).save(
        truncated
    )
    truncated.write_bytes(truncated.read_bytes()[:2000])
    Image.new("RGB", (1000, 3)).save(strip)
    for path, reason in (
        (text, "cannot identify image file"),
        (truncated, "cannot read"),
        (strip, "1000x3"),
        (tmp_path / "absent.jpg", "there is no such file"),
        (tmp_path, "cannot read"),
    ):
        argv = ["bench", f"{small}:net", "--image", str(path)]
        _fails(capsys, argv, "--image: ", str(path), reason)


def test_sample_photos_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CliError, match="pip install scikit-learn"):
        load_photos(None)


# ---- models --------------------------------------------------------------------------------------


def test_names_are_torchvisions_and_timms(offline):
    ours = load_model("resnet18", weights="random")
    assert (ours.name, ours.weights, ours.model.training) == ("resnet18", "random", False)
    assert isinstance(ours.model, torchvision.models.ResNet)
    timm = load_model("timm/resnet18", weights="random")
    assert type(timm.model).__module__ == "timm.models.resnet"
    assert load_model("resnet10t", weights="auto").weights == "random"


def test_pretrained_weights_are_tried_first(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **kwargs: state
    )
    target = load_model("resnet18")
    assert target.weights == "ResNet18_Weights.IMAGENET1K_V1"
    torch.testing.assert_close(target.model.fc.weight, state["fc.weight"])


def test_without_a_network_weights_are_random(monkeypatch):
    def get_state_dict(self, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)
    assert load_model("resnet18").weights == "random"


def test_networks_of_fastres_have_names(offline):
    for name in ("small_resnet18", "fastres/resnet50"):
        target = load_model(name)
        assert target.name == f"fastres/{name.rpartition('/')[2]}"
        assert not is_accelerated(target.model)
    assert load_model("resnet18", "random").name == "resnet18"  # torchvision's goes first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnext50_32x4", "did you mean resnext50_32x4d"),
        ("timm/resnest50", "in timm; did you mean resnest50d"),
        ("nothing_like_it_at_all", "is it file.py:function?"),
        ("mine/resnet50", "expected torchvision/NAME, fastres/NAME or timm/NAME"),
        ("absent.py:net", "there is no file 'absent.py'"),
        ("absent.py", "expected file.py:function"),
    ],
)
def test_unknown_models_are_refused(name, expected, capsys, offline):
    _fails(capsys, ["summary", name], "MODEL: ", expected)


def test_functions_that_give_no_model_are_refused(capsys, small, tmp_path):
    _fails(capsys, ["summary", f"{small}:nett"], "no function 'nett'; it has net, trained")
    _fails(capsys, ["summary", f"{small}:fails"], "raised RuntimeError: out of luck")
    _fails(capsys, ["summary", f"{small}:no_module"], "returned int, expected an nn.Module")
    _fails(capsys, ["summary", f"{small}:grey"], "does not run on an input of [1, 3, 224, 224]")
    (tmp_path / "broken.py").write_text("import no_such_package")
    _fails(capsys, ["summary", f"{tmp_path / 'broken.py'}:f"], "raised ModuleNotFoundError")


def test_calibration_sets_the_statistics_and_nothing_else():
    model = torchvision.models.resnet18().eval()
    parameters = [parameter.clone() for parameter in model.parameters()]
    images = torch.randn(4, 3, 64, 64)
    calibrate_batch_norm(model, images)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert model.bn1.momentum == 0.1
    assert all(map(torch.equal, model.parameters(), parameters))
    with torch.no_grad():
        before_first = model.conv1(images)
        normalised = model.bn1(before_first)
    torch.testing.assert_close(model.bn1.running_mean, before_first.mean((0, 2, 3)))
    assert normalised.std() == pytest.approx(1, abs=0.01)


def test_statistics_that_a_function_set_are_kept(small):
    target = load_model(f"{small}:trained")
    images = torch.randn(2, 3, 64, 64)
    models.make_ready(target, images)
    assert target.weights == "the function's own"
    assert (target.model[0].bn.running_mean == 0.01).all()
    fresh = load_model(f"{small}:net")
    models.make_ready(fresh, images)
    assert "BatchNorm statistics from the input" in fresh.weights
    assert fresh.model[0].bn.running_mean.any()


# ---- commands ------------------------------------------------------------------------------------


def _spoil(monkeypatch):
    """Makes accelerate change what the model computes."""

    def spoilt(model):
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        return fastres.accelerate(model)

    monkeypatch.setattr(contenders, "accelerate", spoilt)


def test_bench_prints_and_writes_what_it_measured(capsys, small, tmp_path):
    threads = torch.get_num_threads()
    argv = ["bench", f"{small}:net", "--size", "64", "--batch", "1", "3", "--rounds", "2"]
    argv += ["--threads", "1", "--json", str(tmp_path / "b.json"), "--plot"]
    assert main([*argv, str(tmp_path / "b.png")]) == 0
    assert torch.get_num_threads() == threads
    text = capsys.readouterr().out
    assert "eager channels_last, ms" in text
    assert text.count("kept") == 2
    report = json.loads((tmp_path / "b.json").read_text())
    assert (report["threads"], report["rounds"], report["size"]) == (1, 2, 64)
    assert [result["batch"] for result in report["batches"]] == [1, 3]
    for result in report["batches"]:
        assert set(result["milliseconds"]) == {"eager", "eager channels_last", "fastres"}
        assert result["ratio"] == pytest.approx(
            result["milliseconds"]["eager channels_last"] / result["milliseconds"]["fastres"]
        )
        assert result["top5_agree"] is True
        assert 0 < result["eager_error"] < 1e-5
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bench_takes_a_layout_and_a_photo(layout, capsys, small, tmp_path):
    Image.new("RGB", (80, 60), "green").save(tmp_path / "photo.png")
    argv = ["bench", f"{small}:net", "--size", "32", "--batch", "1", "--rounds", "1"]
    assert main([*argv, "--layout", layout, "--image", str(tmp_path / "photo.png")]) == 0
    text = capsys.readouterr().out
    assert layout in text
    assert "photo.png at 32x32" in text


def test_bench_in_another_dtype(capsys, small, tmp_path):
    argv = ["bench", f"{small}:net", "--size", "32", "--batch", "2", "--rounds", "1"]
    assert main([*argv, "--dtype", "bfloat16", "--json", str(tmp_path / "b.json")]) == 0
    assert "at 32x32, bfloat16" in capsys.readouterr().out
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["dtype"] == "bfloat16"
    assert 1e-4 < report["batches"][0]["eager_error"] < 0.1


def test_bench_fails_where_the_results_are_wrong(capsys, small, monkeypatch):
    _spoil(monkeypatch)
    assert main(["bench", f"{small}:net", "--size", "32", "--batch", "1", "--rounds", "1"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_verify_checks_outputs_layers_and_gradients(capsys, small, tmp_path):
    argv = ["verify", f"{small}:net", "--input", "2x3x64x64", "--json", str(tmp_path / "v.json")]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "largest errors of 4 layers" in text
    report = json.loads((tmp_path / "v.json").read_text())
    names = [check["name"] for check in report["checks"]]
    assert names == ["outputs", "gradients", "running statistics"]
    assert all(check["kept"] for check in report["checks"])
    assert {check["name"] for check in report["layers"]} == {"0", "1", "2", "2.downsample"}
    assert "1.conv2.weight" in {check["name"] for check in report["gradients"]}


def test_verify_fails_where_the_results_are_wrong(capsys, small, monkeypatch):
    _spoil(monkeypatch)
    assert main(["verify", f"{small}:net", "--input", "2x3x64x64"]) == 1
    text = capsys.readouterr().out
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("outputs")] == [
        "BROKEN"
    ]


def test_verify_takes_other_inputs(capsys, small):
    assert main(["verify", f"{small}:grey", "--input", "3x1x20x30"]) == 0
    argv = ["verify", f"{small}:grey", "--input", "3x1x20x30", "--image", "photo.png"]
    _fails(capsys, argv, "a photo does not fill an input of 3x1x20x30")


def test_verify_says_what_it_could_not_check(capsys, tmp_path):
    path = tmp_path / "eval_only.py"
    path.write_text(
        "from torch import nn\n"
        "class EvalOnly(nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        assert not self.training, 'needs targets'\n"
        "        return super().forward(x)\n"
        "def net():\n"
        "    return EvalOnly(3, 4, 3)\n"
    )
    assert main(["verify", f"{path}:net", "--input", "1x3x16x16"]) == 0
    assert "training: not checked (AssertionError: needs targets)" in capsys.readouterr().out


def test_summary_prints_and_writes(capsys, tmp_path, small):
    argv = ["summary", f"{small}:net", "--input", "1x3x96x160", "--json", str(tmp_path / "s.json")]
    assert main([*argv, "--plot", str(tmp_path / "s.svg")]) == 0
    assert "Conv2d 3 g4" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["input_shape"] == [1, 3, 96, 160]
    assert "<svg" in (tmp_path / "s.svg").read_text()


def test_env_prints_the_configuration(capsys):
    assert main(["env"]) == 0
    assert capsys.readouterr().out.strip() == fastres.show_config().strip()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "required"),
        (["benchmark"], "invalid choice"),
        (["bench", "resnet18", "--batch", "0"], "got '0', expected an integer of at least 1"),
        (["bench", "resnet18", "--rounds", "two"], "got 'two', expected an integer"),
        (["bench", "resnet18", "--json", "no/such/folder/b.json"], "no folder 'no/such/folder'"),
        (["bench", "resnet18", "--plot", "b.txt"], "expected a name that ends in .png"),
        (["bench", "resnet18", "--json", "/"], "is a folder"),
        (["summary", "resnet18", "--input", "3"], "such as 1x3x720x1280"),
        (["summary", "resnet18", "--input", "1x3x0x9"], "expected positive sizes"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(argv, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err


def test_plots_need_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        main(["summary", "resnet18", "--plot", "s.png"])
    assert "pip install matplotlib" in capsys.readouterr().err


def test_interrupting_is_no_crash(monkeypatch):
    def interrupt(name, weights):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastres.cli.summary.load_model", interrupt)
    assert main(["summary", "resnet18"]) == 130


def _run(*command, **options):
    # The package that these tests run on, whether it is installed or not.
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env=child_process.environment(),
        **options,
    )


def test_it_runs_as_a_program(small, tmp_path):
    argv = ["-m", "fastres", "bench", f"{small}:net", "--size", "32", "--batch", "1"]
    result = _run(*argv, "--rounds", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "speed-up" in result.stdout
    result = _run("-m", "fastres", "--version", cwd=tmp_path)
    assert result.stdout == f"fastres {fastres.__version__}\n"


def test_a_reader_that_leaves_is_no_crash(small, tmp_path):
    # The reader's end of the pipe is closed before anything is written.
    code = (
        "import os, sys\n"
        "from fastres.cli.main import main\n"
        "reader, writer = os.pipe()\n"
        "os.dup2(writer, 1)\n"
        "os.close(reader)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = _run("-c", code, "summary", f"{small}:net", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_importing_the_package_imports_no_optional_one():
    code = (
        "import sys, fastres, fastres.cli.main, fastres.report.summary\n"
        "optional = {'torchvision', 'timm', 'matplotlib', 'sklearn', 'PIL'}\n"
        "print(sorted(optional & set(sys.modules)))"
    )
    result = _run("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_an_untracked_norm_needs_no_calibration():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    target = models.Target("mine", model.eval(), "mine")
    models.make_ready(target, torch.randn(2, 3, 8, 8))
    assert target.weights == "mine"
