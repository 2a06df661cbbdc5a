"""The command line: ``fastres bench | verify | summary | train | env``."""

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from .. import _library
from .._version import __version__
from . import bench, summary, train, verify
from .errors import CliError

__all__ = ["build_parser", "main"]

#: What argparse exits with, too.
_USAGE_ERROR = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; None takes them from ``sys.argv``.

    Returns:
        The exit code: 0, 1 where what was checked did not hold, 2 where the arguments cannot be
        used, 130 where the user interrupted.
    """
    args = build_parser().parse_args(argv)
    threads_before = torch.get_num_threads()
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except CliError as error:
        message = " ".join(str(error).split())
        print(f"fastres {args.command}: error: {message}", file=sys.stderr)
        return _USAGE_ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone: Python's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        torch.set_num_threads(threads_before)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``fastres`` and of its commands."""
    parser = argparse.ArgumentParser(
        prog="fastres", description="Makes ResNets and ResNeXts faster, and shows that it does."
    )
    parser.add_argument("--version", action="version", version=f"fastres {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (bench, verify, summary, train):
        module.add_parser(commands)
    environment = commands.add_parser(
        "env",
        help="print what a bug report needs",
        description="Prints versions, instruction set, threads, the libraries that were found, "
        "and why a backend is missing.",
    )
    environment.set_defaults(run=_run_env)
    return parser


def _run_env(args: argparse.Namespace) -> int:
    print(_library.show_config())
    return 0
