"""How freely kernels may reorder arithmetic: one switch for the whole process."""

from __future__ import annotations

import os
from typing import Literal

Numerics = Literal["fast", "strict"]

_CHOICES = ("fast", "strict")


def _checked(name: str, argument: str) -> str:
    if name not in _CHOICES:
        raise ValueError(f"{argument} must be one of {', '.join(_CHOICES)}, got {name!r}")
    return name


class _State:
    numerics = _checked(os.environ.get("FASTRES_NUMERICS", "fast"), "FASTRES_NUMERICS")


def set_numerics(numerics: Numerics) -> None:
    """Chooses how dense 3x3 convolutions with stride 1 are computed from the next call on.

    Args:
        numerics: "fast" uses Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308). Its
            rounding errors are up to about twice those of a direct convolution, and it makes NaN of
            infinities, which it subtracts from each other. "strict" convolves directly. Models that
            were frozen keep what they were frozen with. ``FASTRES_NUMERICS`` sets the value at
            import.

    Raises:
        ValueError: another value.
    """
    _State.numerics = _checked(numerics, "numerics")


def get_numerics() -> str:
    """Returns "fast" or "strict"."""
    return _State.numerics
