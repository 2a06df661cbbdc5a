"""``python -m fastres`` is ``fastres``."""

import sys

from .cli.main import main

sys.exit(main())
