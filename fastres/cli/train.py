"""``fastres train``: trains an image classifier; runs ``examples/train.py``."""

import argparse

from ..training.arguments import add_arguments
from .errors import CliError

__all__ = ["add_parser", "run"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the parser of ``fastres``."""
    parser = commands.add_parser(
        "train",
        help="train an image classifier on a folder of images",
        description="Trains a network on a folder of images, with one folder a class, and leaves "
        "a checkpoint, a table, curves and a confusion matrix. For several processes: torchrun "
        "--nproc-per-node N -m fastres train.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    try:
        from ..training.script import train
    except ImportError as error:
        raise CliError(f"training needs a package ({error}): pip install fastres[train]") from error
    train(args)
    return 0
