"""Hand-made files whose users are pieces of one person's list are refused."""

import logging
import random

import pytest

from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.quick_start import run

pytestmark = pytest.mark.integration

COMMON = ["--device=cpu", "--show_progress=False", "--topk=[10]", "--valid_metric=NDCG@10"]
LAST = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"


def write(folder, lists, part="", n_items=300):
    """Users' lists as an .inter file, shuffled, and all items."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{part}{user}\ti{item}\t{place}"
        for user, items in enumerate(lists)
        for place, item in enumerate(items)
    ]
    random.Random(0).shuffle(rows)
    header = "user_id:token\titem_id:token\ttimestamp:float"
    name = f"books.{part}.inter" if part else "books.inter"
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    items = [f"i{item}\tBook {item}" for item in range(n_items)]
    (folder / "books.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *items]) + "\n")


def people(n=60, length=14, seed=0):
    """Lists of strangers who have nothing in common."""
    rng = random.Random(seed)
    return [rng.sample(range(300), length) for _ in range(n)]


def windows(lists, size=6, step=2):
    return [one[a : a + size] for one in lists for a in range(0, len(one) - size + 1, step)]


def start(tmp_path, *extra, model="Pop"):
    arguments = ["--dataset=books", f"--data_path={tmp_path}", f"--run_dir={tmp_path / 'run'}"]
    columns = "--load_col={'inter': ['user_id', 'item_id', 'timestamp'], 'item': ['item_id']}"
    return run([f"--model={model}", *COMMON, *arguments, columns, *extra])


@pytest.mark.parametrize(
    "rows",
    [windows, lambda lists: [one[:n] for one in lists for n in range(4, 15)]],
    ids=["windows", "prefixes"],
)
@pytest.mark.parametrize("split", [LAST, "--eval_args={'split': {'RS': [0.8, 0.1, 0.1]}}"])
def test_pieces_of_one_person_are_refused_with_the_counts(tmp_path, rows, split):
    pieces = rows(people())
    write(tmp_path / "books", pieces)
    with pytest.raises(DataError) as caught:
        start(tmp_path, split)
    said = str(caught.value)
    assert f"{len(pieces)} of {len(pieces)} users look like pieces of one person's list" in said
    assert "test answers are in the training list" in said and "--linked_users=keep" in said
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_setting_that_is_named_keeps_them_with_a_warning(tmp_path, caplog):
    pieces = windows(people())
    write(tmp_path / "books", pieces)
    with caplog.at_level(logging.WARNING):
        result = start(tmp_path, LAST, "--linked_users=keep", model="ItemKNN")
    assert "look like pieces of one person's list" in caplog.text
    assert result["test_result"]["recall@10"] > 0.5  # remembered; chance is 0.03
    with pytest.raises(ConfigError, match=r"linked_users.*'refuse' or 'keep'"):
        start(tmp_path, "--linked_users=no")


@pytest.mark.parametrize("by_person", [False, True])
def test_windows_in_ready_parts(tmp_path, by_person):
    lists = people()
    parts = {"train": [], "valid": [], "test": []}
    for number, piece in enumerate(windows(lists)):
        person = number // 5
        part = ("train", "train", "train", "valid", "test")[person % 5 if by_person else number % 5]
        parts[part].append(piece)
    for part, pieces in parts.items():
        write(tmp_path / "books", pieces, part)
    # the titles of a test window, all of them answers, are in a training window of the person
    if by_person:
        start(tmp_path, "--benchmark_filename=[train, valid, test]")
        return
    with pytest.raises(DataError, match="test answers are in the training list"):
        start(tmp_path, "--benchmark_filename=[train, valid, test]")


@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_people_are_not_refused(tmp_path, caplog, model):
    series = [list(range(290, 297))]  # read by everybody, by many of them at the end
    rng = random.Random(1)
    lists = []
    for one in people():
        at = rng.randrange(len(one) + 1)
        lists.append(
            [i for i in one[:at] if i < 290] + series[0] + [i for i in one[at:] if i < 290]
        )
    write(tmp_path / "books", lists)
    extra = ["--epochs=1", "--train_neg_sample_args=~"] if model == "SASRec" else []
    with caplog.at_level(logging.WARNING):
        start(tmp_path, LAST, *extra, model=model)
    assert "pieces of one" not in caplog.text
