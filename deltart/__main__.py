"""`python -m deltart`."""

import sys

from deltart.cli import entry

sys.exit(entry())
