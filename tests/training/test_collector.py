"""The top-K collector against RecBole's own collector on dense scores."""

import pytest
import torch

from recbole_multdpo import compat

compat.apply()

from recbole.evaluator import Collector, Evaluator  # noqa: E402

from recbole_multdpo.errors import ConfigError  # noqa: E402
from recbole_multdpo.scoring.topk import TopK, stable_topk  # noqa: E402
from recbole_multdpo.training.collector import TopKCollector  # noqa: E402

METRICS = ["NDCG", "Recall", "MRR", "Hit", "Precision", "MAP", "ItemCoverage"]


def config(metrics=METRICS, topk=(1, 3, 5), modes=("full", "full")):
    """A configuration, as far as RecBole's collector, register and metrics read it."""
    return {
        "metrics": list(metrics),
        "topk": list(topk),
        "eval_args": {"mode": {"valid": modes[0], "test": modes[1]}},
        "device": torch.device("cpu"),
        "metric_decimal_place": 6,
        "ITEM_ID_FIELD": "item_id",
    }


def topk_of(scores, k=5):
    items, values = stable_topk(scores, k)
    return TopK(items, values, torch.zeros(len(scores), dtype=torch.long))


def collected(collector, batches, n_items):
    """The data struct after several batches of (scores, positive_u, positive_i)."""
    for scores, positive_u, positive_i in batches:
        collector.eval_batch_collect(scores, None, positive_u, positive_i)
    collector.data_struct.set("data.num_items", n_items)
    return collector.get_data_struct()


def random_batches(n_items, k_excluded, seed=0):
    """Two batches of users with 1 to 4 positives and some excluded items, as RecBole hands them."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for n_users in (6, 3):
        scores = torch.randn(n_users, n_items, generator=generator)
        scores[:, 0] = -torch.inf
        positive_u, positive_i = [], []
        for user in range(n_users):
            order = 1 + torch.randperm(n_items - 1, generator=generator)
            n_positives = 1 + user % 4
            positive_u += [user] * n_positives
            positive_i += order[:n_positives].tolist()
            scores[user, order[n_positives : n_positives + k_excluded]] = -torch.inf
        batches.append((scores, torch.tensor(positive_u), torch.tensor(positive_i)))
    return batches


def as_topk(batches, k=5):
    return [(topk_of(scores, k), users, items) for scores, users, items in batches]


@pytest.mark.parametrize("seed", range(5))
def test_same_ranking_same_records_same_metrics(seed):
    batches = random_batches(n_items=30, k_excluded=8, seed=seed)
    expected = collected(Collector(config()), batches, 30)
    found = collected(TopKCollector(config()), as_topk(batches), 30)
    for name in ("rec.items", "rec.topk"):
        assert found.get(name).shape == (9, 5 + (name == "rec.topk"))
        assert torch.equal(found.get(name).long(), expected.get(name).long())
    assert found.get("rec.topk")[:, :5].any(), "some positive must be found"
    evaluator = Evaluator(config())
    result = evaluator.evaluate(found)
    assert result == evaluator.evaluate(expected)
    assert set(result) == {f"{metric.lower()}@{k}" for metric in METRICS for k in (1, 3, 5)}


def test_ndcg_by_hand():
    """Ranks 1 and 3 of two positives: (1 + 1/2) / (1 + 1/log2 3); and a user with no hit."""
    topk = TopK(
        items=torch.tensor([[7, 2, 9], [3, 4, 5]]),
        scores=torch.tensor([[-1.0, -2, -3], [-1, -2, -3]]),
        expanded=torch.zeros(2, dtype=torch.long),
    )
    settings = config(["NDCG"], [3])
    collector = TopKCollector(settings)
    batch = (topk, torch.tensor([0, 0, 1]), torch.tensor([9, 7, 1]))
    struct = collected(collector, [batch], 10)
    assert struct.get("rec.topk").tolist() == [[1, 0, 1, 2], [0, 0, 0, 1]]
    ideal = 1 + 1 / torch.tensor(3.0).log2()
    expected = float(1.5 / ideal / 2)
    assert Evaluator(settings).evaluate(struct)["ndcg@3"] == pytest.approx(expected, abs=1e-6)


def test_positives_outside_the_top_k_count_in_the_denominator():
    """Recall@2 of a user with three positives, one of them found, is a third."""
    topk = topk_of(torch.tensor([[-torch.inf, 0.9, 0.8, 0.7, 0.6, 0.5]]), k=2)
    settings = config(["Recall"], [2])
    batch = (topk, torch.tensor([0, 0, 0]), torch.tensor([2, 4, 5]))
    struct = collected(TopKCollector(settings), [batch], 6)
    assert struct.get("rec.topk").tolist() == [[0, 1, 3]]
    assert Evaluator(settings).evaluate(struct)["recall@2"] == pytest.approx(1 / 3, abs=1e-6)


def test_places_without_an_item_are_misses():
    """Seven of nine items excluded, five places: RecBole's dense path gives the same hits."""
    batches = random_batches(n_items=10, k_excluded=7, seed=3)
    topk = as_topk(batches)
    assert all((entry[0].items[:, -1] == 0).any() for entry in topk)
    found = collected(TopKCollector(config()), topk, 10)
    expected = collected(Collector(config()), batches, 10)
    assert torch.equal(found.get("rec.topk").long(), expected.get("rec.topk").long())
    for metric in ("ndcg@5", "recall@3", "map@5"):
        evaluator = Evaluator(config())
        assert evaluator.evaluate(found)[metric] == evaluator.evaluate(expected)[metric]


