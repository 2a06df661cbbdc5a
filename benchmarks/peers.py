"""``python -m benchmarks.peers``: every way to run a network on the CPU, in one process, in turn.

Prints a table of medians; ``--markdown``, ``--json`` and ``--plot`` write files. Each contestant's
logits are compared with eager's before anything is timed. A peer that is not installed, or does not
take the network, is named and left out.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import distributions

import torch
from torch import Tensor, nn

from fastres import _measure, _plots
from fastres._progress import Progress
from fastres._table import format_markdown, format_table
from fastres._version import __version__
from fastres.cli.arguments import output_file, picture_file
from fastres.cli.errors import CliError
from fastres.cli.images import load_photos, photo_batch
from fastres.cli.models import load_model, make_ready

from .arguments import network_parser
from .contestants import BUILDERS, EAGER, EAGER_CHANNELS_LAST, FASTRES, Call

#: ONNX Runtime's threads spin after a run, and would tax whoever comes next.
_PAUSE_S = 0.05
#: A contestant whose logits differ from eager's by more than this computes something else.
_MAX_DIFFERENCE = 1e-4
_CALIBRATION_BATCH = 4


@dataclass
class Comparison:
    """Medians in milliseconds, differences from eager's logits, and who was left out and why."""

    model: str
    batch: int
    milliseconds: dict[str, float]
    differences: dict[str, float]
    skipped: dict[str, str]

    def ratio(self, name: str) -> float:
        """How many times as fast as eager channels_last."""
        return self.milliseconds[EAGER_CHANNELS_LAST] / self.milliseconds[name]


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; the exit code is 1 where fastres' logits differ from eager's."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    comparisons = []
    try:
        photos = load_photos(None)
        images = photo_batch(photos, max(*args.batch, _CALIBRATION_BATCH))
        for name in args.models:
            target = load_model(name, "random")
            make_ready(target, images[:_CALIBRATION_BATCH])
            for batch in args.batch:
                comparison = _compare(name, target.model, images[:batch], args)
                comparisons.append(comparison)
                for peer, reason in comparison.skipped.items():
                    print(f"{name} batch {batch}: without {peer}: {reason}", file=sys.stderr)
    except CliError as error:
        print(f"benchmarks.peers: error: {error}", file=sys.stderr)
        return 2
    _write(comparisons, args)
    return int(any(FASTRES in comparison.skipped for comparison in comparisons))


def _parser() -> argparse.ArgumentParser:
    parser = network_parser("peers", __doc__, rounds=True)
    parser.add_argument(
        "--only", nargs="+", choices=BUILDERS, metavar="NAME", help=f"of {', '.join(BUILDERS)}"
    )
    parser.add_argument("--markdown", type=output_file, metavar="FILE.md")
    parser.add_argument("--plot", type=picture_file, metavar="FILE.png")
    return parser


@torch.inference_mode()
def _compare(name: str, model: nn.Module, x: Tensor, args: argparse.Namespace) -> Comparison:
    chosen = set(args.only or BUILDERS) | {EAGER, EAGER_CHANNELS_LAST}
    expected = model(x)
    calls: dict[str, Call] = {}
    differences, skipped = {}, {}
    for peer, build in BUILDERS.items():
        if peer not in chosen:
            continue
        try:
            call = build(model, x, args.threads)
            difference = _measure.relative_error(call(), expected)
        except Exception as error:  # whatever a peer says: the others still run
            skipped[peer] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if difference > _MAX_DIFFERENCE:
            skipped[peer] = f"its logits differ from eager's by {difference:.1e}"
            continue
        calls[peer], differences[peer] = call, difference
    with Progress(args.rounds * len(calls)) as progress:
        timings = progress.follow(_measure.time_in_turn(calls, args.rounds, _PAUSE_S))
        times = _measure.medians(timings)
    milliseconds = {peer: seconds * 1e3 for peer, seconds in times.items()}
    return Comparison(name, len(x), milliseconds, differences, skipped)


def _write(comparisons: list[Comparison], args: argparse.Namespace) -> None:
    header, rows = _table(comparisons)
    note = (
        f"Median milliseconds of {args.rounds} rounds in turn, and the speed-up over "
        f"{EAGER_CHANNELS_LAST}; float32, 224x224, {args.threads} threads; {_versions()}."
    )
    print(f"{format_table(header, rows, left=2)}\n\n{note}")
    if args.markdown is not None:
        args.markdown.write_text(f"{format_markdown(header, rows, left=2)}\n\n{note}\n")
    if args.json is not None:
        report = {"threads": args.threads, "rounds": args.rounds, "versions": _versions()}
        report["comparisons"] = [asdict(comparison) for comparison in comparisons]
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot is not None:
        _plot(comparisons, args)


def _names(comparisons: list[Comparison]) -> list[str]:
    return [name for name in BUILDERS if any(name in c.milliseconds for c in comparisons)]


def _table(comparisons: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    names = _names(comparisons)

    def cell(comparison: Comparison, name: str) -> str:
        if name not in comparison.milliseconds:
            return "-"
        return f"{comparison.milliseconds[name]:.1f} ({comparison.ratio(name):.2f}x)"

    rows = [[c.model, str(c.batch), *(cell(c, name) for name in names)] for c in comparisons]
    return ["model", "batch", *names], rows


def _versions() -> str:
    installed = {package.metadata["Name"].lower(): package.version for package in distributions()}
    peers = [f"{name} {installed.get(name, '-')}" for name in ("onnxruntime", "openvino")]
    return ", ".join([f"fastres {__version__}", f"torch {torch.__version__}", *peers])


def _plot(comparisons: list[Comparison], args: argparse.Namespace) -> None:
    series = {
        name: [c.ratio(name) if name in c.milliseconds else None for c in comparisons]
        for name in _names(comparisons)
    }
    _plots.grouped_bars(
        args.plot,
        title=f"Speed-up over {EAGER_CHANNELS_LAST} ({args.threads} threads, float32, 224x224)",
        groups=[f"{comparison.model}\nbatch {comparison.batch}" for comparison in comparisons],
        series=series,
        labels={
            name: ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            for name, ratios in series.items()
        },
        note=f"median of {args.rounds} rounds, in turn in one process\n{_versions()}",
    )


if __name__ == "__main__":
    sys.exit(main())
