"""What the commands that time whole networks, ``python -m benchmarks.X``, ask for alike."""

import argparse

from fastres.cli.arguments import output_file, positive_int

from .shapes import DEFAULT_MODELS


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
