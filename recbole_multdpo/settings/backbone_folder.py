"""The folder that `backbone` names: one of the user's, or that of `smollm2`."""

from __future__ import annotations

import os
from pathlib import Path

from recbole_multdpo.errors import ConfigError

TINY, SMOLLM2 = "tiny", "smollm2"
CACHE_VARIABLE = "RECBOLE_MULTDPO_CACHE"


def cache_root() -> Path:
    """The user's cache folder, shared by all runs."""
    default = Path.home() / ".cache" / "recbole_multdpo"
    return Path(os.environ.get(CACHE_VARIABLE) or default).expanduser()


def smollm2_folder() -> Path:
    """Default folder of `python -m recbole_multdpo.backbones smollm2`."""
    return cache_root() / SMOLLM2


def local_folder(name: str) -> Path | None:
    """Folder that `name` stands for, or None for a hub id.

    Raises:
        ConfigError: `name` is neither, or the folder of `smollm2` does not exist.
    """
    if name == SMOLLM2:
        folder = smollm2_folder()
        if not folder.is_dir():
            raise ConfigError(
                f"backbone='{SMOLLM2}' has not been unpacked yet (no folder {folder}). Run "
                f"`python -m recbole_multdpo.backbones {SMOLLM2}` once, or use --backbone={TINY}."
            )
        return folder
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        return path
    is_hub_id = name.strip() and not path.exists() and not name.startswith((".", "/", "~"))
    if is_hub_id and name.count("/") <= 1 and "\\" not in name:
        return None
    raise ConfigError(
        f"backbone={name!r} is not a folder. Give a Hugging Face folder (config.json, "
        f"model.safetensors, tokenizer.json), a hub id like 'owner/model', '{SMOLLM2}' or '{TINY}'."
    )
