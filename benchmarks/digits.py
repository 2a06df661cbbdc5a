"""``python -m benchmarks.digits``: a ResNeXt-29 learns scikit-learn's digits, eager and fused.

Eager and ``accelerate`` start from the same weights and see the same batches, an epoch each in
turn. So does eager from weights that are one rounding away: training is chaotic, and how far that
one strays is how far rounding alone leads. Prints loss and accuracy of every epoch, how far the
loss curves are apart, and seconds; ``--out`` draws the curves. The exit code is 1 where an accuracy
does not reach ``--accuracy``.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastres
from fastres import _plots
from fastres._progress import Progress
from fastres._table import format_table
from fastres._version import __version__
from fastres.cli.arguments import output_file, picture_file, positive_int
from fastres.cli.errors import CliError
from fastres.models import CifarBottleneck
from fastres.training.arguments import add_arguments
from fastres.training.data import Batch, Data, open_data
from fastres.training.networks import DEFAULT_NETWORK, build_network
from fastres.training.processes import start_processes
from fastres.training.recipe import parameter_groups, warm_up_then_cosine

EAGER, ROUNDED, FASTRES = "eager", "eager, one rounding off", "fastres"
CONTESTANTS = (EAGER, ROUNDED, FASTRES)
_STYLES = {
    EAGER: {"color": _plots.PALETTE[0], "linewidth": 6.0},
    ROUNDED: {"color": _plots.PALETTE[2], "linewidth": 3.0},
    FASTRES: {"color": _plots.ACCENT, "linewidth": 1.2},
}

_CLASSES = 10
_RATE, _MOMENTUM, _DECAY = 0.2, 0.9, 1e-4
#: The rate rises for one step in so many.
_WARM_UP = 9
#: Crops would make three epochs too few: the digits come whole, or nearly.
_CROP_SCALE = 0.95
#: Steps that a point of the smoothed curve is the mean of.
_WINDOW = 9


@dataclass
class Course:
    """What became of a contestant."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    accuracy: list[float] = field(default_factory=list)
    """Of every epoch: the part of the held-out digits that it tells right."""
    seconds: list[float] = field(default_factory=list)
    """Of every epoch's steps, without loading the images."""

    def smoothed(self) -> Tensor:
        """Means of the losses of ``_WINDOW`` steps in a row."""
        losses = torch.tensor(self.losses)
        return losses.unfold(0, min(_WINDOW, len(losses)), 1).mean(1)

    def distance(self, other: "Course") -> float:
        """The largest distance of the smoothed curves, in nats."""
        return float((self.smoothed() - other.smoothed()).abs().max())


