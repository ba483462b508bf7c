"""Protocols in words."""

import pytest

from recbole_multdpo.settings.protocol import protocol_in_words

RANDOM = {"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": "user", "mode": {"test": "full"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"val_interval": {"rating": "[4,inf)"}, "eval_args": RANDOM},
            "positives: rating in [4,inf); split of each user's rows at random, 80 / 10 / 10 %; "
            "all items are ranked",
        ),
        (
            {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni100"}},
            "positives: all interactions; the last row of a user is for test, the one before for "
            "validation; 100 candidates drawn uniformly",
        ),
        (
            {"benchmark_filename": ["train", "test"], "eval_args": {"mode": "total50"}},
            "positives: all interactions; split of the files train, test; 50 candidates in total",
        ),
        (
            {"eval_args": {"split": {"RS": [0.5, 0.5]}, "order": "TO"}},
            "positives: all interactions; split in order of time, 50 / 50 %",
        ),
        ({}, "positives: all interactions"),
        ({"eval_args": None, "val_interval": "odd"}, "positives: odd"),
    ],
)
def test_in_words(settings, words):
    assert protocol_in_words(settings) == words
