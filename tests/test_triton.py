"""The tests in triton_ops/, in Triton's interpreter where there is no GPU for them to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import child_process
import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU, in this process"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="they run in this process"),
]

FOLDER = Path(__file__).parent / "triton_ops"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file):
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)],
        env=child_process.environment(TRITON_INTERPRET="1", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    assert " passed" in ran.stdout
    assert " skipped" not in ran.stdout
