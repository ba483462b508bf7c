"""Documents made from code: they are current, and what they are made from is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from docs.generate.__main__ import DOCUMENTS, outdated
from docs.generate.data_flow import ARROWS, BOX_HEIGHT, BOX_WIDTH, BOXES, data_flow_svg
from docs.generate.settings import PROPERTIES, read_sections, settings_markdown
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.recbole import ADDED_KEYS
from recbole_multdpo.settings.text import parse_literal, read_settings_file

# published test sets are not settings
FILES = sorted(f for f in PROPERTIES.rglob("*.yaml") if f.parent.name != "test_sets")


def settings_of(path: Path):  # type: ignore[no-untyped-def]
    return [setting for section in read_sections(path)[1] for setting in section.settings]


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The keys as the reference has them: parts of a mapping on lines of their own get a dot."""
    result = {}
    for key, value in settings.items():
        result[key] = value
        if isinstance(value, dict):
            result |= {f"{key}.{part}": inner for part, inner in value.items()}
    return result


def test_written_documents_are_current() -> None:
    stale = [path.name for path in outdated()]
    assert not stale, f"{stale} are not current: run python -m docs.generate"


def test_a_change_of_a_property_file_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = dict.fromkeys(DOCUMENTS, lambda: settings_markdown() + "one more line\n")
    monkeypatch.setattr("docs.generate.__main__.DOCUMENTS", changed)
    assert outdated() == list(DOCUMENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_is_read_with_its_default(path: Path) -> None:
    expected = flat(read_settings_file(path))
    read = {setting.key: setting for setting in settings_of(path)}
    assert set(read_settings_file(path)) <= read.keys() <= expected.keys()
    for key, setting in read.items():
        if setting.default:
            value = expected[key]
            assert parse_literal(setting.default) == value or setting.default.strip("\"'") == value


@pytest.mark.parametrize("name", ["overall.yaml", "model/LLMRec.yaml"])
def test_every_key_says_what_is_allowed_and_what_it_means(name: str) -> None:
    for setting in settings_of(PROPERTIES / name):
        assert setting.values and setting.meaning, setting.key


def test_choices_in_comments_are_those_of_the_code() -> None:
    """`(a|b|c)` in a comment against the field's `Literal`."""
    documented = {s.key: s.values for s in settings_of(PROPERTIES / "model" / "LLMRec.yaml")}
    n_checked = 0
    for key, field in LLMRecSettings.model_fields.items():
        choices = get_args(field.annotation)
        named = "|" in documented[key]  # transformers' schedules are too many to list
        if named and choices and all(isinstance(choice, str) for choice in choices):
            assert sorted(documented[key].replace(" ", "").split("|")) == sorted(choices), key
            n_checked += 1
    assert n_checked > 10


def test_reference_names_every_setting_of_ours() -> None:
    text = settings_markdown()
    for key in {*LLMRecSettings.model_fields, *ADDED_KEYS}:
        assert f"| `{key}` |" in text, key


def test_a_line_that_is_no_setting_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("key: 1  # (int) fine\n- an entry of a list\n")
    with pytest.raises(ValueError, match="an entry"):
        read_sections(file)


def test_picture_names_modules_that_exist_and_boxes_do_not_touch() -> None:
    package = PROPERTIES.parent / "recbole_multdpo"
    for box in BOXES.values():
        assert (package / box.module).exists(), box
    places = [(box.left, box.top) for box in BOXES.values()]
    for number, (x, y) in enumerate(places):
        for other_x, other_y in places[number + 1 :]:
            assert abs(x - other_x) >= BOX_WIDTH or abs(y - other_y) >= BOX_HEIGHT
    connected = {name for arrow in ARROWS for name in (arrow.start, arrow.end)}
    assert connected == BOXES.keys()
    root = ElementTree.fromstring(data_flow_svg())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {box.title for box in BOXES.values()} <= texts
