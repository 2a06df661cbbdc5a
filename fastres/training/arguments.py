"""The arguments of ``fastres train``, which are those of ``examples/train.py``."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ..cli.arguments import positive_int
from ..cli.models import MODEL_HELP
from .networks import DEFAULT_NETWORK

__all__ = ["add_arguments", "settings_of"]

#: What may differ between a run and its continuation: where files are, and how fast it goes.
_FREE = {"command", "data", "device", "out", "resume", "run", "save_every", "tensorboard"}
_FREE |= {"threads", "workers", "reference"}

#: Between them PyTorch, in float32, draws from a Beta distribution as it should: below, 0.5 comes
#: instead of 0 or 1; far above, 0 instead of 0.5.
_LEAST_MIXUP, _MOST_MIXUP = 0.01, 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds every argument of the training script."""
    parser.add_argument(
        "--data",
        type=_folder,
        metavar="FOLDER",
        help="FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, or FOLDER/CLASS/*.jpg, of which "
        "a fifth is held out (default: scikit-learn's handwritten digits)",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_NETWORK,
        metavar="MODEL",
        help=f"{MODEL_HELP} when it is given the number of classes (default: a narrow ResNeXt-29)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/train"), metavar="FOLDER", help="(%(default)s)"
    )
    parser.add_argument(
        "--reference", action="store_true", help="train without fastres, to compare"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out where its last checkpoint is, if there is one",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=positive_int, default=10, help="(%(default)s)")
    recipe.add_argument(
        "--batch",
        type=positive_int,
        default=32,
        help="images in a step of one process (%(default)s)",
    )
    recipe.add_argument(
        "--size", type=positive_int, help="height and width of the images (224; digits: 32)"
    )
    recipe.add_argument(
        "--lr", type=_not_negative, default=0.05, help="after warm-up (%(default)s)"
    )
    recipe.add_argument("--momentum", type=_below_one, default=0.9, help="Nesterov's (%(default)s)")
    recipe.add_argument(
        "--weight-decay", type=_not_negative, default=1e-4, help="not on BatchNorm (%(default)s)"
    )
    recipe.add_argument(
        "--warmup-epochs", type=_not_negative, default=1, help="linear warm-up (%(default)s)"
    )
    recipe.add_argument(
        "--label-smoothing", type=_below_one, default=0.1, metavar="P", help="(%(default)s)"
    )
    recipe.add_argument(
        "--mixup", type=_mixup, default=0.1, metavar="ALPHA", help="0: none (%(default)s)"
    )
    recipe.add_argument(
        "--random-erasing", type=_below_one, default=0.1, metavar="P", help="(%(default)s)"
    )
    recipe.add_argument(
        "--crop-scale",
        type=_below_one,
        metavar="AREA",
        help="smallest part of the image that a random crop takes (0.25; digits: 0.7)",
    )
    recipe.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror half of the images (default: yes, but not digits)",
    )
    recipe.add_argument(
        "--ema",
        type=_below_one,
        default=0.999,
        metavar="DECAY",
        help="moving average of the weights, which is what is evaluated; 0: none (%(default)s)",
    )
    recipe.add_argument("--seed", type=_seed, default=0, help="(%(default)s)")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", default="auto", help="auto, cpu or cuda: auto takes a GPU if there is one"
    )
    machine.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bfloat16 autocast (default: on a GPU)",
    )
    machine.add_argument("--threads", type=positive_int, help="(default: torch's own choice)")
    machine.add_argument(
        "--workers", type=_natural, help="processes that load images (default: a half of the cores)"
    )
    machine.add_argument(
        "--save-every",
        type=_not_negative,
        default=300,
        metavar="SECONDS",
        help="between checkpoints within an epoch (%(default)s)",
    )
    machine.add_argument("--tensorboard", action="store_true", help="log for TensorBoard, too")


def settings_of(
    args: argparse.Namespace, processes: int, images: int, classes: Sequence[str]
) -> dict[str, object]:
    """What has to be the same when a run continues; ``images`` are those to train on."""
    settings = {name: value for name, value in vars(args).items() if name not in _FREE}
    more = {"processes": processes, "images": images, "classes": ", ".join(classes)}
    return {**settings, **more}


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 0")
    return int(text)


def _seed(text: str) -> int:
    """Seeds of epochs, steps and images are added to it, and PyTorch's have 64 bits."""
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer") from error
    if abs(value) >= 2**62:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at most 62 bits")
    return value


def _mixup(text: str) -> float:
    value = _not_negative(text)
    if value and not _LEAST_MIXUP <= value <= _MOST_MIXUP:
        expected = f"0 or a number from {_LEAST_MIXUP} to {_MOST_MIXUP}"
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of at least 0")
    return value


def _below_one(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0 to below 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from error
