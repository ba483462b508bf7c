"""RecBole 1.2.1 on the current numpy, pandas, scipy and torch: `compat.apply()`."""

from recbole_multdpo.compat.patches import InstallationError, Patch, apply

__all__ = ["InstallationError", "Patch", "apply"]
