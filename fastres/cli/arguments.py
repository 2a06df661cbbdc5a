"""Types of command-line arguments that several commands share."""

import argparse
from pathlib import Path

__all__ = ["input_shape", "output_file", "picture_file", "positive_int"]

_PICTURE_SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


def positive_int(text: str) -> int:
    """An integer from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)


def input_shape(text: str) -> tuple[int, ...]:
    """A shape such as ``1x3x720x1280``, batch first."""
    parts = text.lower().split("x")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected positive sizes, batch first, such as 1x3x720x1280"
        )
    return tuple(map(int, parts))


def output_file(text: str) -> Path:
    """A file that can be written; refused before the work starts, not after it."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, expected a file")
    return path


def picture_file(text: str) -> Path:
    """An :func:`output_file` whose suffix names a format that matplotlib writes."""
    path = output_file(text)
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a name that ends in {', '.join(_PICTURE_SUFFIXES)}"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise argparse.ArgumentTypeError(
            "a plot needs matplotlib: pip install matplotlib, or fastres[bench]"
        ) from error
    return path
