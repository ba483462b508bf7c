"""Set-wise preference alignment of language-model recommenders, on top of RecBole.

Importing the package is light: RecBole, torch and transformers are loaded by the modules that
need them, RecBole always through `recbole_multdpo.compat.apply`.

`python -m recbole_multdpo...` puts the working directory before the standard library, so that a
`torch.py` in a run folder of somebody else would be imported there. It is taken away again.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False):
    if sys.path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]

from recbole_multdpo.compat import apply, import_hook  # noqa: E402

if TYPE_CHECKING:
    from recbole_multdpo.trained.recommender import Recommender as Recommender
    from recbole_multdpo.trained.result import ComparisonResult as ComparisonResult
    from recbole_multdpo.trained.result import RunResult as RunResult
    from recbole_multdpo.trained.start import run as run

__version__ = "0.2.0"
_MODULES = {
    "ComparisonResult": "recbole_multdpo.trained.result",
    "Recommender": "recbole_multdpo.trained.recommender",
    "RunResult": "recbole_multdpo.trained.result",
    "run": "recbole_multdpo.trained.start",
}
import_hook.watch(apply)


def __getattr__(name: str) -> object:
    """`run`, its results and `Recommender`, imported when one is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
