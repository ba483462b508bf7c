"""Candidate lists from a file: forms, ids, and lists that measure nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.candidate_lists import CandidateLists, read_pairs
from recbole_multdpo.data.candidates import ListedCandidatesLoader
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.errors import DataError
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from tests.data.test_candidates import candidates
from tests.data.test_times import arguments, shuffled_rows, write

Pairs = list[tuple[str, str]]
PAIRS = [("u1", "i1"), ("u2", "i3"), ("u1", "i2")]


def trec(pairs: Iterable[tuple[str, str]]) -> str:
    """A run of TREC with these pairs."""
    return "".join(f"{user} Q0 {item} {n} {-n / 3} a-tag\n" for n, (user, item) in enumerate(pairs))


def table(pairs: Iterable[tuple[str, str]], header: str = "user,item") -> str:
    """A table with these pairs."""
    separator = "\t" if "\t" in header else ","
    return "\n".join([header, *(separator.join(pair) for pair in pairs)]) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """A file with a text."""

    def written(text: str) -> Path:
        path = tmp_path / "lists"
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize(
    "text",
    [
        trec(PAIRS),
        trec(PAIRS).replace(" ", "\t"),
        table(PAIRS),
        "\ufeff" + table(PAIRS),
        table(PAIRS, "user_id:token\titem_id:token"),
        table(PAIRS, "UserID\tItemID"),
        "score,item,user\n1,i1,u1\n0.5,i3,u2\nx,i2,u1\n",
        'qid,docid\n"u1","i1"\n"u2","i3"\n"u1","i2"\n',
        table(PAIRS, "who,what"),
    ],
    ids=["trec", "tabs", "csv", "mark", "atomic", "tsv", "order", "quotes", "named"],
)
def test_forms(file: Callable[[str], Path], text: str) -> None:
    found = read_pairs(file(text), "who", "what")
    assert [*found.itertuples(index=False, name=None)] == PAIRS


def test_ids_stay_text(file: Callable[[str], Path]) -> None:
    pairs = [("007", "NA"), ("1.0", "nan")]
    for text in (trec(pairs), table(pairs), table(pairs, "user\titem")):
        assert [*read_pairs(file(text)).itertuples(index=False, name=None)] == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no column user_id or user"),
        ("a,b\n1,2\n", "its first line, 'a, b', names no column user_id or user"),
        ("user,title\n1,2\n", "names no column item_id or item"),
        ('[{"itemList": ["Alien"]}]', "names no column"),
        (table([]), "it has no rows"),
        ("user,item\nu1,\n", "no user or no item"),
        (trec(PAIRS).replace("i3", "The Thing"), "Expected 6 fields in line 2, saw 7"),
        (trec([PAIRS[0]]).replace(" 0 ", " first "), "the column 'rank' must hold numbers"),
        (trec(PAIRS) + "u3 Q0\n", "no user or no item"),
        (table([*PAIRS, PAIRS[0]]), "1 rows repeat a pair, user u1 item i1"),
    ],
)
def test_other_files_are_refused(file: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(file(text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read .* Set --candidate_lists to a run of TREC"):
        read_pairs(tmp_path / "none")


# ---- lists of a data set ----


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 users with 11 of 30 items each, in parts of eight, one and two rows."""
    return write(tmp_path_factory.mktemp("data"), shuffled_rows())


def held_out() -> dict[str, list[str]]:
    """Every user's test items, by token."""
    by_user: dict[str, list[str]] = {}
    for user, item, _ in sorted(shuffled_rows(), key=lambda row: float(row[2])):
        by_user.setdefault(user, []).append(item)
    return {user: items[10:] for user, items in by_user.items()}


def lists(n_items: int = 6) -> Pairs:
    """Lists of the first items of the catalogue, known ones too, with the user's last item."""
    items = sorted({item for _, item, _ in shuffled_rows()})
    return [
        (user, item)
        for user, (target,) in held_out().items()
        for item in [target, *(each for each in items if each != target)][:n_items]
    ]


def loader(data_path: Path, model: str, path: Path):  # type: ignore[no-untyped-def]
    """The test loader of a model."""
    time = "--eval_args={'order': 'TO'}"
    own = [f"--candidate_lists={path}", "--topk=[2, 5]", "--valid_metric=NDCG@5"]
    given = [text for text in arguments(data_path, model, time) if "--topk" not in text]
    config = load_config([text for text in given if "--valid_metric" not in text] + own)
    dataset, parts = load_parts(config)
    if model == "LLMRec":
        return evaluation_loaders(config, dataset, parts)[2]
    return prepare_classical(config, dataset, parts).test_data


