"""``python -m tinyddpm`` is the command ``tinyddpm``."""

import sys

from tinyddpm.cli import main

sys.exit(main())
