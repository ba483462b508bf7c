"""The command line as `python -m recbole_multdpo`."""

import sys

from recbole_multdpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