@pytest.mark.parametrize("model", ["EASE", "SASRec", "BPR", "LLMRec"])
def test_every_model_ranks_the_list(
    data_path: Path, file: Callable[[str], Path], model: str
) -> None:
    pairs = lists()
    missing = pairs.pop(0)  # a list without its test item
    others = [*pairs, (missing[0], "i9")] if (missing[0], "i9") not in pairs else pairs
    found = loader(data_path, model, file(trec(others)))
    assert isinstance(found, ListedCandidatesLoader)
    by_user: dict[str, set[str]] = {}
    for user, item in others:
        by_user.setdefault(user, set()).add(item)
    ranked = {}
    for batch, rows, positive_rows, positive_items in found:
        part = found._dataset
        for row in range(int(rows.max()) + 1):
            user = part.id2token("user_id", int(batch["user_id"][rows == row][0]))
            items = part.id2token("item_id", batch["item_id"][rows == row].numpy())
            answers = part.id2token("item_id", positive_items[positive_rows == row].numpy())
            assert [*answers] == held_out()[user]  # those outside of the list count as well
            assert len(items) == len(set(items))
            ranked[user] = set(items)
    assert ranked == by_user
    assert found.lists.n_with_target == len(by_user) - 1


def test_the_fingerprint_is_of_the_pairs(data_path: Path, file: Callable[[str], Path]) -> None:
    def fingerprint(pairs: Pairs, form: Callable[[Pairs], str]) -> str:
        found: CandidateLists = loader(data_path, "EASE", file(form(pairs))).lists
        return found.fingerprint

    one = fingerprint(lists(), trec)
    assert one == fingerprint(lists()[::-1], table)
    assert one != fingerprint(lists(7), trec)


def test_unknown_ids_are_counted_and_named(data_path: Path, file: Callable[[str], Path]) -> None:
    strange = [*lists(), *((lists()[0][0], f"x{n}") for n in range(7))]
    with pytest.raises(DataError, match=r"7 items in 7 rows are not .*: x0, x1, x2, x3, x4\. "):
        loader(data_path, "EASE", file(table(strange)))
    with pytest.raises(DataError, match=r"1 users in 2 rows are not .*: nobody\. "):
        both = [("nobody", lists()[0][1]), ("nobody", lists()[1][1])]
        loader(data_path, "EASE", file(table([*lists(), *both])))
    with pytest.raises(DataError, match=r"1 items in 1 rows .*: \[PAD\]"):
        loader(data_path, "EASE", file(table([*lists(), (lists()[0][0], "[PAD]")])))


def test_lists_that_measure_nothing(
    data_path: Path, file: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    first = lists()[0][0]
    without = [pair for pair in lists() if pair[0] != first]
    with pytest.raises(DataError, match=rf"1 of 20 tested users have no list, {first}\. "):
        loader(data_path, "EASE", file(table(without)))
    short = [pair for n, pair in enumerate(lists()) if n not in (0, 1)]
    with pytest.raises(DataError, match=r"1 lists are shorter .* cut-off, 5, .* at most 4"):
        loader(data_path, "EASE", file(table(short)))
    none = [pair for n, pair in enumerate(lists()) if n % 6]
    with pytest.raises(DataError, match="no list has a test item"):
        loader(data_path, "EASE", file(table(none)))
    with caplog.at_level(logging.INFO):
        loader(data_path, "EASE", file(table(lists(5))))
    assert "5 candidates of each user" in caplog.text and "at 5, the length" in caplog.text


def test_twenty_in_total_are_the_target_and_nineteen_others(data_path: Path) -> None:
    """The candidates of S-DPO and LLaRA without a file: leave-one-out with mode total20."""
    one_out = "{'split': {'LS': 'valid_and_test'}, 'order': 'TO', 'mode': 'total15'}"
    config = load_config(arguments(data_path, "EASE", f"--eval_args={one_out}"))
    dataset, parts = load_parts(config)
    found = candidates(prepare_classical(config, dataset, parts).test_data)
    assert {(len(own), len(set(items))) for own, items in found.values()} == {(1, 15)}
