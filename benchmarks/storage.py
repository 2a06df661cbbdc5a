"""``python -m benchmarks.storage``: what networks take in bfloat16 and float16, beside float32.

One process, in turn. Prints a table of medians and their ratios; ``--json`` writes a file.
``python -m benchmarks.memory --dtype bfloat16`` tells how much memory.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from itertools import product

import torch

from fastres import _measure
from fastres._progress import Progress
from fastres._table import format_table
from fastres.cli.errors import CliError
from fastres.cli.models import load_model

from .arguments import DTYPES, add_only, network_parser
from .contestants import BUILDERS, FASTRES, FREEZE, Call
from .shapes import IMAGE_SIZE


@dataclass
class Times:
    """Median milliseconds in each dtype."""

    model: str
    batch: int
    contestant: str
    milliseconds: dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        measured = [_measured(*case, args) for case in product(args.models, args.batch, args.only)]
    except CliError as error:
        print(f"benchmarks.storage: error: {error}", file=sys.stderr)
        return 2
    header = ["model", "batch", "", *(f"{name}, ms" for name in DTYPES)]
    rows = [[t.model, str(t.batch), t.contestant, *_cells(t.milliseconds)] for t in measured]
    print(format_table(header, rows, left=3))
    if args.json is not None:
        records = [asdict(times) for times in measured]
        args.json.write_text(json.dumps({"storage": records}, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = network_parser("storage", __doc__, rounds=True)
    add_only(parser, [FASTRES, FREEZE])
    return parser


@torch.inference_mode()
def _measured(model: str, batch: int, name: str, args: argparse.Namespace) -> Times:
    calls = {dtype: _call(model, batch, name, dtype, args.threads) for dtype in DTYPES}
    with Progress(args.rounds * len(calls)) as progress:
        times = _measure.medians(progress.follow(_measure.time_in_turn(calls, args.rounds)))
    return Times(model, batch, name, {dtype: times[dtype] * 1e3 for dtype in calls})


def _call(model: str, batch: int, name: str, dtype: str, threads: int) -> Call:
    with torch.inference_mode(False):
        network = load_model(model, "random").model.to(DTYPES[dtype])
    x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=DTYPES[dtype])
    return BUILDERS[name](network, x, threads)


def _cells(milliseconds: dict[str, float]) -> list[str]:
    whole, *others = milliseconds.values()
    return [f"{whole:.1f}", *(f"{ms:.1f} ({ms / whole:.2f})" for ms in others)]


if __name__ == "__main__":
    sys.exit(main())