class Learner:
    """A copy of a network with an optimizer, in one of the ways that CONTESTANTS names."""

    def __init__(self, name: str, net: nn.Module, steps: int) -> None:
        self.course = Course()
        self._net = copy.deepcopy(net).to(memory_format=torch.channels_last)
        if name == FASTRES:
            fastres.accelerate(self._net)
        elif name == ROUNDED:
            _round_otherwise(self._net)
        groups = parameter_groups(self._net, _DECAY)
        self._optimizer = torch.optim.SGD(groups, _RATE, _MOMENTUM, nesterov=True)
        self._schedule = warm_up_then_cosine(self._optimizer, steps // _WARM_UP, steps)

    def learn(self, batches: list[Batch]) -> float:
        """Steps through an epoch; its seconds."""
        self._net.train()
        start = time.perf_counter()
        self.course.losses.extend(map(self._step, batches))
        seconds = time.perf_counter() - start
        self.course.seconds.append(seconds)
        return seconds

    def _step(self, batch: Batch) -> float:
        loss = F.cross_entropy(self._logits(batch), batch.labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()

    @torch.no_grad()
    def examine(self, batches: list[Batch]) -> None:
        """Notes the accuracy in eval mode."""
        self._net.eval()
        right = [self._logits(batch).argmax(1) == batch.labels for batch in batches]
        self.course.accuracy.append(torch.cat(right).float().mean().item())

    def _logits(self, batch: Batch) -> Tensor:
        return self._net(batch.images.to(memory_format=torch.channels_last))


def _start_near_shortcuts(net: nn.Module) -> None:
    """Scales what a block adds to its shortcut down, or else gradients explode with the depth.

    Section 5.1 of https://arxiv.org/abs/1706.02677 has zero for it, which starts more slowly.
    """
    for block in net.modules():
        if isinstance(block, CifarBottleneck):
            nn.init.constant_(block.bn_expand.weight, 0.25)


@torch.no_grad()
def _round_otherwise(net: nn.Module) -> None:
    """Moves every weight to a neighbouring float32, up or down by chance."""
    generator = torch.Generator().manual_seed(1)
    for weight in net.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        weight.copy_(weight.nextafter(torch.where(up, torch.inf, -torch.inf)))


def main(argv: list[str] | None = None) -> int:
    """Trains every contestant; the exit code is 1 where one ends below ``--accuracy``."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        courses = _learn(args)
    except CliError as error:
        print(f"benchmarks.digits: error: {error}", file=sys.stderr)
        return 2
    _write(courses, args)
    return int(any(course.accuracy[-1] < args.accuracy for course in courses.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_NETWORK, help="as for fastres train")
    parser.add_argument("--epochs", type=positive_int, default=3, help="(%(default)s)")
    parser.add_argument("--steps", type=positive_int, help="of an epoch (all)")
    parser.add_argument("--batch", type=positive_int, default=16, help="(%(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="(%(default)s)")
    parser.add_argument("--accuracy", type=float, default=0.97, help="(%(default)s)")
    parser.add_argument("--out", type=picture_file, metavar="FILE.png")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    return parser


def _learn(args: argparse.Namespace) -> dict[str, Course]:
    data = _digits(args.batch)
    torch.manual_seed(0)
    net = build_network(args.model, _CLASSES)
    _start_near_shortcuts(net)
    steps = min(data.steps, args.steps or data.steps)
    learners = {name: Learner(name, net, args.epochs * steps) for name in CONTESTANTS}
    with Progress(args.epochs * len(learners)) as progress:
        for _ in progress.follow(_turns(learners, data, args.epochs, steps)):
            pass
    return {name: learner.course for name, learner in learners.items()}


def _turns(
    learners: dict[str, Learner], data: Data, epochs: int, steps: int
) -> Iterator[tuple[str, float]]:
    """An epoch of each in turn; all get the very same tensors."""
    held_out = list(data.validation_batches())
    for epoch in range(epochs):
        batches = list(islice(data.training_batches(epoch), steps))
        for name, learner in learners.items():
            seconds = learner.learn(batches)
            learner.examine(held_out)
            yield name, seconds


def _digits(batch: int) -> Data:
    """The digits at 32 px, as ``fastres train`` has them, but hardly cropped, not erased."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(
        ["--batch", str(batch), "--crop-scale", str(_CROP_SCALE), "--random-erasing", "0"]
    )
    with start_processes("cpu") as processes:
        return open_data(args, processes)


def _write(courses: dict[str, Course], args: argparse.Namespace) -> None:
    eager = courses[EAGER]
    per_epoch = len(eager.losses) // args.epochs
    header = ["epoch", *(f"{name}: loss" for name in courses), *(f"{name}: %" for name in courses)]
    rows = [
        [
            str(epoch + 1),
            *(f"{mean(c.losses[epoch * per_epoch :][:per_epoch]):.4f}" for c in courses.values()),
            *(f"{c.accuracy[epoch]:.2%}"[:-1] for c in courses.values()),
        ]
        for epoch in range(args.epochs)
    ]
    print(f"{format_table(header, rows)}\n")
    summary = [
        [
            name,
            f"{course.accuracy[-1]:.2%}",
            f"{course.distance(eager):.4f}",
            f"{median(course.seconds):.1f}",
        ]
        for name, course in courses.items()
    ]
    header = ["", "held-out accuracy", "largest distance from eager's loss", "seconds an epoch"]
    print(format_table(header, summary))
    print(
        f"\n{args.model}, batch {args.batch}; losses smoothed over {_WINDOW} steps; {args.threads} "
        f"threads; fastres {__version__}, torch {torch.__version__}."
    )
    if args.out is not None:
        _plot(courses, args.out)
    if args.json is not None:
        report = {"model": args.model, "batch": args.batch, "threads": args.threads}
        report["courses"] = {name: asdict(course) for name, course in courses.items()}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _plot(courses: dict[str, Course], path: Path) -> None:
    figure, axis = _plots.new_figure(8.0, 3.6)
    for name, course in courses.items():
        label = f"{name}: {course.accuracy[-1]:.1%} of the held-out digits"
        smoothed = course.smoothed()
        first = len(course.losses) - len(smoothed) + 1
        steps = range(first, first + len(smoothed))
        axis.plot(steps, smoothed.tolist(), label=label, **_STYLES[name])
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("cross-entropy")
    axis.legend(frameon=False)
    _plots.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
