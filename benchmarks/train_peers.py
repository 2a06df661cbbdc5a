"""``python -m benchmarks.train_peers``: a training step in every way that PyTorch has, in turn.

A step is forward, cross entropy, backward and an SGD update, in one process, the contestants one
after another; the tables give medians, how many times as fast as the best of PyTorch's own ways
fastres is, and what each keeps for backward. ``--markdown`` and ``--json`` write files. Before
anything is timed, each contestant's loss and last gradient are compared with eager's.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fastres
from fastres import _measure
from fastres._progress import Progress
from fastres._saved import saved_bytes
from fastres._table import format_markdown, format_table
from fastres._version import __version__
from fastres.cli.arguments import output_file, positive_int

from .shapes import ConvShape
from .training_layers import TRAINING_IMPLEMENTATIONS, TrainingLayer

EAGER, EAGER_CHANNELS_LAST, COMPILE = "eager", "eager channels_last", "torch.compile"
FASTRES, SAVE = "fastres", "fastres save"
#: The same under bfloat16 autocast; eager in the format that suits it better, channels_last.
EAGER_BFLOAT16, BFLOAT16 = "eager bf16", "fastres bf16"
PEERS = (EAGER, EAGER_CHANNELS_LAST, COMPILE)
CONTESTANTS = (*PEERS, FASTRES, SAVE, EAGER_BFLOAT16, BFLOAT16)

#: A contestant whose loss or last gradient is further from eager's computes something else.
_MAX_DIFFERENCE = 1e-3
#: In bfloat16 that is what rounding gives: for fastres at most twice what eager's does.
_MAX_BFLOAT16_DIFFERENCE = 0.3
_CLASSES = 1000
_MIB = 2**20

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A network, and the images that it is trained on."""

    name: str
    network: Callable[[], nn.Module]
    batch: int
    size: int


def _small_image_resnet18() -> nn.Module:
    net = torchvision.models.resnet18(weights=None)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


CASES = {
    case.name: case
    for case in (
        Case("resnext50_32x4d", torchvision.models.resnext50_32x4d, 8, 224),
        Case("resnet50", torchvision.models.resnet50, 8, 224),
        Case("resnet18, 3x3 stem", _small_image_resnet18, 128, 32),
    )
}
#: ResNeXt-50's first grouped convolution.
GROUPED = ConvShape(128, 128, 3, 1, 1, 32, 56, 56, residual=False, act="relu")


@dataclass
class Comparison:
    """Median milliseconds, MiB an image kept for backward, and who was left out and why."""

    name: str
    batch: int
    size: int
    milliseconds: dict[str, float] = field(default_factory=dict)
    saved: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def speed_up(self) -> float:
        """The best peer's time over fastres's."""
        peers = [self.milliseconds[peer] for peer in PEERS if peer in self.milliseconds]
        return min(peers) / self.milliseconds[FASTRES]


class Contestant:
    """A copy of a network with an optimizer, in one of the ways that CONTESTANTS names."""

    def __init__(self, name: str, net: nn.Module, x: Tensor, target: Tensor) -> None:
        self.module = copy.deepcopy(net)
        self._x, self._target = x, target
        self._autocast = name in (EAGER_BFLOAT16, BFLOAT16)
        if name in (EAGER_CHANNELS_LAST, EAGER_BFLOAT16):
            self.module.to(memory_format=torch.channels_last)
            self._x = x.to(memory_format=torch.channels_last)
        elif name in (FASTRES, BFLOAT16):
            fastres.accelerate(self.module)
        elif name == SAVE:
            fastres.accelerate(self.module, memory="save")
        self._call = torch.compile(self.module) if name == COMPILE else self.module
        self._optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-5)

    def forward(self) -> Tensor:
        """The logits."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self._call(self._x)
        return logits

    def step(self) -> Tensor:
        """A training step; its loss."""
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self.forward().float(), self._target)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def saved(self) -> int:
        """Bytes that a forward pass keeps for backward."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            return saved_bytes(self.module, self._x)

    def difference(self, eager: "Contestant") -> float:
        """After a step of both: that of the last layer's gradient, relative."""
        ours, theirs = (list(c.module.parameters())[-2].grad for c in (self, eager))
        return _measure.relative_error(ours, theirs)


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; the exit code is 1 where fastres was left out."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    comparisons = [_compare(CASES[name], args) for name in args.cases]
    for comparison in comparisons:
        for name, reason in comparison.skipped.items():
            print(f"{comparison.name}: without {name}: {reason}", file=sys.stderr)
    layer = _compare_layer(args) if args.layer else {}
    _write(comparisons, layer, args)
    return int(any(FASTRES in comparison.skipped for comparison in comparisons))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_peers", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--threads", type=positive_int, default=2, help="(%(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument("--batch", type=positive_int, help="instead of the case's own")
    parser.add_argument("--size", type=positive_int, help="instead of the case's own")
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS, metavar="NAME",
        help=f"of {', '.join(CONTESTANTS)}",
    )  # fmt: skip
    parser.add_argument("--no-layer", dest="layer", action="store_false")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    parser.add_argument("--markdown", type=output_file, metavar="FILE.md")
    return parser


