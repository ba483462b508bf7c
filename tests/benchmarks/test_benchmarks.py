"""Benchmarks: both sides compute the same thing; timer, memory and report by hand."""

import argparse
import json
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import generated
from benchmarks.common import Row, Timer, faster, peak_mebibytes, report
from benchmarks.others import kv_logps, kv_scores, naive_logps
from benchmarks.training_step import Examples
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.packed import packed_logps
from recbole_multdpo.scoring.padded import padded_logps

ITEMS = ItemTokens.from_lists([[], [5, 9, 2], [7, 2], [2], [5, 9, 8, 11, 2]])
CATALOGUE = ItemCatalogue.build(ITEMS)
PROMPTS = Prompts(torch.tensor([[11, 12, 13, 14], [21, 22, 0, 0]]), torch.tensor([4, 2]))
CANDIDATES = torch.tensor([[1, 2, 4], [3, 4, 0]])
SCORERS = {
    "naive": partial(naive_logps, logits_everywhere=True),
    "naive, candidate logits": partial(naive_logps, logits_everywhere=False),
    "kv": kv_logps,
}


@pytest.mark.parametrize("name", SCORERS)
def test_other_scorers_equal_the_padded_twin_in_value_and_gradient(make_lm, name):
    lm = make_lm().requires_grad_(True)
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 7.0]])

    def value_and_gradient(score):
        logps = score(lm, PROMPTS, CANDIDATES, CATALOGUE)
        return [logps, *torch.autograd.grad((weights * logps).sum(), list(lm.parameters()))]

    found, expected = value_and_gradient(SCORERS[name]), value_and_gradient(padded_logps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_prompt_cache_scores_the_catalogue_in_any_chunks(make_lm):
    lm, prompt = make_lm(), PROMPTS.split(1)[0]
    expected = packed_logps(lm, prompt, torch.tensor([[1, 2, 3, 4]]), CATALOGUE)[0]
    for chunk in (1, 3, 100):
        found = kv_scores(lm, prompt, ITEMS, items_per_chunk=chunk)
        torch.testing.assert_close(found[1:], expected, rtol=1e-4, atol=1e-4)


def test_operations_by_hand():
    """One prompt of 10, items of 3 and 5 tokens; body 2 and head 1 operations per position."""
    examples = Examples(
        Prompts(torch.zeros(1, 10, dtype=torch.long), torch.tensor([10])),
        torch.tensor([[1, 2]]),
        ItemCatalogue.build(ItemTokens.from_lists([[], [1, 1, 2], [1, 1, 1, 1, 2]])),
    )
    packed = (10 + 2 + 4) * 2 + 1 + 2 + 4
    assert examples.floor_ratios(2, 1) == pytest.approx(
        {
            "naive": (13 + 15) * 3 / packed,
            "naive, candidate logits": ((13 + 15) * 2 + 8) / packed,
            "kv": ((10 + 8) * 2 + 1 + 8) / packed,
        }
    )


def test_timer_alternates_and_ratios_are_medians_of_rounds():
    order = []
    timer = Timer("cpu", 1)
    names = {name: partial(order.append, name) for name in "ab"}
    seconds = timer.alternate(names, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # a round to warm up, then three
    assert all(len(values) == 3 for values in seconds.values())
    row = faster("x", [1.0, 2.0, 4.0], [2.0, 2.0, 40.0], goal=2.0)
    assert (row.ours, row.other, row.ratio) == (2.0, 2.0, 2.0)


def test_peak_memory_counts_what_is_held_at_once():
    def in_turn():
        for _ in range(3):
            torch.ones(2**18)  # 1 MiB

    def together():
        return [torch.ones(2**18) for _ in range(3)]

    assert peak_mebibytes(in_turn, "cpu") == pytest.approx(1, abs=0.1)
    assert peak_mebibytes(together, "cpu") == pytest.approx(3, abs=0.1)


def test_report_says_which_goals_are_met(tmp_path, capsys):
    options = argparse.Namespace(json=tmp_path / "out.json", device="cpu", dtype="fp32")
    rows = [Row("fast", 1.0, 4.0, "s", 4.0, 5.0, 3.0), Row("slow", 1.0, 2.0, "s", 2.0, None, 3.0)]
    report(rows, options)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["fast"].endswith(">= 3 met") and lines["slow"].endswith(">= 3 NOT met")
    written = json.loads(options.json.read_text())
    assert written["rows"][0] == {
        "name": "fast",
        "ours": 1.0,
        "other": 4.0,
        "unit": "s",
        "ratio": 4.0,
        "floor_ratio": 5.0,
        "goal": 3.0,
    }
    assert written["hardware"]["cpu"]


def test_generated_set_has_the_size_and_no_pair_twice(tmp_path):
    titles = generated.made_up_titles(300)
    folder = generated.write(tmp_path, titles, n_users=40, n_ratings=1000) / generated.NAME
    rows = (folder / "generated.inter").read_text().splitlines()[1:]
    users, items, ratings, _ = np.array([row.split("\t") for row in rows]).T
    assert len({*zip(users, items, strict=True)}) == len(rows)
    assert len(set(users)) == 40 and 850 < len(rows) <= 1040
    assert set(ratings.astype(float) * 2) <= set(range(1, 11))
    counts = np.sort(np.bincount(items.astype(int), minlength=300))
    assert counts[-30:].sum() > 3 * counts[:30].sum()  # some items are popular
    header, *lines = (folder / "generated.item").read_text().splitlines()
    assert header.count("\t") == 2 and len(lines) == 300


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Toy  Story (1995)", ("Toy Story", "1995")),
        ("1984", ("1984", "")),
        ("(500) Days", ("(500) Days", "")),
        ("(1995)", ("(1995)", "")),
    ],
)
def test_years_are_split_from_titles(title, expected):
    assert generated.split_year(title) == expected