def test_item_0_is_never_a_hit():
    """Even if it were among the positives."""
    topk = TopK(torch.tensor([[3, 0]]), torch.tensor([[-1, -torch.inf]]), torch.zeros(1).long())
    batch = (topk, torch.tensor([0, 0]), torch.tensor([0, 3]))
    struct = collected(TopKCollector(config(["Hit"], [2])), [batch], 5)
    assert struct.get("rec.topk").tolist() == [[1, 0, 2]]


def test_a_repeated_positive_counts_once_as_in_recbole():
    scores = torch.tensor([[-torch.inf, 3.0, 2.0, 1.0, 0.5, 0.1]])
    users, items = torch.tensor([0, 0, 0]), torch.tensor([2, 2, 5])
    expected = collected(Collector(config()), [(scores, users, items)], 6)
    found = collected(TopKCollector(config()), [(topk_of(scores), users, items)], 6)
    assert found.get("rec.topk").tolist() == [[0, 1, 0, 0, 1, 2]]
    assert torch.equal(found.get("rec.topk").long(), expected.get("rec.topk").long())


def test_a_longer_list_than_asked_for_is_cut():
    topk = topk_of(torch.tensor([[-torch.inf, 5.0, 4, 3, 2, 1]]), k=5)
    batch = (topk, torch.tensor([0]), torch.tensor([4]))
    struct = collected(TopKCollector(config(["Hit", "ItemCoverage"], [2])), [batch], 6)
    assert struct.get("rec.items").tolist() == [[1, 2]]
    assert struct.get("rec.topk").tolist() == [[0, 0, 1]]


def test_dense_scores_go_recbole_s_way():
    """Validation on sampled candidates."""
    batches = random_batches(n_items=12, k_excluded=3)
    found = collected(TopKCollector(config()), batches, 12)
    expected = collected(Collector(config()), batches, 12)
    assert torch.equal(found.get("rec.topk"), expected.get("rec.topk"))


def test_only_what_the_metrics_need_is_kept():
    batches = as_topk(random_batches(n_items=12, k_excluded=3))
    struct = collected(TopKCollector(config(["NDCG"])), batches, 12)
    assert "rec.topk" in struct and "rec.items" not in struct


@pytest.mark.parametrize("modes", [("full", "full"), ("uni100", "full"), ("full", "uni100")])
def test_metrics_that_need_all_ranks_are_refused_at_once(modes):
    with pytest.raises(ConfigError, match="GAUC needs the rank of every item"):
        TopKCollector(config(["NDCG", "GAUC"], modes=modes))
    TopKCollector(config(["NDCG", "GAUC"], modes=("uni100", "uni100")))
