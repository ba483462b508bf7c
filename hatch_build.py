"""The package's long description and addresses, made when it is built.

Relative links of README.md lead nowhere on PyPI. They become absolute by the variable
`REPOSITORY_URL`, which the workflow of releases sets; without it their text stays.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class AddressHook(MetadataHookInterface):
    """Fills in `readme` and `urls` of pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the two dynamic fields to `metadata`."""
        root = Path(self.root)
        addresses = runpy.run_path(str(root / "docs" / "generate" / "addresses.py"))
        repository = addresses["repository_url"]()
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": addresses["absolute_links"](text, repository),
        }
        metadata["urls"] = addresses["project_urls"](repository)
