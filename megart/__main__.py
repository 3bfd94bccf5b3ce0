"""`python -m megart`."""

import sys

from megart.cli import main

if __name__ == "__main__":
    sys.exit(main())
