"""``python -m benchmarks.memory``: how much memory a network takes, each contestant in a process.

The figure is the peak of the resident memory during calls after the first, above what the process
had before it built the network: weights, packed weights, activations, and whatever a runtime keeps
for itself. Linux only.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from fastres._table import format_table
from fastres.cli.errors import CliError
from fastres.cli.models import load_model

from .arguments import DTYPES, add_only, network_parser
from .contestants import BUILDERS, EAGER, EAGER_CHANNELS_LAST, FASTRES, Call
from .shapes import IMAGE_SIZE

_CALLS = 3
_MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 where fastres takes more than either eager does."""
    args = _parser().parse_args(argv)
    if args.measure is not None:
        return _measure(args)
    rows, records, within = [], [], True
    for model in args.models:
        for batch in args.batch:
            peaks = {name: _peak_in_child(name, model, batch, args) for name in args.only}
            records.append({"model": model, "batch": batch, "peak_bytes": peaks})
            rows.append([model, str(batch), *(_show(peak) for peak in peaks.values())])
            eager = [peaks.get(name) for name in (EAGER, EAGER_CHANNELS_LAST)]
            known = [peak for peak in eager if peak is not None]
            ours = peaks.get(FASTRES)
            within &= ours is None or not known or ours <= max(known)
    header = ["model", "batch", *(f"{name}, MiB" for name in args.only)]
    print(format_table(header, rows, left=2))
    if args.json is not None:
        args.json.write_text(json.dumps({"memory": records}, indent=2) + "\n")
    return 0 if within else 1


def _parser() -> argparse.ArgumentParser:
    parser = network_parser("memory", __doc__, rounds=False)
    add_only(parser, [EAGER, EAGER_CHANNELS_LAST, FASTRES])
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    # The child process: one contestant, one model, one batch size.
    parser.add_argument("--measure", choices=BUILDERS, help=argparse.SUPPRESS)
    return parser


def _peak_in_child(name: str, model: str, batch: int, args: argparse.Namespace) -> int | None:
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", name, "--models", model]
    command += ["--batch", str(batch), "--threads", str(args.threads), "--dtype", args.dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"{model} batch {batch}: without {name}: {reason[0]}", file=sys.stderr)
        return None
    return int(result.stdout.split()[-1])


def _show(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / _MIB:.0f}"


def _measure(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    before = _memory("VmRSS")
    try:
        with torch.inference_mode():
            call = _build(args)
            call()
            gc.collect()
            _reset_peak()
            for _ in range(_CALLS):
                call()
    except CliError as error:
        print(error, file=sys.stderr)
        return 2
    print(_memory("VmHWM") - before)
    return 0


def _build(args: argparse.Namespace) -> Call:
    """The contestant; the model that it copied is gone when this returns."""
    with torch.inference_mode(False):
        model = load_model(args.models[0], "random").model.to(DTYPES[args.dtype])
    x = torch.randn(args.batch[0], 3, IMAGE_SIZE, IMAGE_SIZE, dtype=DTYPES[args.dtype])
    return BUILDERS[args.measure](model, x, args.threads)


def _reset_peak() -> None:
    """Forgets the peak so far, which was that of building the contestant."""
    # glibc hands freed memory back only when asked.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int:
    """A figure of this process in bytes: VmRSS is resident now, VmHWM was at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
