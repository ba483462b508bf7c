"""`python -m recbole_multdpo.compat`: versions found, and what was patched and why."""

import sys

from recbole_multdpo.compat.patches import main

sys.exit(main())
