"""Sampled candidates are the same for every model; `totalN` is per user, `uniN` per positive."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.candidates import CandidateDraw, TotalCandidatesLoader
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.runtime import processes
from recbole_multdpo.settings.config import load_config
from tests.data.test_times import arguments, shuffled_rows, write

MODES = "--eval_args={'order': 'TO', 'mode': {'valid': 'total9', 'test': 'total12'}}"
Candidates = dict[str, tuple[set[str], list[str]]]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 users with 11 of 30 items each, in parts of eight, one and two rows."""
    return write(tmp_path_factory.mktemp("data"), shuffled_rows())


def loaders(folder: Path, model: str, *extra: str):  # type: ignore[no-untyped-def]
    """Validation and test loaders of a RecBole model or a language model."""
    config = load_config(arguments(folder, model, *extra))
    dataset, parts = load_parts(config)
    if model == "LLMRec":
        return evaluation_loaders(config, dataset, parts)[1:]
    run = prepare_classical(config, dataset, parts)
    return run.valid_data, run.test_data


def candidates(loader) -> Candidates:  # type: ignore[no-untyped-def]
    """Held-out items and all candidates of each user, by token, from one pass over the loader."""
    found: Candidates = {}
    part, done = loader._dataset, 0
    for batch, rows, positive_rows, positive_items in loader:
        for row in range(int(rows.max()) + 1):
            user = part.id2token("user_id", int(loader.uid_list[done + row]))
            assert set(batch["user_id"][rows == row].tolist()) == {int(loader.uid_list[done + row])}
            held_out = positive_items[positive_rows == row]
            all_items = batch["item_id"][rows == row]
            assert all_items[: len(held_out)].tolist() == held_out.tolist()
            found[user] = (
                set(part.id2token("item_id", held_out.numpy())),
                part.id2token("item_id", all_items.numpy()).tolist(),
            )
        done += int(rows.max()) + 1
    return found


def test_n_in_total_distinct_and_unknown(data_path: Path) -> None:
    valid, test = loaders(data_path, "EASE", MODES)
    chosen: dict[str, list[str]] = {}
    for user, item, _ in sorted(shuffled_rows(), key=lambda row: float(row[2])):
        chosen.setdefault(user, []).append(item)
    for loader, number, held_out in ((valid, 9, slice(9, 10)), (test, 12, slice(10, 11))):
        found = candidates(loader)
        assert found.keys() == chosen.keys()
        for user, (positives, items) in found.items():
            assert len(items) == len(set(items)) == number
            assert positives == set(chosen[user][held_out])
            known = set(chosen[user][: held_out.stop])
            assert not (set(items) - positives) & known


@pytest.mark.parametrize("kind", ["total", "uni", "pop"])
def test_every_model_and_every_pass_has_the_same(data_path: Path, kind: str) -> None:
    modes = MODES.replace("total", kind)
    valid, test = map(candidates, loaders(data_path, "EASE", modes))
    again = loaders(data_path, "EASE", modes)
    for _ in range(2):
        assert [candidates(loader) for loader in again] == [valid, test]
    for model in ("LLMRec", "BPR", "SASRec"):
        assert list(map(candidates, loaders(data_path, model, modes))) == [valid, test]
    several = ["--rank_batch_users=3", "--worker=2"]
    assert list(map(candidates, loaders(data_path, "LLMRec", modes, *several))) == [valid, test]
    other = [*map(candidates, loaders(data_path, "EASE", modes, "--seed=1"))]
    assert other[0].keys() == valid.keys() and other != [valid, test]


