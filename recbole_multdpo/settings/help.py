"""Texts of `--help=TOPIC`: losses, models, data, protocols, a setting; torch is not imported."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from recbole_multdpo.errors import ConfigError, doc_page, with_doc_pages
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings.conditions import ZERO_SHOT
from recbole_multdpo.settings.known_data import (
    described_data_sets,
    present_data_sets,
    undescribed_data_sets,
)
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.layers import (
    RECBOLE_DATA_PATH,
    model_settings,
    properties_folder,
    protocol_names,
    protocol_settings,
    shared_settings,
    valid_keys,
)
from recbole_multdpo.settings.other_names import nearest_setting
from recbole_multdpo.settings.recbole_code import model_type, recbole_models
from recbole_multdpo.settings.reference import Setting, acting_words, read_sections

WIDTH = 100
TOPICS = ("losses", "models", "datasets", "protocols", "settings")


def explained(topic: str) -> str:
    """The text about a topic.

    Args:
        topic: one of `TOPICS`, or the name of a setting or loss.

    Raises:
        ConfigError: there is no such topic; with the nearest names.
    """
    texts = {
        "losses": _losses,
        "models": _models,
        "datasets": _data_sets,
        "protocols": _protocols,
        "protocol": lambda: f"{explain_setting('protocol')}\n\n{_protocols()}",
        "settings": _settings,
    }
    if topic in texts:
        return with_doc_pages(texts[topic]())
    if topic in LOSSES:
        return _loss(topic)
    return with_doc_pages(explain_setting(topic))


def overview() -> str:
    """Names of losses, models and data sets, for `--help`."""
    there = present_data_sets(Path(RECBOLE_DATA_PATH))
    lines = [
        ("losses", [ZERO_SHOT, *LOSSES]),
        ("models", [*LANGUAGE_MODELS, f"and RecBole's {len(recbole_models())}"]),
        ("data sets", described_data_sets()),
        ("protocols", protocol_names()),
        (f"in {RECBOLE_DATA_PATH}/", there or ["none"]),
    ]
    return "\n".join(_item(name, ", ".join(names), 11) for name, names in lines)


def _losses() -> str:
    lines = [_item(ZERO_SHOT, "no loss: the backbone ranks as it is, and nothing is trained.", 13)]
    lines += [_item(name, f"{loss.summary} {_needs(name)}", 13) for name, loss in LOSSES.items()]
    return "\n".join(
        [f"Losses of LLMRec, --loss=NAME; their formulas: {doc_page('losses')}", "", *lines]
    )


def _needs(name: str) -> str:
    loss = LOSSES[name]
    reference = "a reference" if loss.needs_reference else "no reference"
    levels = ", levels" if loss.uses_levels else ""
    positives = f"{loss.positives} positive{'s' if loss.positives == 'many' else ''}"
    negatives = {"none": "no negatives", "one": "one negative", "many": "many negatives"}
    return f"({positives}, {negatives[loss.negatives]}, {reference}{levels})"


def _loss(name: str) -> str:
    options = LOSSES[name].options
    lines = [f"--loss={name}: {LOSSES[name].summary} {_needs(name)}"]
    if options:
        lines.append(f"Options: {', '.join(options)} (--help=OPTION explains one).")
    return "\n".join(_wrapped(line) for line in lines)


def _models() -> str:
    folder = properties_folder() / "model"
    lines = ["Language models of this package, --model=NAME", ""]
    for name in LANGUAGE_MODELS:
        introduction, _ = read_sections(folder / f"{name}.yaml")
        lines.append(_item(name, introduction.removeprefix(f"{name}: "), 9))
    lines += ["", "Models of RecBole (https://recbole.io/docs/user_guide/model_intro.html)", ""]
    by_type: dict[str, list[str]] = {}
    for name in sorted(recbole_models(), key=str.lower):
        by_type.setdefault(model_type(name).lower(), []).append(name)
    lines += [_item(kind, ", ".join(names), 14) for kind, names in sorted(by_type.items())]
    return "\n".join(lines)


def _data_sets() -> str:
    there = present_data_sets(Path(RECBOLE_DATA_PATH))
    described = described_data_sets()
    lines = [
        "Described here: columns, positives and split are set (ml-100k comes with RecBole)",
        "",
    ]
    for name in described:
        introduction, _ = read_sections(properties_folder() / "dataset" / f"{name}.yaml")
        lines.append(_item(name, _sentence(introduction), 19))
    lines += ["", _wrapped(f"Folders in {RECBOLE_DATA_PATH}/: {', '.join(there) or 'none'}"), ""]
    lines += ["RecBole downloads these too; name their text columns by --item_text_fields", ""]
    lines.append(_wrapped(", ".join(undescribed_data_sets()), "  "))
    lines += ["", "One of your own: python -m recbole_multdpo.data.convert --help"]
    return "\n".join(lines)


def _protocols() -> str:
    lines = ["Protocols, --protocol=NAME; a setting of your own wins and is named as a deviation"]
    for name in protocol_names():
        file = properties_folder() / "protocol" / f"{name}.yaml"
        introduction, _ = read_sections(file)
        values = ", ".join(f"{key}={value}" for key, value in protocol_settings(name).items())
        lines += ["", _item(name, introduction, 13), _wrapped(f"Sets {values}", " " * 16)]
    return "\n".join(lines)


def _settings() -> str:
    lines = ["Settings by file; --help=NAME explains one", ""]
    for file in _files():
        if "dataset" not in file.parts:
            _, sections = read_sections(file)
            names = [setting.key for part in sections for setting in part.settings]
            whole = [name for name in names if "." not in name]
            lines.append(_item(_title(file), ", ".join(whole), 9))
    others = ", ".join(sorted(shared_settings()))
    lines += ["", _wrapped(f"Every model also takes RecBole's: {others}")]
    return "\n".join(lines)


def explain_setting(name: str) -> str:
    """A setting's default, values, meaning and effect.

    Raises:
        ConfigError: there is no such setting; with the nearest names.
    """
    name = name.removeprefix("--")
    described = list(_described(name))
    lines = []
    if described:
        file, first = described[0]
        values = f" ({first.values})" if first.values else ""
        lines += [f"--{name}={first.default or '...'}{values}", _wrapped(first.meaning, "  ")]
        lines.append(_wrapped(f"Acts in: {acting_words(name, file.stem.partition('.')[0])}", "  "))
        others = [f"{each.default} in {_title(other)}" for other, each in described[1:]]
        if others:
            lines.append(_wrapped(f"Default: {first.default}; {', '.join(others)}", "  "))
    elif name in shared_settings():
        lines += [
            f"--{name}={shared_settings()[name]}",
            "  A setting of RecBole: https://recbole.io/docs/user_guide/config_settings.html",
        ]
    having = [f"{each} ({model_settings(each)[name]})" for each in _models_with(name)]
    if having and name not in shared_settings():
        if not lines:
            lines.append(f"--{name}=...")
        lines.append(_wrapped(f"Of RecBole's models, by default: {', '.join(having)}", "  "))
    if not lines:
        known = {key for model in LANGUAGE_MODELS for key in valid_keys(model)} | {*TOPICS, *LOSSES}
        known |= {key for model in recbole_models() for key in model_settings(model)}
        hint = nearest_setting(name, known) or ". Topics are " + ", ".join(TOPICS) + "."
        raise ConfigError(f"--help={name}: there is no such setting or topic{hint}")
    return "\n".join(lines)


def _models_with(name: str) -> list[str]:
    return [each for each in sorted(recbole_models()) if name in model_settings(each)]


def _files() -> list[Path]:
    folder = properties_folder()
    return [
        folder / "model/LLMRec.yaml",
        folder / "overall.yaml",
        *sorted(set((folder / "model").glob("*.yaml")) - {folder / "model/LLMRec.yaml"}),
        *sorted((folder / "dataset").glob("*.yaml")),
    ]


def _described(name: str) -> Iterable[tuple[Path, Setting]]:
    for file in _files():
        _, sections = read_sections(file)
        for section in sections:
            yield from ((file, each) for each in section.settings if each.key == name)


def _sentence(text: str) -> str:
    """The first sentence; `et al.` ends none."""
    return re.split(r"(?<=\.)(?<!al\.) ", text, maxsplit=1)[0].rstrip(".") + "."


def _title(file: Path) -> str:
    return {
        "overall": "every model",
        "LLMRec.pretrained": "LLMRec with another backbone than tiny",
    }.get(file.stem, file.stem)


def _item(name: str, text: str, width: int) -> str:
    """`  name   text`, the text in a column of its own."""
    indent = " " * (width + 3)
    head = f"  {name:<{width}} " if len(name) <= width else f"  {name}\n{indent}"
    return head + _wrapped(text, indent).strip()


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
