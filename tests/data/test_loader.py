"""Loaders: order of the ranked users, and distribution of examples over processes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.utils import create_samplers

from recbole_multdpo.data.loader import FILLER, RankingDataLoader
from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime import processes
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import toy_model, write_toy


def test_users_come_by_the_length_of_their_history_with_their_own_items(tmp_path: Path) -> None:
    only_five = "--val_interval={'rating': '[5,inf)'}"
    config, parts, _ = toy_model(write_toy(tmp_path), tmp_path, "--rank_batch_users=5", only_five)
    # users of unequal histories: every third one loses half of the training items
    features = parts[0].inter_feat
    kept = (features["user_id"] % 3 > 0) | (features["item_id"] % 2 > 0)
    parts[0] = parts[0].copy(features[kept])
    _, sampler, _ = create_samplers(config, parts[0], parts)

    def by_user(loader):  # type: ignore[no-untyped-def]
        found = {}
        for users, history, positive_rows, positive_items in loader:
            for row, user in enumerate(users["user_id"].tolist()):
                found[user] = (
                    sorted(history[1][history[0] == row].tolist()),
                    sorted(positive_items[positive_rows == row].tolist()),
                )
        return found

    ours = by_user(RankingDataLoader(config, parts[1], sampler))
    plain = by_user(FullSortEvalDataLoader(config, parts[1], sampler))
    assert ours == plain
    lengths = [len(history) for history, _ in ours.values()]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1
    assert [len(history) for history, _ in plain.values()] != lengths


def toy_loader(tmp_path: Path, batch_size: int):  # type: ignore[no-untyped-def]
    config, parts, model = toy_model(write_toy(tmp_path), tmp_path)
    return train_loader(config, model, parts[0], "mult_dpo", batch_size)


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
def test_processes_share_the_batches_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_processes: int
) -> None:
    """24 users in batches of 7, 7, 7 and 3; of five processes, the last batch leaves two idle."""
    loader = toy_loader(tmp_path, 7)

    def batches(rank: int, count: int):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "world_size", lambda: count)
        loader.set_epoch(1)
        return list(loader)

    def drawn(batch, row: int):  # type: ignore[no-untyped-def]
        """An example without its padding."""
        prompt = batch.prompts.ids[row, : batch.prompts.lengths[row]].tolist()
        levels = batch.levels[row][batch.candidates[row] > 0].tolist()
        return prompt, batch.candidates[row][batch.candidates[row] > 0].tolist(), levels

    whole = batches(0, 1)
    assert [len(batch) for batch in whole] == [7, 7, 7, 3]
    shares = [batches(rank, n_processes) for rank in range(n_processes)]
    for number, batch in enumerate(whole):
        expected = {user: drawn(batch, row) for row, user in enumerate(batch.user_ids.tolist())}
        found = [
            (user, drawn(share[number], row))
            for share in shares
            for row, user in enumerate(share[number].user_ids.tolist())
        ]
        n_each = -(-len(batch) // n_processes)
        assert [len(share[number]) for share in shares] == [n_each] * n_processes
        counted = [(user, example) for user, example in found if user != FILLER]
        assert len(counted) == len(batch) and dict(counted) == expected
        for _, example in found:  # fillers are examples of the batch, seen a second time
            assert example in expected.values()


def test_shares_are_of_about_the_same_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = toy_loader(tmp_path, 24)
    counts = np.zeros(25, dtype=np.int64)
    counts[loader.users] = range(1, 25)
    monkeypatch.setattr(loader.setwise_sampler, "train_items", SimpleNamespace(counts=counts))
    totals = []
    monkeypatch.setattr(processes, "world_size", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        users, n_fillers = loader._share(range(24))
        assert n_fillers == 0
        totals.append(int(counts[users].sum()))
    assert totals == [84, 78, 72, 66]  # of 300; unsorted blocks would have 21 to 129


def test_ranked_batches_are_claimed_the_longest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, parts, _ = toy_model(write_toy(tmp_path), tmp_path, "--rank_batch_users=5")
    _, sampler, _ = create_samplers(config, parts[0], parts)
    loader = RankingDataLoader(config, parts[1], sampler)
    whole = [batch[0]["user_id"].tolist() for batch in loader]
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "work_queue", lambda n: iter([0, n - 1]))
    assert [batch[0]["user_id"].tolist() for batch in loader] == [whole[-1], whole[0]]


def test_a_worker_process_makes_the_same_batches(tmp_path: Path) -> None:
    """`--worker=1` prepares batches during the training step."""
    data_path, found = write_toy(tmp_path), []
    for n_workers in (0, 1):
        config, parts, model = toy_model(data_path, tmp_path, f"--worker={n_workers}")
        loader = train_loader(config, model, parts[0], "mult_dpo", 5)
        batches = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            batches.append([[batch.user_ids, batch.candidates] for batch in loader])
        found.append(batches)
    assert str(found[0]) == str(found[1]) and str(found[0][0]) != str(found[0][1])


def test_no_example_to_train_on_is_explained(tmp_path: Path) -> None:
    """By popularity, a negative must be another user's item, and there is no other user."""
    data_path = write_toy(tmp_path)
    file = data_path / "toy" / "toy.inter"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(row for row in rows if row.startswith("u0\t")), ""]))
    popular = "--negative_distribution=popularity"
    config, parts, model = toy_model(data_path, tmp_path, popular)
    with pytest.raises(DataError, match="negative_distribution=uniform"):
        train_loader(config, model, parts[0], "mult_dpo", 8)
    assert len(train_loader(config, model, parts[0], "sft", 8)) == 1
