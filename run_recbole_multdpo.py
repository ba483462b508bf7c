"""Train and evaluate a recommender from a clone: python run_recbole_multdpo.py --help."""

import sys

from recbole_multdpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
