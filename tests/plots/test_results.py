"""The figures of finished runs: their numbers, and runs that are not comparable."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.results import (
    KINDS,
    bars_figure,
    choose_systems,
    cost_figure,
    cutoffs_figure,
    read_tests,
)
from recbole_multdpo.plots.runs import Run, find_runs
from tests.plots.conftest import MakeRun, set_seconds


@pytest.fixture
def tests(make_run: MakeRun):  # type: ignore[no-untyped-def]
    """EASE of two seeds, LLMRec of one."""
    trained = {"train": 2.0}
    logged = make_run("l1", ndcg=(0.4, 0.6), n_steps=2)
    set_seconds(logged, (10, 30, 1, 4))
    return read_tests(
        find_runs(
            [
                make_run("e1", model="EASE", seed=1, ndcg=(0.1, 0.3), seconds=trained),
                make_run("e2", model="EASE", seed=2, ndcg=(0.3, 0.5), seconds={"train": 4.0}),
                logged,
            ]
        )
    )


def test_bars_are_means_over_seeds_the_best_on_top(tests) -> None:  # type: ignore[no-untyped-def]
    (axes,) = bars_figure(tests, "NDCG@10").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.4, 0.6])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["EASE", "LLMRec mult_dpo"]
    # one error bar: EASE's deviation over two seeds is sqrt(0.02)
    (bar,) = (line for line in axes.collections)
    ends = bar.get_segments()[0][:, 0]
    np.testing.assert_allclose(ends, 0.4 + np.array([-1, 1]) * 0.02**0.5)
    assert "2 seeds" in axes.get_xlabel()


def test_bars_tell_kinds_apart_for_any_name(make_run: MakeRun) -> None:
    runs = [
        Run(make_run("a", ndcg=(0.1, 0.2), dataset="toy"), "levels", {"model": "LLMRec"}),
        Run(make_run("b", ndcg=(0.1, 0.3)), "beside", {"model": "LLMRec", "assistant": "EASE"}),
        Run(make_run("c", model="EASE", ndcg=(0.3, 0.4)), "LLMRec's rival", {"model": "EASE"}),
    ]
    figure = bars_figure(read_tests(runs), "NDCG@10")
    (axes,) = figure.axes
    bars = axes.patches  # the best on top, that is last
    looks = {(bar.get_facecolor()[:3], bar.get_hatch()) for bar in bars}
    assert len(looks) == len({luminance(bar.get_facecolor()) for bar in bars}) == 3
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == list(KINDS) and len(labels) == 3
    shown = figure.legends[0].get_patches()
    assert [p.get_facecolor() for p in shown] == [bar.get_facecolor() for bar in bars]
    alone = bars_figure(read_tests(runs[:1]), "NDCG@10")
    assert not alone.legends


def luminance(colour: tuple[float, ...]) -> float:
    return round(float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722))), 2)


def test_some_systems_by_name(tests) -> None:  # type: ignore[no-untyped-def]
    (axes,) = bars_figure(choose_systems(tests, ["EASE"]), "NDCG@10").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["EASE"]
    with pytest.raises(DataError, match="no run is of 'Ease2'; did you mean EASE.*LLMRec mult_dpo"):
        choose_systems(tests, ["Ease2"])


def test_titles_name_the_data_set(make_run: MakeRun) -> None:
    folder = make_run("e", model="EASE", dataset="toy_$x", seconds={"train": 1.0})
    table = read_tests(find_runs([folder]))
    for draw in (bars_figure, cutoffs_figure, cost_figure):
        (axes,) = draw(table, "ndcg@10").axes
        assert axes.get_title("left").startswith(r"toy_\$x: ")


def test_one_seed_has_no_error_bars(tests) -> None:  # type: ignore[no-untyped-def]
    for draw in (cutoffs_figure, cost_figure):
        (axes,) = draw(tests, "ndcg@10").axes
        bars = {container.get_label(): container.has_yerr for container in axes.containers}
        assert bars == {"LLMRec mult_dpo": False, "EASE": True}


def test_cutoffs_are_a_line_per_system_in_the_order_of_the_legend(tests) -> None:  # type: ignore[no-untyped-def]
    figure = cutoffs_figure(tests, "NDCG@10")
    (axes,) = figure.axes
    lines = [container.lines[0] for container in axes.containers]
    heights = [line.get_ydata().tolist() for line in lines]
    assert heights == [[0.4, 0.6], pytest.approx([0.2, 0.4])]
    assert [text.get_text() for text in figure.legends[0].texts] == ["LLMRec mult_dpo", "EASE"]
    assert all(line.get_xdata().tolist() == [5, 10] for line in lines)  # not moved aside


def test_cost_is_the_mean_time_of_training(tests) -> None:  # type: ignore[no-untyped-def]
    (axes,) = cost_figure(tests, "ndcg@5").axes
    points = {c.get_label(): c.lines[0].get_xydata()[0] for c in axes.containers}
    np.testing.assert_allclose(points["EASE"], [3.0, 0.2])
    assert points["LLMRec mult_dpo"].tolist() == [34.0, 0.4]
    assert "seconds" in axes.get_xlabel() and axes.get_xscale() == "log"


def test_unknown_metric_names_the_known_ones(tests) -> None:  # type: ignore[no-untyped-def]
    for figure in (bars_figure, cost_figure, cutoffs_figure):
        with pytest.raises(DataError, match="ndcg@5, ndcg@10, hit@5"):
            figure(tests, "auc")


def test_runs_that_are_not_comparable_are_refused(make_run: MakeRun) -> None:
    one, again = make_run("one"), make_run("again")
    with pytest.raises(DataError, match="seed 1 and the same settings"):
        read_tests(find_runs([one, again]))
    elsewhere = make_run("elsewhere", model="EASE", test_set="another split")
    with pytest.raises(DataError, match="different items"):
        read_tests(find_runs([one, elsewhere]))
    refit = make_run("refit", model="EASE", known="refit")
    with pytest.raises(DataError, match="did not know the same at test.*: refit, train"):
        read_tests(find_runs([one, refit]))
