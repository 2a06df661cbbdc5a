"""Makes pytest test the installed fastres, which has the native libraries, and on every core.

`python -m pytest` puts the checkout first on sys.path, where its folder fastres/ would hide the
installed package. Last, it gives way to that; where nothing is installed, the checkout itself is
tested, after `python setup.py build_ext --inplace`.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != ROOT), str(ROOT)]

#: What a worker takes when a wide network's gradients are tested in it.
WORKER_BYTES = 4 << 30


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """How many processes `-n auto` shares the tests among; pyproject.toml asks for it.

    None where that costs more than it saves: a worker takes seconds to start. And none for the
    benchmarks, which would time each other.
    """
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # pytest-xdist reads it
    paths = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    if any(path.is_relative_to(ROOT / "benchmarks") for path in paths):
        return 0
    if len(paths) == 1 and all(path.is_file() for path in paths):
        return 0
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    workers = min(cores, memory // WORKER_BYTES)
    return workers if workers > 1 else 0
