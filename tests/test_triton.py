"""The tests in triton_ops/, in Triton's interpreter where there is no GPU for them to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU, in this process"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="they run in this process"),
]

FOLDER = Path(__file__).parent / "triton_ops"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def run_file(file: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future]]:
    """A process for each file, as many at a time as there are cores; the longest first."""
    pytest.importorskip("triton")
    pool = ThreadPoolExecutor(os.cpu_count())
    files = sorted(FILES, key=lambda file: -(FOLDER / file).stat().st_size)
    yield {file: pool.submit(run_file, file) for file in files}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("file", FILES)
def test_interpreted(runs, file):
    ran = runs[file].result()
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout
