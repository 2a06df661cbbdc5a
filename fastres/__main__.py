"""``python -m fastres`` is ``fastres``."""

import sys

from .cli import main

sys.exit(main())
