"""Fingerprints of data: what they depend on, and what they do not."""

import pytest

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runs.fingerprints import changed, check_resumed, data_fingerprints
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import toy_arguments, write_toy

IN_ORDER = "--eval_args={'order': 'TO', 'split': {'LS': 'valid_and_test'}}"


@pytest.fixture
def prints(tmp_path):
    """Fingerprints with these arguments, after what `change` makes of a file's lines."""
    write_toy(tmp_path)

    def of(*arguments, file="toy.inter", change=lambda lines: lines):
        path = tmp_path / "toy" / file
        head, *lines = before = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([head, *change(lines)]) + "\n", encoding="utf-8")
        config = load_config(toy_arguments(tmp_path, tmp_path / "run", *arguments))
        found = data_fingerprints(*load_parts(config))
        path.write_text("\n".join(before) + "\n", encoding="utf-8")
        return found

    return of


def backwards(lines):
    return lines[::-1]


def replaced(old, new):
    return lambda lines: [line.replace(old, new) for line in lines]


def test_the_same_data_have_the_same_fingerprints(prints):
    assert prints() == prints()
    assert all(len(value) == 16 for value in prints().values())


def test_other_rows_change_the_interactions(prints):
    before = prints()
    for change in (
        lambda lines: lines[1:],
        replaced("u3\ti12\t5", "u3\ti12\t4"),
        replaced("\t4\t9", "\t4\t99"),
    ):
        now = prints(change=change)
        assert "interactions" in changed(before, now)
    assert changed(before, prints(change=replaced("\t4\t9", "\t4\t99"))) == ("interactions",)


def test_the_order_of_rows_counts_where_it_decides_the_split(prints):
    """By chance it does; in order of time, which differs from row to row here, it does not."""
    assert changed(prints(), prints(change=backwards)) == ("split", "order")
    in_time = prints(IN_ORDER)
    assert changed(in_time, prints(IN_ORDER, change=backwards)) == ("order",)
    ties = prints(IN_ORDER, change=replaced("\t10", "\t9"))
    both = changed(ties, prints(IN_ORDER, change=lambda x: backwards(replaced("\t10", "\t9")(x))))
    assert both == ("split", "order")


def test_another_seed_is_another_split_of_the_same_rows(prints):
    assert changed(prints(), prints("--seed=3")) == ("split", "order")


def test_texts(prints):
    before = prints()
    assert changed(before, prints(file="toy.item", change=backwards)) == ()
    other = prints(file="toy.item", change=replaced("Red Night 0", "Red Nights 0"))
    assert changed(before, other) == ("item_texts",)


def test_low_ratings_that_are_negatives_count(prints):
    arguments = ["--val_interval={'rating': '[5,inf)'}", "--low_ratings=below_unrated"]
    arguments.append("--loss=mult2_dpo")

    def without_one(lines):
        row = next(n for n, line in enumerate(lines) if line.split("\t")[2] == "4")
        return lines[:row] + lines[row + 1 :]

    found = changed(prints(*arguments), prints(*arguments, change=without_one))
    assert found == ("interactions",)
    ignored = arguments[:1]
    assert changed(prints(*ignored), prints(*ignored, change=without_one)) == ()


def test_conversations(tmp_path):
    data = write_conversations(tmp_path)
    arguments = toy_arguments(data, tmp_path / "run", *DATA)
    path = data / "toy" / "toy.user"
    text = path.read_text(encoding="utf-8")
    head, *lines = text.splitlines()
    found = []
    for version in (lines, lines[::-1], [lines[0].replace("liked", "loved"), *lines[1:]]):
        path.write_text("\n".join([head, *version]) + "\n", encoding="utf-8")
        found.append(data_fingerprints(*load_parts(load_config(arguments))))
    assert changed(found[0], found[1]) == ()
    assert changed(found[0], found[2]) == ("conversations",)


def test_what_one_side_lacks_is_not_compared():
    assert changed({"split": "a", "prompt": "b"}, {"split": "a"}) == ()
    assert changed({}, {"split": "a"}) == ()
    check_resumed("R", {"split": "a"}, {"split": "a", "backbone": "x"})
    with pytest.raises(CheckpointError, match="--resume=R .*the split .*; the backbone"):
        check_resumed("R", {"split": "a", "backbone": "y"}, {"split": "b", "backbone": "x"})
