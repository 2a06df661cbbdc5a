"""Progress of long work."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A bar on stderr, if tqdm is installed.

    Where stderr is no terminal, it shows only in work that takes long, and moves seldom.
    """

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        with suppress(ImportError):
            from tqdm import tqdm

            seen = sys.stderr.isatty()
            interval = 0.1 if seen else 10
            self._bar = tqdm(total=total, delay=interval, mininterval=interval, leave=not seen)

    def follow(self, timings: Iterable[tuple[str, float]]) -> Iterator[tuple[str, float]]:
        """Passes the timings on, a step of the bar for each."""
        for name, seconds in timings:
            if self._bar is not None:
                self._bar.set_description(name, refresh=False)
                self._bar.update()
            yield name, seconds

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
