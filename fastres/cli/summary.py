"""``fastres summary MODEL``: what a network is made of, layer by layer."""

import argparse
import json

from ..report.summary import summarize
from .arguments import input_shape, output_file, picture_file
from .errors import CliError
from .models import MODEL_HELP, load_model

__all__ = ["add_parser", "run"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the parser of ``fastres``."""
    parser = commands.add_parser(
        "summary",
        help="list a model's layers: shapes, parameters, operations, bytes, fusion",
        description="Shows a model's chain of resolutions, its residual blocks (basic or "
        "bottleneck, v1, v1.5 or v2, identity or convolution as shortcut), the memory of its "
        "activations in inference and training, and its layers in the order in which they run: "
        "output shape, parameters, multiply-accumulates, bytes moved, and what fastres.accelerate "
        "fuses each into.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--input",
        type=input_shape,
        default=(1, 3, 224, 224),
        metavar="SHAPE",
        help="batch first, such as 1x3x720x1280 (default: 1x3x224x224)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE")
    parser.add_argument("--plot", type=picture_file, metavar="FILE.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    target = load_model(args.model, weights="random")
    try:
        summary = summarize(target.model, args.input, target.name)
    except Exception as error:
        raise CliError(
            f"MODEL: {target.name} does not run on an input of {list(args.input)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    print(summary)
    if args.json is not None:
        args.json.write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
    if args.plot is not None:
        summary.plot(args.plot)
    return 0
