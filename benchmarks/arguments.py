"""What the commands that time whole networks, ``python -m benchmarks.X``, ask for alike."""

import argparse
from collections.abc import Sequence

import torch

from fastres.cli.arguments import output_file, positive_int

from .contestants import BUILDERS
from .shapes import DEFAULT_MODELS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def network_parser(name: str, description: str | None, *, rounds: bool) -> argparse.ArgumentParser:
    """A parser with ``--models``, ``--batch``, ``--threads``, ``--json`` and perhaps ``--rounds``.

    Args:
        name: the module's, after ``benchmarks.``.
        description: its docstring.
        rounds: whether it times contestants in turn.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--models", nargs="+", default=DEFAULT_MODELS, metavar="MODEL")
    parser.add_argument("--batch", nargs="+", type=positive_int, default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=positive_int, default=2, help="(%(default)s)")
    if rounds:
        parser.add_argument("--rounds", type=positive_int, default=15, help="(%(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    return parser


def add_only(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Adds ``--only``: which contestants."""
    parser.add_argument(
        "--only",
        nargs="+",
        choices=BUILDERS,
        default=default,
        metavar="NAME",
        help=f"of {', '.join(BUILDERS)}",
    )
