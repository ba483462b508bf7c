"""The prompt frame of a run, stored in its folder as `prompt.json`.

The file holds the fixed texts and their token ids, so the chat template is rendered once per run.
A checksum detects edits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from recbole_multdpo.data.prompt import PromptFrame
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.runtime.reading import fitted, read_json

PROMPT_FILE = "prompt.json"
FORMAT = 1


class _Text(TypedDict):
    head: str
    separator: str
    tail: str
    item_prefix: str
    speakers: dict[str, str]
    disliked: NotRequired[str]


class _Content(TypedDict):
    """Schema of `prompt.json`."""

    format: int
    text: _Text
    tokens: dict[str, Any]
    checksum: str


_Text.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
_CONTENT: TypeAdapter[_Content] = TypeAdapter(_Content)


@dataclass(frozen=True)
class StoredPrompt:
    """The fixed text of a run's prompts and its token ids.

    Attributes:
        frame: the fixed text.
        token_ids: `PromptBuilder.frame_ids` of the frame.
    """

    frame: PromptFrame
    token_ids: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of texts and tokens, 16 hexadecimal digits."""
        return _digest({"text": self.frame.content(), "tokens": self.token_ids})

    def check_tokens(self, token_ids: Mapping[str, Any]) -> None:
        """Refuse a tokenizer that encodes the frame differently.

        Args:
            token_ids: `PromptBuilder.frame_ids` of the current tokenizer.

        Raises:
            CheckpointError: they differ from the stored ids.
        """
        if token_ids != self.token_ids:
            raise CheckpointError(
                f"the tokenizer encodes the run's prompt ({PROMPT_FILE}) differently than when the "
                "run began: was it replaced, or does another version of transformers load it? "
                "Restore the tokenizer, or start a new run."
            )


def write_prompt(folder: Path, prompt: StoredPrompt) -> None:
    """Write `prompt.json` of a run atomically.

    Raises:
        OSError: the folder cannot be written to.
    """
    content = {
        "format": FORMAT,
        "text": prompt.frame.content(),
        "tokens": prompt.token_ids,
        "checksum": prompt.fingerprint,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / PROMPT_FILE, text)


def read_prompt(folder: Path) -> StoredPrompt | None:
    """Read the prompt of a run; None if the run is from a version that did not store it.

    Raises:
        CheckpointError: the file is damaged or was edited.
    """
    file = folder / PROMPT_FILE
    try:
        content = fitted(_CONTENT, read_json(file))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        prompt = StoredPrompt(PromptFrame(**content["text"]), content["tokens"])
        if prompt.fingerprint != content["checksum"]:
            raise ValueError("its checksum does not match")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}, the prompt that the run was trained with, cannot be used ({error}). Restore "
            "the file; if it is missing, the prompt is rendered again, with a warning."
        ) from error
    return prompt


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