def _compare(case: Case, args: argparse.Namespace) -> Comparison:
    torch.manual_seed(0)
    comparison = Comparison(case.name, args.batch or case.batch, args.size or case.size)
    x = torch.randn(comparison.batch, 3, comparison.size, comparison.size)
    target = torch.randint(0, _CLASSES, (comparison.batch,))
    net = case.network().train()
    eager = Contestant(EAGER, net, x, target)
    expected = eager.step()
    steps: dict[str, Step] = {}
    limits = dict.fromkeys((EAGER_BFLOAT16, BFLOAT16), _MAX_BFLOAT16_DIFFERENCE)
    for name in CONTESTANTS:
        if name not in {*args.only, EAGER, FASTRES}:
            continue
        try:
            contestant = Contestant(name, net, x, target)
            loss = contestant.step()
        except Exception as error:  # whatever a peer says: the others still run
            comparison.skipped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        off = max(_measure.relative_error(loss, expected), contestant.difference(eager))
        if name == EAGER_BFLOAT16:
            limits[BFLOAT16] = 2 * off
        if off > limits.get(name, _MAX_DIFFERENCE):
            comparison.skipped[name] = f"it differs from eager by {off:.1e}"
            continue
        steps[name] = contestant.step
        comparison.saved[name] = contestant.saved() / _MIB / comparison.batch
    comparison.milliseconds = _time(steps, args.rounds)
    return comparison


def _compare_layer(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The grouped 3x3: milliseconds of forward and backward, by implementation."""
    layer = TrainingLayer(GROUPED, args.batch or 8)
    layer.validate()
    calls = {name: layer.step(name) for name in TRAINING_IMPLEMENTATIONS}
    return {
        "forward": _time({name: step.forward for name, step in calls.items()}, args.rounds),
        "backward": _time({name: step.backward for name, step in calls.items()}, args.rounds),
    }


def _time(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    with Progress(rounds * len(calls)) as progress:
        times = _measure.medians(progress.follow(_measure.time_in_turn(calls, rounds)))
    return {name: seconds * 1e3 for name, seconds in times.items()}


def _write(
    comparisons: list[Comparison], layer: dict[str, dict[str, float]], args: argparse.Namespace
) -> None:
    tables = [_steps_table(comparisons), _saved_table(comparisons)]
    if layer:
        tables.append(_layer_table(layer))
    note = (
        f"Medians of {args.rounds} rounds in turn; {args.threads} threads; "
        f"fastres {__version__}, torch {torch.__version__}."
    )
    for header, rows in tables:
        print(f"{format_table(header, rows)}\n")
    print(note)
    if args.markdown is not None:
        parts = [format_markdown(header, rows) for header, rows in tables]
        args.markdown.write_text("\n\n".join([*parts, note]) + "\n")
    if args.json is not None:
        report = {"threads": args.threads, "rounds": args.rounds, "grouped 3x3": layer}
        report["steps"] = [asdict(comparison) for comparison in comparisons]
        args.json.write_text(json.dumps(report, indent=2) + "\n")


Table = tuple[list[str], list[list[str]]]


def _steps_table(comparisons: list[Comparison]) -> Table:
    names = _names(comparisons)

    def cells(comparison: Comparison) -> list[str]:
        times = comparison.milliseconds
        return [f"{times[name]:.0f}" if name in times else "-" for name in names]

    rows = [
        [_label(c), *cells(c), f"{c.speed_up():.2f}x" if FASTRES in c.milliseconds else "-"]
        for c in comparisons
    ]
    return ["step, ms", *names, "best peer / fastres"], rows


def _saved_table(comparisons: list[Comparison]) -> Table:
    names = _names(comparisons)

    def cell(comparison: Comparison, name: str) -> str:
        if name not in comparison.saved:
            return "-"
        mib = comparison.saved[name]
        return f"{mib:.1f} ({mib / comparison.saved[EAGER]:.2f})"

    rows = [[_label(c), *(cell(c, name) for name in names)] for c in comparisons]
    return ["kept for backward, MiB an image (of eager's)", *names], rows


def _layer_table(layer: dict[str, dict[str, float]]) -> Table:
    def ratio(times: dict[str, float]) -> str:
        eager = [times[name] for name in times if name != FASTRES]
        return f"{min(eager) / times[FASTRES]:.2f}x"

    rows = [
        [way, *(f"{times[name]:.1f}" for name in TRAINING_IMPLEMENTATIONS), ratio(times)]
        for way, times in layer.items()
    ]
    header = ["grouped 3x3 (4 of 128 channels, 56x56), ms", *TRAINING_IMPLEMENTATIONS]
    return [*header, "best eager / fastres"], rows


def _names(comparisons: list[Comparison]) -> list[str]:
    return [name for name in CONTESTANTS if any(name in c.milliseconds for c in comparisons)]


def _label(comparison: Comparison) -> str:
    return f"{comparison.name}, batch {comparison.batch}, {comparison.size} px"


if __name__ == "__main__":
    sys.exit(main())
