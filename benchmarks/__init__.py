"""Benchmarks: ``pytest benchmarks``, ``python -m benchmarks.peers``; see benchmarks/README.md."""

import sys
from pathlib import Path

# `python -m` puts the checkout first on the path, where the folder fastres/ has no native library.
# Last, it gives way to the installed package.
_ROOT = Path(__file__).resolve().parent.parent
_others = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
sys.path[:] = [*_others, str(_ROOT)]
