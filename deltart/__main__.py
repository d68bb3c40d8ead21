"""`python -m deltart`."""

import sys

from deltart.cli import main

sys.exit(main())
