"""Set-wise preference alignment of language-model recommenders, on top of RecBole.

Importing the package is light: RecBole, torch and transformers are loaded by the modules that
need them, RecBole always through `recbole_multdpo.compat.apply`.

`python -m recbole_multdpo...` puts the working directory before the standard library, so that a
`torch.py` in a run folder of somebody else would be imported there. It is taken away again.
"""

import sys
from pathlib import Path

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False):
    if sys.path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]

from recbole_multdpo.compat import apply, import_hook  # noqa: E402

__version__ = "0.2.0"
import_hook.watch(apply)


def __getattr__(name: str) -> object:
    """`Recommender`, imported when it is first asked for."""
    if name == "Recommender":
        from recbole_multdpo.trained.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
