"""Calibration: values by hand, drawn sets, and probabilities known to be right or wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.classical.assistant import Assistant
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.training.calibration import (
    EDGES,
    calibration,
    inclusion_probabilities,
    log_shares,
)
from tests.integration.toy import toy_model


def test_probabilities_of_being_drawn_without_replacement() -> None:
    """They are the frequencies of items in drawn sets, where n times the share is far off."""
    torch.manual_seed(0)
    n, share = 5, (torch.randn(40).double() * 1.5).softmax(0)
    clocks = torch.empty(20_000, 40).exponential_() / share
    drawn = torch.zeros(40).index_add_(
        0, clocks.topk(n, largest=False).indices.flatten(), torch.ones(100_000)
    )
    (p,) = inclusion_probabilities(share.log()[None], torch.tensor([n]))
    assert float(p.sum()) == pytest.approx(n)
    torch.testing.assert_close(p, drawn.double() / 20_000, atol=0.02, rtol=0)
    assert float((n * share - p).abs().max()) > 0.2  # as if drawn with replacement


def test_items_that_cannot_be_drawn_have_no_probability() -> None:
    logq = torch.tensor([[-torch.inf, 0.0, -1.0, -torch.inf]]).double().log_softmax(1)
    (p,) = inclusion_probabilities(logq, torch.tensor([1]))
    assert p[0] == p[3] == 0 and float(p.sum()) == pytest.approx(1)


def by_hand(ranker, loader) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Bits per held-out item, and as sets by the sum over all orders; user by user."""
    model, bits, of_sets, n = ranker.model, 0.0, 0.0, 0
    texts = model.item_texts
    for interaction, known, row, item in loader:
        for place, user in enumerate(interaction[loader.uid_field].tolist()):
            seen = set(known[1][known[0] == place].tolist())
            items = [i for i in range(1, model.n_items) if i not in seen]
            users = torch.full((len(items),), user)
            scores = ranker.pair_scores(users, torch.tensor(items)).double()
            alike = torch.tensor([texts[1:].count(texts[i]) for i in items])
            q = dict(zip(items, (scores - alike.log()).softmax(0).tolist(), strict=True))
            held_out = item[row == place].tolist()
            bits -= sum(np.log2(q[i]) for i in held_out)
            total = 0.0
            for order in permutations(held_out):
                left, product = 1.0, 1.0
                for each in order:
                    product, left = product * q[each] / left, left - q[each]
                total += product
            of_sets -= np.log2(total)
            n += len(held_out)
    return {"bits_per_item": bits / n, "bits_per_item_as_sets": of_sets / n}


def assisted(ranker, n_users: int):  # type: ignore[no-untyped-def]
    scores = np.random.default_rng(0).normal(size=(n_users, ranker.model.n_items))
    table = scores.astype(np.float32)
    return replace(
        ranker, assistant=Assistant("EASE", table, table, np.arange(n_users), {}), weight=2.0
    )


@pytest.mark.parametrize(
    ("extra", "with_assistant"),
    [
        ((), False),
        (("--tiny_title_tokens=False",), False),
        (("--normalize_over=vocabulary",), True),
    ],
)
def test_bits_are_those_of_the_definition(
    data_path: Path, tmp_path: Path, extra: tuple[str, ...], with_assistant: bool
) -> None:
    own = Path(shutil.copytree(data_path, tmp_path / "data"))
    item_file = own / "toy" / "toy.item"
    lines = item_file.read_text().splitlines()
    lines[3] = "\t".join([lines[3].split("\t")[0], *lines[1].split("\t")[1:]])  # one text twice
    item_file.write_text("\n".join(lines) + "\n")
    config, parts, model = toy_model(own, tmp_path, "--item_year_field=~", *extra)
    model.eval()
    ranker = make_ranker(model, model.histories)
    if with_assistant:
        ranker = assisted(ranker, parts[0].user_num)
    *_, test = evaluation_loaders(config, parts[0], parts)
    found = calibration(ranker, test)
    expected = by_hand(ranker, test)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["held_out_items"] == len(parts[2].inter_feat)
    for column in ("expected", "found"):
        total = sum(each[column] for each in found["reliability"])
        assert total == pytest.approx(found["held_out_items"])
    assert [each["above"] for each in found["reliability"]] == list(EDGES[:-1])


def test_an_untrained_forecast_is_as_good_as_none(data_path: Path, tmp_path: Path) -> None:
    """Equal scores give the bits of equal probabilities; with a forecast they are others."""
    config, parts, model = toy_model(data_path, tmp_path)
    model.eval()
    *_, test = evaluation_loaders(config, parts[0], parts)
    ranker = make_ranker(model, model.histories)
    plain = calibration(ranker, test)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.zero_()
    level = calibration(ranker, test)
    assert level["bits_per_item"] == pytest.approx(level["bits_per_item_uniform"], rel=1e-5)
    assert level["bits_per_item_uniform"] == plain["bits_per_item_uniform"]
    assert plain["bits_per_item"] != pytest.approx(plain["bits_per_item_uniform"], rel=1e-5)


def test_probabilities_are_misplaced_only_where_they_are_wrong(
    data_path: Path, tmp_path: Path
) -> None:
    """Of items drawn by the model's own probabilities few are misplaced; sharper ones are wrong."""
    config, parts, model = toy_model(data_path, tmp_path)
    model.eval()
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.mul_(12)  # probabilities that differ
    *_, test = evaluation_loaders(config, parts[0], parts)
    ranker = make_ranker(model, model.histories)
    torch.manual_seed(0)
    batches = []
    for _ in range(60):
        for interaction, known, row, _ in test:
            users = interaction[test.uid_field]
            excluded = torch.zeros(len(users), model.n_items, dtype=torch.bool)
            excluded[known[0], known[1]] = True
            with torch.no_grad():
                logq = log_shares(ranker, users, excluded)
            clocks = torch.empty_like(logq).exponential_() / logq.exp()
            order = clocks.argsort(1)
            first = torch.cat([torch.arange(int((row == place).sum())) for place in row.unique()])
            batches.append((interaction, known, row, order[row, first]))

    class Drawn:
        uid_field = test.uid_field

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(batches)

    right = calibration(ranker, Drawn())  # type: ignore[arg-type]
    wrong = calibration(replace(assisted(ranker, parts[0].user_num), weight=3.0), Drawn())  # type: ignore[arg-type]
    assert right["misplaced"] < 0.04 < 0.1 < wrong["misplaced"]
    assert right["bits_per_item"] < wrong["bits_per_item"]
