"""Import hook that applies `compat` when a program imports RecBole after this package.

RecBole 1.2.1 does not start with current packages and does not know our models. If it was imported
before this package, the patches are applied at once.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


class _FirstImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder and loader of the package `recbole` that applies `compat` after importing it."""

    apply: Callable[[], object]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "recbole":
            return None
        forget()
        found = importlib.util.find_spec(fullname)
        watch(self.apply)  # finding the package does not import it yet
        if found is not None and found.loader is not None:
            self._loader, found.loader = found.loader, self
        return found

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        forget()
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self.apply()


_first_import = _FirstImport()


def watch(apply: Callable[[], object]) -> None:
    """Call `apply` at the first import of RecBole, or now if it is imported already."""
    _first_import.apply = apply
    if "recbole" in sys.modules:
        apply()
    elif _first_import not in sys.meta_path:
        sys.meta_path.insert(0, _first_import)


def forget() -> None:
    """Remove the hook."""
    if _first_import in sys.meta_path:
        sys.meta_path.remove(_first_import)
