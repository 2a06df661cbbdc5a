"""The digits benchmark: eager and fused training in tiny, their curves and what is written."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import digits  # noqa: E402
from fastres import _plots  # noqa: E402

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

#: Largest distance of the losses, relative to eager's, in steps that are few and small enough for
#: rounding not to grow: what large ones amplify it by is the network's doing, not the kernels'.
TOLERANCE = 2e-3
RATE = 1e-3


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        "from fastres.models import CifarResNeXt\n"
        "def net(classes):\n"
        "    return CifarResNeXt(4, 11, base_width=4, widen_factor=1, num_classes=classes)\n"
    )
    return f"{path}:net"


@pytest.fixture
def drawn(monkeypatch):
    """The lines of the figure that was saved last."""
    lines = []

    def keep(figure, target):
        lines[:] = figure.axes[0].get_lines()
        save(figure, target)

    save = _plots.save
    monkeypatch.setattr(_plots, "save", keep)
    return lines


def _courses(network, picture, record):
    argv = ["--model", network, "--epochs", "2", "--steps", "4", "--accuracy", "0"]
    argv += ["--threads", str(torch.get_num_threads())]
    assert digits.main([*argv, "--out", str(picture), "--json", str(record)]) == 0
    return json.loads(record.read_text())["courses"]


def test_the_curves_of_a_few_steps_lie_on_each_other(network, drawn, tmp_path, monkeypatch, capsys):
    picture, record = tmp_path / "digits.png", tmp_path / "digits.json"
    monkeypatch.setattr(digits, "_RATE", 0.0)
    standing = _courses(network, picture, record)["eager"]
    capsys.readouterr()
    monkeypatch.setattr(digits, "_RATE", RATE)
    courses = _courses(network, picture, record)
    assert list(courses) == ["eager", "eager, one rounding off", "fastres"]
    eager, fused = courses["eager"], courses["fastres"]
    assert len(eager["losses"]) == len(fused["losses"]) == 8
    assert fused["losses"] == pytest.approx(eager["losses"], rel=TOLERANCE)
    # Small as they are, the steps change the losses by much more than the tolerance.
    assert eager["losses"] != pytest.approx(standing["losses"], rel=10 * TOLERANCE)
    assert len(fused["accuracy"]) == len(fused["seconds"]) == 2
    assert fused["accuracy"] == pytest.approx(eager["accuracy"], abs=0.02)

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [line.get_label().partition(":")[0] for line in drawn] == list(courses)
    for line, course in zip(drawn, courses.values(), strict=True):
        assert line.get_ydata()[-1] == pytest.approx(sum(course["losses"]) / 8, rel=1e-5)
    output = capsys.readouterr().out
    assert f"{fused['accuracy'][-1]:.2%}" in output
    assert "largest distance from eager's loss" in output


def test_what_is_trained_as_fastres_runs_fused(network, monkeypatch):
    net = digits.build_network(network, 10)
    x = torch.randn(4, 3, 32, 32)
    for name in digits.CONTESTANTS:
        learner = digits.Learner(name, net, steps=10)
        with torch.profiler.profile() as profile:
            learner.learn([digits.Batch(x, torch.arange(4), [], 4)])
        fused = any(event.name == "fastres::conv_stats" for event in profile.events())
        assert fused == (name == "fastres")


def test_an_accuracy_that_is_too_low_shows_in_the_exit_code(network):
    argv = ["--model", network, "--epochs", "1", "--steps", "1"]
    assert digits.main([*argv, "--threads", str(torch.get_num_threads())]) == 1


def test_a_network_that_is_not_there_is_named(capsys):
    assert digits.main(["--model", "absent.py:net"]) == 2
    assert "there is no file 'absent.py'" in capsys.readouterr().err
