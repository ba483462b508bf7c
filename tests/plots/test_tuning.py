"""The figure of tuning: best trials, optimum, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.tuning import read_tuning, tuning_figure

pytest.importorskip("matplotlib")

# as `--tune` writes it; EASE has no beta, one trial failed, dpo tried a second setting too
TABLE = """\
system,trial,beta,learning_rate,dtype,chosen,ndcg@5,ndcg@10
LLMRec dpo,0,1,1e-4,float32,False,0.1,0.2
LLMRec dpo,1,1,1e-3,float32,False,0.1,0.25
LLMRec dpo,2,0.1,1e-4,float32,False,0.1,0.1
LLMRec s_dpo,0,0.1,,float32,True,0.3,0.3
LLMRec s_dpo,1,10,,float32,False,,
EASE,0,,,,True,0.2,0.4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tuning.csv").write_text(TABLE)
    return tmp_path


def test_best_trial_of_every_value_in_order(folder: Path) -> None:
    rows = read_tuning(folder, "beta", "NDCG@10")
    assert rows.to_numpy().tolist() == [
        ["LLMRec dpo", 0.1, 0.1],
        ["LLMRec s_dpo", 0.1, 0.3],
        ["LLMRec dpo", 1.0, 0.25],
    ]


def test_lines_are_ordered_by_their_optimum_which_is_ringed(folder: Path) -> None:
    figure = tuning_figure(read_tuning(folder, "beta", "NDCG@10"), "beta", "NDCG@10")
    (axes,) = figure.axes
    first, ring, second, other_ring = axes.get_lines()
    assert first.get_label() == "LLMRec s_dpo, best at 0.1"
    assert second.get_xydata().tolist() == [[0.1, 0.1], [1.0, 0.25]]
    assert ring.get_xydata().tolist() == [[0.1, 0.3]]
    assert other_ring.get_xydata().tolist() == [[1.0, 0.25]]
    assert axes.get_xscale() == "linear"  # the values differ by less than a factor of 20
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("beta", "validation NDCG@10")


@pytest.mark.parametrize(
    ("setting", "metric", "message"),
    [
        ("gamma", "ndcg@10", "--setting=gamma is not in"),
        ("beta", "auc", "--metric=auc is not in"),
        ("dtype", "ndcg@10", "no numbers"),
    ],
)
def test_unknown_setting_or_metric_is_an_error(
    folder: Path, setting: str, metric: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_tuning(folder, setting, metric)


def test_comparison_without_tuning_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--tune"):
        read_tuning(tmp_path, "beta", "ndcg@10")
