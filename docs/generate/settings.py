"""Make the settings reference from the commented property files.

How they are read is in `recbole_multdpo/settings/reference.py`, as `--help=NAME` reads them too.
"""

from __future__ import annotations

import re
from pathlib import Path

from recbole_multdpo.settings.reference import Setting, acting_words, read_sections

PROPERTIES = Path(__file__).resolve().parents[2] / "properties"

INTRODUCTION = """\
# Settings

Made from the files in `properties/` by `python -m docs.generate`; do not edit it by hand.

Write a setting as `--key=value` on the command line, or as `key: value` in a YAML file given by
`--config_files="a.yaml b.yaml"`. The strongest is the command line, then your files (the last one
first), the protocol that `--protocol` names, `<dataset>.yaml` in the data set's folder, the data
set's file below, the model's, the overall one, and RecBole's defaults. `~` means none. A key that
does not exist, or a value that is not allowed, is an error that names what is. `--help` shows the
command line, and [Running](running.md) and the other how-to pages say what to set for what.

*acts* says in which part of a run a setting has an effect, and under which conditions, all of which
must hold. One without effect is refused on the command line and ignored in a file. What changes
speed, the machine or the logs only may change with `--resume`; the rest makes another run.

Every model also takes [RecBole's own settings](https://recbole.io/docs/user_guide/config_settings.html),
RecBole's models those of [their pages](https://recbole.io/docs/user_guide/model_intro.html).
"""


def settings_markdown() -> str:
    """The whole reference as Markdown."""
    parts = [INTRODUCTION]
    model = PROPERTIES / "model"
    parts += _document("Every model", PROPERTIES / "overall.yaml", introduce=False)
    parts += _document("LLMRec", model / "LLMRec.yaml")
    parts += _document("LLMRec with a backbone other than `tiny`", model / "LLMRec.pretrained.yaml")
    written = {"LLMRec", "LLMRec.pretrained"}
    for path in sorted(model.glob("*.yaml")):
        if path.stem not in written:
            parts += _document(path.stem, path)
    parts.append("## Protocols\n")
    for path in sorted((PROPERTIES / "protocol").glob("*.yaml")):
        parts += _document(path.stem, path, level=3)
    parts.append("## Data sets\n")
    for path in sorted((PROPERTIES / "dataset").glob("*.yaml")):
        parts += _document(path.stem, path, level=3)
    return "\n".join(parts)


def _document(title: str, path: Path, level: int = 2, introduce: bool = True) -> list[str]:
    introduction, sections = read_sections(path)
    name = path.relative_to(PROPERTIES.parent).as_posix()
    parts = [f"{'#' * level} {title}\n"]
    text = f"{_sentence(introduction)} " if introduce and introduction else ""
    parts.append(f"{text}From [`{name}`](../{name}).\n")
    for section in sections:
        if section.heading:
            parts.append(f"{'#' * (level + 1)} {section.heading}\n")
        parts.append(_table(section.settings, path.stem.partition(".")[0]))
    return parts


def _table(settings: list[Setting], model: str) -> str:
    rows = [
        f"| `{setting.key}` | {_code(setting.default)} | {_values(setting.values)} "
        f"| {_text(setting.meaning)} | {_text(acting_words(setting.key, model))} |"
        for setting in settings
    ]
    head = ["| setting | default | values | meaning | acts |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _code(value: str) -> str:
    return f"`{value}`".replace("|", "\\|") if value else ""


def _values(values: str) -> str:
    """Format choices as code, anything else as text."""
    words = values.replace(" ", "").split("|")
    if len(words) > 1:
        return " ".join(f"`{word}`" for word in words)
    return _text(values)


def _text(text: str) -> str:
    return re.sub(r"([|*~])", r"\\\1", text).replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
