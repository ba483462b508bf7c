"""The folder that `backbone` names: one of the user's, or that of `smollm2`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from recbole_multdpo.errors import ConfigError

TINY, SMOLLM2 = "tiny", "smollm2"
HUB_SECONDS = 5.0  # for an answer of the hub
CACHE_VARIABLE = "RECBOLE_MULTDPO_CACHE"


def cache_root() -> Path:
    """The user's cache folder, shared by all runs."""
    default = Path.home() / ".cache" / "recbole_multdpo"
    return Path(os.environ.get(CACHE_VARIABLE) or default).expanduser()


def smollm2_folder() -> Path:
    """Default folder of `python -m recbole_multdpo.backbones smollm2`."""
    return cache_root() / SMOLLM2


def hub_answers() -> bool:
    """True if the Hugging Face hub can be reached.

    Its libraries repeat a request to a hub that cannot be for half a minute, and log every try.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception:  # of the library's present HTTP client, and of its offline mode
        return False
    return True


def check_hub(name: str) -> None:
    """Refuse a hub id that is not in the cache while the hub cannot be reached.

    Raises:
        ConfigError: it is not, or it is no hub id at all.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:
        raise ConfigError(not_on_hub(name, "is no name of the hub")) from None
    if not isinstance(cached, str) and not hub_answers():
        raise ConfigError(not_on_hub(name, "the hub cannot be reached"))


def not_on_hub(name: str, reason: str) -> str:
    """Message for a hub id that cannot be loaded: the reason and remedies."""
    near = difflib.get_close_matches(name.lower(), (TINY, SMOLLM2), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"backbone={name!r} is neither a local folder nor wholly in the Hugging Face cache "
        f"(HF_HOME), and {reason}.{hint} Download it where there is a network (hf download {name}),"
        f" give a local folder, or use --backbone={TINY}."
    )


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
