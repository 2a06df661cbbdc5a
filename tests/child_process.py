"""The environment of the processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path

import fastres


def environment(**more: str) -> dict[str, str]:
    """This process's, with the fastres under test, installed or not, and ``more``.

    Without what pytest-xdist tells its workers: a pytest that is started would take itself for one.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST_WORKER")}
    return {**inherited, "PYTHONPATH": str(Path(fastres.__file__).parent.parent), **more}
