"""``python -m benchmarks.threads``: how much faster networks run on two threads than on one.

One process, in turn. Prints a table of medians and their ratio; ``--json`` writes a file.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import Tensor

from fastres import _measure
from fastres._progress import Progress
from fastres._table import format_table
from fastres.cli.errors import CliError
from fastres.cli.models import load_model

from .arguments import add_only, network_parser
from .contestants import BUILDERS, EAGER_CHANNELS_LAST, FASTRES, FREEZE, Call
from .shapes import IMAGE_SIZE


@dataclass
class Scaling:
    """Median milliseconds on one thread and on several."""

    model: str
    batch: int
    contestant: str
    one: float
    several: float


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    args = _parser().parse_args(argv)
    try:
        scalings = [_measured(*case, args) for case in product(args.models, args.batch, args.only)]
    except CliError as error:
        print(f"benchmarks.threads: error: {error}", file=sys.stderr)
        return 2
    header = ["model", "batch", "", "1 thread, ms", f"{args.threads} threads, ms", "ratio"]
    rows = []
    for s in scalings:
        figures = (f"{s.one:.1f}", f"{s.several:.1f}", f"{s.one / s.several:.2f}")
        rows.append([s.model, str(s.batch), s.contestant, *figures])
    print(format_table(header, rows, left=3))
    if args.json is not None:
        args.json.write_text(
            json.dumps({"threads": [asdict(s) for s in scalings]}, indent=2) + "\n"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = network_parser("threads", __doc__, rounds=True)
    add_only(parser, [EAGER_CHANNELS_LAST, FASTRES, FREEZE])
    return parser


@torch.inference_mode()
def _measured(model: str, batch: int, name: str, args: argparse.Namespace) -> Scaling:
    with torch.inference_mode(False):
        network = load_model(model, "random").model
    x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE)
    call = BUILDERS[name](network, x, args.threads)

    def on(threads: int) -> Call:
        def run() -> Tensor:
            torch.set_num_threads(threads)
            return call()

        return run

    calls = {str(threads): on(threads) for threads in (1, args.threads)}
    with Progress(args.rounds * len(calls)) as progress:
        times = _measure.medians(progress.follow(_measure.time_in_turn(calls, args.rounds)))
    one, several = (times[threads] * 1e3 for threads in calls)
    return Scaling(model, batch, name, one, several)


if __name__ == "__main__":
    sys.exit(main())
