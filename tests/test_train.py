"""`fastres train`: the loop, whatever happens to it."""

import csv
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import child_process
import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

import fastres
from fastres.cli.main import main
from fastres.training import arguments, data, script
from fastres.training.checkpoint import write_atomically
from fastres.training.processes import Processes
from fastres.training.recipe import moving_average, parameter_groups, warm_up_then_cosine

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = """
from torch import nn
from torchvision.models.resnet import Bottleneck

def net(classes):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        Bottleneck(32, 8, groups=4, base_width=32), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )

def without_norm(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, classes))

def slow(classes):
    import time
    model = net(classes)
    model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    return model
"""


@pytest.fixture
def networks(tmp_path):
    path = tmp_path / "networks.py"
    path.write_text(NETWORKS)
    return path


@pytest.fixture
def photos(tmp_path):
    """Forty noisy images of two classes, one dark and one bright, some not square."""
    generator = numpy.random.default_rng(0)
    root = tmp_path / "photos"
    for label, base in (("dark", 60), ("light", 150)):
        (root / label).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(base, base + 60, (20 + index, 24, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(root / label / f"{index:02}.png")
    return root


def _train(networks, out, *arguments, net="net"):
    return main(_arguments(networks, out, *arguments, net=net))


def _arguments(networks, out, *arguments, net="net"):
    named = {"--model": f"{networks}:{net}", "--out": str(out), "--threads": "1"}
    return ["train", *(word for pair in named.items() for word in pair), *arguments]


def _rows(out):
    with (out / "log.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def _small(photos, *more):
    return ["--data", str(photos), "--size", "16", "--batch", "8", "--workers", "0", *more]


# ---- a run ---------------------------------------------------------------------------------------


def test_the_digits_are_learnt_and_the_record_is_complete(networks, tmp_path, capsys):
    out = tmp_path / "run"
    assert _train(networks, out, "--epochs", "3", "--lr", "0.2", "--mixup", "0") == 0
    rows = _rows(out)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[2]["accuracy"] > 0.5  # of ten classes
    assert rows[2]["train_loss"] < rows[0]["train_loss"]
    assert all(row["images_per_second"] > 0 and row["seconds"] > 0 for row in rows)
    with (out / "confusion.csv").open(newline="") as file:
        counts = numpy.array([row[1:] for row in csv.reader(file)][1:], dtype=int)
    assert counts.sum() == 355  # a fifth of every one of 1797 digits
    assert counts.trace() / counts.sum() == pytest.approx(rows[2]["accuracy"])
    for name in ("curves.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert numpy.asarray(picture.convert("L")).std() > 5  # something is drawn
    assert "is, taken for" in capsys.readouterr().out


def test_what_trains_is_accelerated_unless_it_is_the_reference(
    networks, photos, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(fastres, "accelerate", lambda model: seen.append(model) or model)
    accelerated, reference = tmp_path / "accelerated", tmp_path / "reference"
    assert _train(networks, accelerated, *_small(photos, "--epochs", "1")) == 0
    assert len(seen) == 1
    assert _train(networks, reference, *_small(photos, "--epochs", "1", "--reference")) == 0
    assert len(seen) == 1


def test_the_reference_learns_the_same(networks, photos, tmp_path):
    rows = {}
    for name, more in (("accelerated", ()), ("reference", ("--reference",))):
        assert _train(networks, tmp_path / name, *_small(photos, "--epochs", "2", *more)) == 0
        rows[name] = _rows(tmp_path / name)
    for ours, theirs in zip(rows["accelerated"], rows["reference"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


def test_autocast_and_every_augmentation_train(networks, photos, tmp_path):
    more = ["--amp", "--mixup", "0.4", "--random-erasing", "0.9", "--flip", "--epochs", "2"]
    assert _train(networks, tmp_path / "run", *_small(photos, *more)) == 0
    assert all(numpy.isfinite(row["train_loss"]) for row in _rows(tmp_path / "run"))


def test_loading_in_processes_gives_the_same_images(networks, photos, tmp_path):
    arguments = _small(photos, "--epochs", "1")
    assert _train(networks, tmp_path / "one", *arguments) == 0
    assert _train(networks, tmp_path / "two", *arguments, "--workers", "2") == 0
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_tensorboard_log_has_the_figures(networks, photos, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert _train(networks, out, *_small(photos, "--epochs", "2", "--tensorboard")) == 0
    events = EventAccumulator(str(out)).Reload()
    losses = [event.value for event in events.Scalars("train_loss")]
    assert losses == pytest.approx([row["train_loss"] for row in _rows(out)])


# ---- interrupted ---------------------------------------------------------------------------------


def _start(arguments):
    command = [sys.executable, "-m", "fastres", *arguments]
    return subprocess.Popen(
        command, env=child_process.environment(), stderr=subprocess.PIPE, text=True
    )


def _train_in_a_process(*arguments):
    process = _start(_arguments(*arguments))
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


def _stopped_inside_an_epoch(process, out):
    """Halts a run, and lets it go on unless its checkpoint is of the middle of a later epoch."""
    if not (out / "checkpoint.pt").is_file():
        return False
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)  # until it has halted: what is read now is what a kill leaves
    position = torch.load(out / "checkpoint.pt", weights_only=True)["position"]
    if position["epoch"] >= 1 and position["step"] > 0:
        return True
    process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_bits(networks, photos, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = _small(photos, "--epochs", "4", "--save-every", "0")
    # Every run in a process of its own, as runs are: this one has imported and computed much else.
    _train_in_a_process(networks, whole, *arguments)

    process = _start(_arguments(networks, killed, *arguments, net="slow"))
    while process.poll() is None and not _stopped_inside_an_epoch(process, killed):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, messages = process.communicate()
    assert process.returncode == -signal.SIGKILL, messages

    # The network is another function of the same values.
    state = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert state["position"]["step"] > 0
    state["settings"]["model"] = f"{networks}:net"
    torch.save(state, killed / "checkpoint.pt")
    _train_in_a_process(networks, killed, *arguments, "--resume")
    expected, resumed = _weights(whole), _weights(killed)
    assert [name for name in expected if not torch.equal(resumed[name], expected[name])] == []
    times = ("seconds", "images_per_second")
    for ours, theirs in zip(_rows(killed), _rows(whole), strict=True):
        assert {k: v for k, v in ours.items() if k not in times} == {
            k: v for k, v in theirs.items() if k not in times
        }


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"old")

    def interrupted():
        with write_atomically(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    with write_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_is_neither_overwritten_nor_continued_as_another(networks, photos, tmp_path, capsys):
    out = tmp_path / "run"
    assert _train(networks, out, *_small(photos, "--epochs", "1")) == 0
    capsys.readouterr()
    for more, message in (
        ([], f"--out: there is a run in {out}: --resume continues it"),
        (["--resume", "--lr", "0.2"], f"--resume: the run in {out} has lr = 0.05, got 0.2"),
    ):
        assert _train(networks, out, *_small(photos, "--epochs", "1", *more)) == 2
        assert message in capsys.readouterr().err
    assert _train(networks, out, *_small(photos, "--epochs", "1", "--resume")) == 0
    (out / "checkpoint.pt").write_bytes(b"cut off")
    assert _train(networks, out, *_small(photos, "--epochs", "1", "--resume")) == 2
    assert "checkpoint.pt is not a checkpoint" in capsys.readouterr().err


# ---- images --------------------------------------------------------------------------------------


def test_broken_images_are_skipped_named_and_counted(networks, photos, tmp_path, capsys):
    header, body = photos / "dark" / "03.png", photos / "light" / "05.png"
    header.write_text("not an image")
    body.write_bytes(body.read_bytes()[:-400])
    assert _train(networks, tmp_path / "run", *_small(photos, "--epochs", "2")) == 0
    messages = capsys.readouterr().err
    assert messages.count(f"skipped a file that is no image: {header}: UnidentifiedImageErr") == 1
    assert messages.count(f"skipped a broken image: {body}: OSError('image file is trunc") == 1
    assert _rows(tmp_path / "run")[-1]["broken_images"] == 2


def test_a_resumed_run_counts_what_was_broken_before(networks, photos, tmp_path, monkeypatch):
    for path in sorted((photos / "light").iterdir())[:10]:
        path.write_bytes(path.read_bytes()[:-400])
    arguments = _small(photos, "--epochs", "1", "--save-every", "0")

    def killed(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "evaluate", killed)  # every training image has been read
        assert _train(networks, tmp_path / "run", *arguments) != 0
    assert _train(networks, tmp_path / "run", *arguments, "--resume") == 0
    assert _rows(tmp_path / "run")[-1]["broken_images"] == 10


def test_a_batch_of_broken_images_is_filled_with_others(networks, photos, tmp_path):
    for path in sorted((photos / "light").iterdir()):
        path.write_bytes(path.read_bytes()[:-400])
    # Of one image of 32x32 there is one value per channel in the end, which BatchNorm refuses.
    for batch, size in (("1", "64"), ("2", "32")):
        out = tmp_path / f"run{batch}"
        more = ["--epochs", "1", "--batch", batch, "--model", "resnet18", "--size", size]
        assert _train(networks, out, *_small(photos, *more)) == 0
        assert _rows(out)[0]["broken_images"] == 20
        steps = torch.load(out / "checkpoint.pt", weights_only=True)["schedule"]["last_epoch"]
        assert steps == 32 // int(batch)


def test_a_class_of_broken_images_is_filled_with_others(photos):
    """More of them in a row than are tried in the place of one."""
    bad, good = sorted((photos / "dark").iterdir())[:2]
    bad.write_bytes(bad.read_bytes()[:-400])
    samples = [(str(bad), 0)] * 2 * data._SPARES + [(str(good), 1)] * 2 * data._SPARES
    images = data._Images(samples, numpy.asarray, True)
    for index in range(20):
        assert images[index, index][1] == 1


def test_a_training_batch_is_whole_or_empty(photos, monkeypatch):
    """BatchNorm refuses what a batch of two is without one of them."""
    monkeypatch.setattr(data, "_SPARES", 0)
    good, bad = sorted((photos / "dark").iterdir())[:2]
    bad.write_bytes(bad.read_bytes()[:-400])
    images = data._Images([(str(good), 0), (str(bad), 1)], to_tensor, True)
    alone = Processes(0, 1, torch.device("cpu"))
    (batch,) = data.Data(["a", "b"], images, images, 2, 0, 0, alone, []).training_batches(0)
    assert (len(batch.images), len(batch.labels), batch.size) == (0, 0, 2)
    assert [file.partition(":")[0] for file in batch.broken] == [str(bad)]


def test_training_images_of_which_too_few_can_be_read(
    networks, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(data, "_SPARES", 1)
    for path in photos.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:-400])
    assert _train(networks, tmp_path / "run", *_small(photos)) == 2
    assert "error: --data: 16 images in a row cannot be read" in capsys.readouterr().err


def test_held_out_images_of_which_none_can_be_read(networks, photos, tmp_path, capsys):
    root = tmp_path / "split"
    (root / "val").mkdir(parents=True)
    photos.rename(root / "train")
    for label in ("dark", "light"):
        (root / "val" / label).mkdir()
        path = root / "train" / label / "00.png"
        (root / "val" / label / "00.png").write_bytes(path.read_bytes()[:-400])
    assert _train(networks, tmp_path / "run", *_small(root, "--epochs", "1")) == 2
    assert "--data: none of the held-out images can be read" in capsys.readouterr().err


def test_another_folder_with_as_many_images_is_another_run(networks, photos, tmp_path, capsys):
    arguments = _small(photos, "--epochs", "1")
    assert _train(networks, tmp_path / "run", *arguments) == 0
    (photos / "dark").rename(photos / "shady")
    assert _train(networks, tmp_path / "run", *arguments, "--resume") == 2
    assert "has classes = dark, light, got light, shady" in capsys.readouterr().err


def test_a_run_that_noted_no_classes_resumes(networks, photos, tmp_path):
    arguments = _small(photos, "--epochs", "1")
    assert _train(networks, tmp_path / "run", *arguments) == 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    del state["settings"]["classes"]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    assert _train(networks, tmp_path / "run", *arguments, "--resume") == 0


def test_images_of_sixteen_bits_keep_their_greys(tmp_path):
    values = numpy.arange(0, 65536, 257, dtype=numpy.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "grey.tif")
    for name in ("grey.png", "grey.tif"):
        found = numpy.asarray(data._read(str(tmp_path / name)))
        assert numpy.array_equal(found[..., 0], numpy.arange(256).reshape(16, 16))


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
@pytest.mark.parametrize("step", [1, 257])
def test_greys_of_more_than_eight_bits_have_all_levels(tmp_path, mode, step):
    """Files with eight bits' values in sixteen or thirty-two bits, too."""
    dtype = {"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]
    values = numpy.arange(256).reshape(16, 16)
    path = tmp_path / "grey.tif"
    Image.frombytes(mode, (16, 16), (step * values).astype(dtype).tobytes()).save(path)
    assert numpy.array_equal(numpy.asarray(data._read(str(path)))[..., 2], values)


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("a DDS"),
        MemoryError(),
        SyntaxError("broken PNG"),
        OSError("truncated"),
        struct.error("unpack"),
        Image.DecompressionBombError("too large"),
    ],
    ids=repr,
)
def test_whatever_pillow_raises_is_a_broken_image(photos, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(Image, "open", refuse)
    path = str(photos / "dark" / "00.png")
    assert data._drop_unreadable([(path, 0)]) == ([], [f"{path}: {error!r}"])
    images = data._Images([(path, 0)], numpy.asarray, False)
    assert images[0, 0] == (None, -1, [f"{path}: {error!r}"])


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seed", "9" * 30, "expected an integer of at most 62 bits"),
        ("--seed", "1.5", "expected an integer"),
        ("--mixup", "1e-300", "expected 0 or a number from 0.01 to 1000000"),
        ("--mixup", "0.001", "expected 0 or a number from 0.01 to 1000000"),
        ("--mixup", "1e300", "expected 0 or a number from 0.01 to 1000000"),
    ],
)
def test_numbers_that_nothing_can_be_made_of(option, value, expected, capsys):
    with pytest.raises(SystemExit):
        main(["train", option, value])
    assert f"{option}: got '{value}', {expected}" in capsys.readouterr().err


def test_the_least_mixup_mixes_as_little_as_it_says():
    """Of a smaller alpha PyTorch draws 0.5, where a Beta distribution gives 0 or 1."""
    torch.manual_seed(0)
    alpha = torch.tensor(arguments._LEAST_MIXUP)
    drawn = torch.distributions.Beta(alpha, alpha).sample((10000,))
    exact = numpy.random.default_rng(0).beta(float(alpha), float(alpha), 10000)
    mixed, expected = ((abs(v - 0.5) < 0.4).sum() / 10000 for v in (drawn.numpy(), exact))
    assert mixed == pytest.approx(expected, abs=0.01)


def test_a_folder_with_train_and_val_is_taken_as_it_is(networks, photos, tmp_path, capsys):
    root = tmp_path / "split"
    (root / "train").mkdir(parents=True)
    (root / "val" / "dark").mkdir(parents=True)
    for label in ("dark", "light"):
        (photos / label).rename(root / "train" / label)
    (root / "train" / "dark" / "00.png").rename(root / "val" / "dark" / "00.png")
    assert _train(networks, tmp_path / "run", *_small(root, "--epochs", "1")) == 2
    assert "differ in the classes light" in capsys.readouterr().err
    (root / "val" / "light").mkdir()
    (root / "train" / "light" / "00.png").rename(root / "val" / "light" / "00.png")
    assert _train(networks, tmp_path / "run", *_small(root, "--epochs", "1")) == 0
    counts = (tmp_path / "run" / "confusion.csv").read_text().splitlines()[1:]
    assert [sum(map(int, line.split(",")[1:])) for line in counts] == [1, 1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "1000"], "--batch: got 1000 in 1 processes, but there are only 32 images"),
        (["--data", "{empty}"], "expected {empty}/CLASS/*.jpg"),
        (["--device", "tpu"], "--device: got 'tpu', expected auto, cpu or cuda"),
        (["--model", "{networks}:nets"], "has no function 'nets'"),
    ],
)
def test_what_cannot_be_trained_is_one_line(more, message, networks, photos, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    more = [word.format(empty=empty, networks=networks) for word in more]
    assert _train(networks, tmp_path / "run", *_small(photos, *more)) == 2
    assert message.format(empty=empty) in capsys.readouterr().err


# ---- several processes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(networks, photos, tmp_path):
    # No BatchNorm and no Mixup, which work on a process's own images.
    common = ["--data", str(photos), "--size", "16", "--workers", "0", "--mixup", "0"]
    common += ["--epochs", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert _train(networks, one, *common, "--batch", "8", net="without_norm") == 0
    arguments = _arguments(networks, two, *common, "--batch", "4", net="without_norm")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "fastres", *arguments]
    subprocess.run(command, env=child_process.environment(), check=True, timeout=100)
    expected, got = _weights(one), _weights(two)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(_rows(two), _rows(one), strict=True):
        assert ours["accuracy"] == theirs["accuracy"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


# ---- the recipe ----------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_then_cosine(optimizer, 4, 24)
    rates = []
    for _ in range(24):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    half_cosine = 1 + numpy.cos(numpy.pi * numpy.arange(20) / 20)
    assert rates[4:] == pytest.approx(half_cosine.tolist(), abs=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_average_follows_weights_and_statistics():
    model = nn.BatchNorm1d(2)
    average = moving_average(model, 0.5)
    expected = None
    for update, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0, 4.0, 1.0, 0.5, 2.0, 9.0, 8.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_var.fill_(2 * value)
            model.num_batches_tracked.fill_(update)
        average.update_parameters(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight, torch.full((2,), expected))
    torch.testing.assert_close(average.module.running_var, torch.full((2,), 2 * expected))
    assert average.module.num_batches_tracked == 10


def test_norms_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decaying, others = parameter_groups(model, 0.3)
    assert [len(decaying["params"]), decaying["weight_decay"]] == [2, 0.3]
    assert [len(others["params"]), others["weight_decay"]] == [4, 0.0]


def test_the_packaged_script_is_the_example():
    assert Path(script.__file__).read_text() == (ROOT / "examples" / "train.py").read_text()
