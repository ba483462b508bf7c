"""The prompt of a run as text, kept in its folder: what was rendered once serves all that follows.

`prompt.json` holds the fixed texts and the token ids that they were read as. It is data: no chat
template is run again. A checksum tells an edited file from a written one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

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


class _Content(TypedDict):
    """What `prompt.json` must be like."""

    format: int
    text: _Text
    tokens: dict[str, Any]
    checksum: str


_Text.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
_CONTENT: TypeAdapter[_Content] = TypeAdapter(_Content)


@dataclass(frozen=True)
class StoredPrompt:
    """The fixed text of a run's prompts, and its tokens.

    Attributes:
        frame: the text.
        token_ids: `PromptBuilder.frame_ids` of it.
    """

    frame: PromptFrame
    token_ids: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of texts and tokens, 16 hexadecimal digits."""
        return _digest({"text": asdict(self.frame), "tokens": self.token_ids})

    def check_tokens(self, token_ids: Mapping[str, Any]) -> None:
        """Refuse a tokenizer that reads the text otherwise than the run's did.

        Args:
            token_ids: `PromptBuilder.frame_ids` of the frame, by the tokenizer at hand.

        Raises:
            CheckpointError: they are not those of the file.
        """
        if token_ids != self.token_ids:
            raise CheckpointError(
                f"the tokenizer reads the run's prompt ({PROMPT_FILE}) as other tokens than it did "
                "when the run began: was it replaced, or is it read by another version of "
                "transformers? Put the tokenizer of that time back, or start a new run."
            )


def write_prompt(folder: Path, prompt: StoredPrompt) -> None:
    """Write `prompt.json` of a run, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "text": asdict(prompt.frame),
        "tokens": prompt.token_ids,
        "checksum": prompt.fingerprint,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / PROMPT_FILE, text)


def read_prompt(folder: Path) -> StoredPrompt | None:
    """The prompt of a run; None where the run is of a version that kept none.

    Raises:
        CheckpointError: the file is damaged or was edited.
    """
    file = folder / PROMPT_FILE
    try:
        content = fitted(_CONTENT, read_json(file))
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']}, not {FORMAT}")
        prompt = StoredPrompt(PromptFrame(**content["text"]), content["tokens"])
        if prompt.fingerprint != content["checksum"]:
            raise ValueError("it is not what was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}, the prompt that the run was trained with, cannot be used ({error}). Put the "
            "file back as it was; without it the prompt is rendered anew, with a warning."
        ) from error
    return prompt


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