def test_a_user_has_the_same_whoever_else_is_ranked(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other batches, as several processes take them from the queue."""
    by_user = "--eval_args={'split': {'RS': [0.4, 0.2, 0.4]}, 'mode': 'uni5'}"
    everybody = candidates(loaders(data_path, "EASE", by_user)[1])
    loader = loaders(data_path, "LLMRec", by_user, "--rank_batch_users=3")[1]
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "work_queue", lambda n: iter([2]))
    ((batch, rows, _, _),) = loader
    users = batch["user_id"][[int((rows == row).nonzero()[0]) for row in range(3)]]
    for row, user in enumerate(loader._dataset.id2token("user_id", users.numpy())):
        items = loader._dataset.id2token("item_id", batch["item_id"][rows == row].numpy())
        assert sorted(items) == sorted(everybody[user][1])


def test_it_does_not_depend_on_inner_numbers(data_path: Path, tmp_path: Path) -> None:
    """With the rows of the file in another order, RecBole numbers users and items differently."""
    other = write(tmp_path, shuffled_rows()[::-1])
    one, two = (loaders(folder, "EASE", MODES)[1] for folder in (data_path, other))
    tokens = [loader._dataset.field2id_token["item_id"].tolist() for loader in (one, two)]
    assert tokens[0] != tokens[1]
    for user, (positives, items) in candidates(one).items():
        assert candidates(two)[user][0] == positives
        assert set(candidates(two)[user][1]) == set(items)


def test_recboles_own_mode_is_per_positive(data_path: Path) -> None:
    by_user = "--eval_args={'split': {'RS': [0.4, 0.2, 0.4]}, 'mode': 'uni5'}"
    found = candidates(loaders(data_path, "EASE", by_user)[1])
    assert {(len(positives), len(items)) for positives, items in found.values()} == {(4, 24)}
    total = by_user.replace("uni5", "total10")
    found = candidates(loaders(data_path, "EASE", total)[1])
    assert {(len(positives), len(items)) for positives, items in found.values()} == {(4, 10)}


def test_metrics_are_those_of_the_candidates(data_path: Path) -> None:
    """NDCG@2 and recall@2 by hand, from the model's scores of the candidates alone."""
    config = load_config(arguments(data_path, "EASE", MODES, "--metrics=[NDCG, Recall]"))
    dataset, parts = load_parts(config)
    classical = prepare_classical(config, dataset, parts)
    classical.fit(show_progress=False)
    reported = classical.trainer.evaluate(classical.test_data, show_progress=False)
    ndcg, recall = [], []
    for batch, rows, positive_rows, _ in classical.test_data:
        scores = classical.model.predict(batch)
        for row in range(int(rows.max()) + 1):
            mine = rows == row
            held_out = int((positive_rows == row).sum())
            best = scores[mine].argsort(descending=True)[:2]
            hits = (best < held_out).double()  # held-out items come first
            discount = 1 / np.log2([2, 3])
            ndcg.append(float((hits.numpy() * discount).sum() / discount[:held_out].sum()))
            recall.append(float(hits.sum()) / held_out)
    assert reported["ndcg@2"] == pytest.approx(np.mean(ndcg), abs=1e-4)
    assert reported["recall@2"] == pytest.approx(np.mean(recall), abs=1e-4)
    full = MODES.replace("total12", "full")
    config = load_config(arguments(data_path, "EASE", full, "--metrics=[NDCG, Recall]"))
    on_all = prepare_classical(config, *load_parts(config))
    on_all.fit(show_progress=False)
    assert on_all.trainer.evaluate(on_all.test_data, show_progress=False) != reported


def test_draws_are_uniform_and_few_remaining_items_are_found(data_path: Path) -> None:
    _, (train, _, _) = load_parts(load_config(arguments(data_path, "EASE")))
    counts: Counter[int] = Counter()
    for seed in range(600):
        draw = CandidateDraw(seed, "valid", train)
        few = draw.draw(1, {1, 2}, 3)
        assert len(set(few.tolist())) == 3 and not {0, 1, 2} & set(few.tolist())
        counts.update(few.tolist())
    assert counts.keys() == set(range(3, 31))
    assert 35 < min(counts.values()) and max(counts.values()) < 98  # 64.3 expected, sd 7.6
    draw = CandidateDraw(0, "valid", train)
    assert set(draw.draw(1, {1, 2}, 99).tolist()) == set(range(3, 31))
    assert draw.draw(1, set(range(1, 31)), 5).tolist() == [] == draw.draw(1, {1}, 0).tolist()


def test_draws_per_positive_are_those_of_recbole(data_path: Path) -> None:
    """With replacement, and by popularity in proportion to the rows of all parts."""
    for mode in ("uni5", "pop5"):
        config = load_config(arguments(data_path, "EASE", f"--eval_args={{'mode': '{mode}'}}"))
        dataset, parts = load_parts(config)
        sampler = prepare_classical(config, dataset, parts).test_data._sampler
        popularity = np.bincount(
            np.concatenate([part.inter_feat["item_id"].numpy() for part in parts]), minlength=31
        )
        known = sampler.used_ids[1] | {7}
        weights = popularity if mode == "pop5" else np.ones(31)
        weights[[0, *known]] = 0
        drawn = sampler.sample_by_user_ids([1, 1], [7, 7], 10_000).numpy()
        assert len(drawn) == 20_000
        expected = 20_000 * weights / weights.sum()
        found = np.bincount(drawn, minlength=31)
        assert (found[weights == 0] == 0).all()
        assert (abs(found - expected) <= 5 * np.sqrt(expected)).all()
        assert len(set(weights)) > 2 or mode == "uni5"


def test_no_item_to_draw_is_explained(data_path: Path) -> None:
    _, (train, _, _) = load_parts(load_config(arguments(data_path, "EASE")))
    draw = CandidateDraw(0, "valid", train)
    assert draw.draw_repeatedly(1, set(range(2, 31)), 4).tolist() == [1] * 4
    with pytest.raises(DataError, match="no candidate is left.*mode full"):
        draw.draw_repeatedly(1, set(range(1, 31)), 4)
    with pytest.raises(DataError, match="no candidate is left"):
        draw.draw_repeatedly(1, {1}, 4, np.arange(31) == 1)


def test_a_validation_on_some_users(data_path: Path) -> None:
    """`valid_users` also applies to sampled candidates."""
    for mode in ("total9", "uni5", "full"):
        evaluation = f"--eval_args={{'order': 'TO', 'mode': {{'valid': '{mode}', 'test': 'full'}}}}"
        argv = arguments(data_path, "LLMRec", evaluation, "--valid_users=3")
        config = load_config(argv)
        dataset, parts = load_parts(config)
        few, valid, test = evaluation_loaders(config, dataset, parts)
        assert [len(loader.uid_list) for loader in (few, valid, test)] == [3, 20, 20]
        if mode != "full":
            everybody = candidates(valid)
            assert all(everybody[user] == found for user, found in candidates(few).items())
        for n_users in (0, 20, 99):
            config["valid_users"] = n_users
            few, valid, _ = evaluation_loaders(config, dataset, parts)
            assert few is valid  # so that the same users are known to be the same


def test_a_run_of_a_language_model(data_path: Path, tmp_path: Path) -> None:
    result = run(arguments(data_path, "LLMRec", MODES, f"--run_dir={tmp_path / 'run'}"))
    assert result["num_users_evaluated"] == 20
    assert 0 <= result["test_result"]["recall@5"] <= 1


def test_fewer_candidates_than_asked_for_are_told(
    data_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = MODES.replace("total9", "total25").replace("total12", "total3")
    with caplog.at_level(logging.WARNING):
        valid, test = loaders(data_path, "EASE", large)
        assert isinstance(valid, TotalCandidatesLoader)
    assert "total25 (valid): 20 of 20 users have fewer candidates" in caplog.text
    assert {len(items) for _, items in candidates(valid).values()} == {21}  # 30 less nine known
    by_user = "--eval_args={'split': {'RS': [0.4, 0.2, 0.4]}, 'mode': 'total4'}"
    with caplog.at_level(logging.WARNING):
        _, test = loaders(data_path, "EASE", by_user)
    assert "total4 (test): 20 of 20 users have that many held-out items" in caplog.text
    assert all(set(items) == positives for positives, items in candidates(test).values())


def test_every_item_a_hit_is_refused(data_path: Path) -> None:
    with pytest.raises(ConfigError, match="topk=2 is no less than the 2 candidates in total"):
        load_config(arguments(data_path, "EASE", MODES.replace("total9", "total2")))
    with pytest.raises(DataError, match="no user has more than 21 candidates.*Lower --topk"):
        argv = arguments(
            data_path, "EASE", MODES.replace("total9", "total100").replace("total12", "full")
        )
        argv = [text for text in argv if "topk" not in text]
        loaders_of = load_config([*argv, "--topk=[2, 25]"])
        prepare_classical(loaders_of, *load_parts(loaders_of))


@pytest.mark.parametrize("mode", ["full", "uni5", "pop5", "total9"])
def test_a_test_of_some_users(data_path: Path, mode: str) -> None:
    """The same users for every model, fewer among more, with the candidates of a whole test."""
    evaluation = f"--eval_args={{'order': 'TO', 'mode': '{mode}'}}"

    def tested(model: str, *settings: str) -> Candidates | set[str]:
        _, test = loaders(data_path, model, evaluation, *settings)
        assert test._dataset.inter_feat["user_id"].unique().numel() == len(test.uid_list)
        users = test._dataset.id2token("user_id", test.uid_list)
        return set(users) if mode == "full" else candidates(test)

    whole, few, more = (tested("LLMRec", f"--test_users={n}") for n in (0, 4, 9))
    assert (len(whole), len(few), len(more)) == (20, 4, 9)
    assert set(few) < set(more) and set(few) != set(tested("LLMRec", "--test_users=4", "--seed=1"))
    for model in ("EASE", "BPR", "SASRec"):
        assert tested(model, "--test_users=4") == few
    if isinstance(few, dict):
        assert isinstance(whole, dict)
        assert few == {user: whole[user] for user in few}


def test_validation_while_training_is_not_changed(data_path: Path) -> None:
    for settings, expected in (
        (["--valid_users=3", "--test_users=4"], [3, 4, 4]),
        (["--valid_users=0", "--test_users=4"], [20, 4, 4]),
        (["--valid_users=3", "--test_users=99"], [3, 20, 20]),
    ):
        config = load_config(arguments(data_path, "LLMRec", *settings))
        dataset, parts = load_parts(config)
        found = evaluation_loaders(config, dataset, parts)
        assert [len(loader.uid_list) for loader in found] == expected
        valid, test = ({*loader.uid_list.tolist()} for loader in found[1:])
        assert valid == test
