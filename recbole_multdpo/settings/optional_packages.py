"""Find packages that some models or settings need only, without requiring them.

Those of RecBole's models are read from RecBole's source code, which imports most of them inside
functions: a run would fail only in the middle.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from recbole_multdpo.settings.recbole_code import model_file, parsed

# distribution names by module, where they differ
_DISTRIBUTIONS = {
    "community": "python-louvain",
    "faiss": "faiss-cpu",
    "kmeans_pytorch": "kmeans-pytorch",
    "liger_kernel": "liger-kernel",
    "torch_scatter": "torch-scatter",
}
# modules that a model imports only for some values of a setting
_ONLY_IF: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "community": lambda settings: settings["neigh_info_method"] == "louvain",
    "networkx": lambda settings: settings["neigh_info_method"] == "louvain",
    "kmeans_pytorch": lambda settings: settings["n_cate"] != 1,
}


def _modules(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@cache
def packages_of(model: str) -> frozenset[str]:
    """Top-level names of the packages that one of RecBole's models imports, anywhere in its file.

    They include the module-level imports of its neighbours, as RecBole imports all models of a kind
    at once.
    """
    file = model_file(model)
    found = set(_modules(ast.walk(parsed(file))))
    for neighbour in file.parent.glob("*.py"):
        found |= {*_modules(iter(parsed(neighbour).body))}
    top = {name.partition(".")[0] for name in found}
    return frozenset(top - sys.stdlib_module_names - {"recbole"})


def missing_packages(model: str, settings: Mapping[str, Any] | None) -> list[str]:
    """Sentence about the packages that a model of RecBole needs and lacks; [] if there are none.

    Args:
        model: name of one of RecBole's models.
        settings: settings of the run; None if not known yet, without packages that depend on them.
    """
    needed = [
        name
        for name in sorted(packages_of(model))
        if name not in _ONLY_IF or (settings is not None and _ONLY_IF[name](settings))
    ]
    return _sentence(f"model={model}", needed)


def missing_for_logging(settings: Mapping[str, Any]) -> list[str]:
    """Like `missing_packages`, for the settings that every model has."""
    return _sentence("log_wandb=True", ["wandb"]) if settings.get("log_wandb") else []


def missing_for_kernels(use_liger_kernel: bool) -> list[str]:
    """Like `missing_packages`, for Liger's kernels on a GPU."""
    needed = ["liger_kernel", "triton"] if use_liger_kernel else []
    return _sentence("use_liger_kernel=True", needed)


def _sentence(what: str, needed: list[str]) -> list[str]:
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    names = " and ".join(missing)
    is_not = "which is not" if len(missing) == 1 else "which are not"
    install = " ".join(_DISTRIBUTIONS.get(name, name) for name in missing)
    return [f"{what} needs {names}, {is_not} installed. Run: pip install {install}"]
