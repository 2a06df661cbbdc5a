"""Makes pytest test the installed fastres, which has the native libraries.

`python -m pytest` puts the checkout first on sys.path, where its folder fastres/ would hide the
installed package. Last, it gives way to that; where nothing is installed, the checkout itself is
tested, after `python setup.py build_ext --inplace`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:] = [*(entry for entry in sys.path if Path(entry).resolve() != ROOT), str(ROOT)]
