"""`python -m recbole_multdpo.compat`: print installed versions and the patches with reasons."""

import sys

from recbole_multdpo.compat.patches import main

sys.exit(main())
