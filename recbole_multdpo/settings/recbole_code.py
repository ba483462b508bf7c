"""RecBole's models and metrics, and our own classical models, read from source code.

Importing RecBole imports torch, and all its models take seconds more. A mistyped name is answered
from the code, before.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from functools import cache
from pathlib import Path

from recbole_multdpo.errors import ConfigError

# model type by folder, for models that do not set `type` themselves
_TYPES = {
    "general_recommender": "GENERAL",
    "context_aware_recommender": "CONTEXT",
    "sequential_recommender": "SEQUENTIAL",
    "knowledge_aware_recommender": "KNOWLEDGE",
    "exlib_recommender": "DECISIONTREE",
}
_OWN = Path(__file__).parents[1] / "classical" / "general_recommender"
_TYPE = re.compile(r"^    type = ModelType\.(\w+)", re.MULTILINE)
_OF_BASE_METRICS = {"TopkMetric": "RANKING", "LossMetric": "VALUE"}


@cache
def recbole_folder() -> Path:
    """Folder of the installed RecBole.

    Raises:
        ConfigError: it is not installed.
    """
    found = importlib.util.find_spec("recbole")
    if found is None or found.origin is None:
        raise ConfigError("RecBole is not installed. Run: pip install --no-deps recbole==1.2.1")
    return Path(found.origin).parent


@cache
def _model_files() -> dict[str, Path]:
    """The file of every model."""
    files: dict[str, Path] = {}
    for file in [*recbole_folder().glob("model/*_recommender/*.py"), *_OWN.glob("*.py")]:
        source = file.read_text(encoding="utf-8")
        classes = re.findall(r"^class (\w+)\(", source, re.MULTILINE)
        files |= {name: file for name in classes if name.lower() == file.stem}
    return files


@cache
def recbole_models() -> frozenset[str]:
    """Names of RecBole's models, and of ours that are written like these."""
    return frozenset(_model_files())


def model_file(model: str) -> Path:
    """Source file of one of these models."""
    return _model_files()[model]


def is_own(model: str) -> bool:
    """True of a classical model of this package."""
    return model_file(model).parent == _OWN


@cache
def model_type(model: str) -> str:
    """Name of RecBole's type of one of its models, such as `GENERAL`.

    Raises:
        KeyError: there is no such model.
    """
    file = _model_files()[model]
    own = _TYPE.search(file.read_text(encoding="utf-8"))
    return own[1] if own else _TYPES[file.parent.name]


@cache
def metric_names(kind: str) -> frozenset[str]:
    """Lower-case names of RecBole's metrics of a `RANKING`, or of single scores (`VALUE`)."""
    names = set()
    for node in parsed(recbole_folder() / "evaluator/metrics.py").body:
        if isinstance(node, ast.ClassDef):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            own = re.search(r"metric_type = EvaluatorType\.(\w+)", ast.unparse(node))
            found = own[1] if own else _OF_BASE_METRICS.get(next(iter(bases), ""))
            if found == kind:
                names.add(node.name.lower())
    return frozenset(names)


def parsed(file: Path) -> ast.Module:
    """Syntax tree of one of RecBole's files, without Python's warnings about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(file.read_text(encoding="utf-8"))
