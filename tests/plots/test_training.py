"""The figure of training: its panels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.runs import find_runs
from recbole_multdpo.plots.training import training_figure
from tests.plots.conftest import MakeRun


def panels(figure):  # type: ignore[no-untyped-def]
    """y label to panel, of those that are shown."""
    return {axes.get_ylabel(): axes for axes in figure.axes if axes.axison}


def test_four_panels_of_one_run_show_every_step_and_the_running_mean(make_run: MakeRun) -> None:
    shown = panels(training_figure(find_runs([make_run("run", n_steps=40)]), "preference"))
    loss, validation, margin, logps = shown.values()
    raw, smooth = margin.get_lines()
    np.testing.assert_allclose(raw.get_ydata(), np.arange(1, 41) / 10)
    # a twentieth of 40 steps: the mean of two neighbours
    np.testing.assert_allclose(smooth.get_ydata()[1:], np.arange(1.5, 40) / 10)
    (curve,) = validation.get_lines()
    assert [*curve.get_xdata()] == [10, 20, 30, 40]
    np.testing.assert_allclose(curve.get_ydata(), [0.01, 0.02, 0.03, 0.04])
    assert "validation NDCG@5" in shown and all("nats" in y for y in shown if "NDCG" not in y)
    _, positives, _, negatives = logps.get_lines()
    assert (positives.get_linestyle(), negatives.get_linestyle()) == ("-", "--")
    assert positives.get_ydata()[-1] == pytest.approx(-5.395)
    assert len(loss.get_lines()) == 2


def test_several_runs_differ_in_marker_and_dashes_too(make_run: MakeRun) -> None:
    runs = find_runs([make_run(f"run{beta}", n_steps=10, beta=beta) for beta in range(1, 10)])
    loss = training_figure(runs, "preference").axes[0]
    looks = {
        (line.get_color(), line.get_marker(), str(line.get_linestyle())) for line in loss.lines
    }
    assert len(loss.lines) == len(looks) == 9
    assert [text.get_text() for text in loss.figure.legends[0].texts] == [r.name for r in runs]
    without_colour = {(marker, style) for _, marker, style in looks}
    assert len(without_colour) == 9


@pytest.mark.parametrize(("n_settings", "columns"), [(0, 3), (2, 2), (4, 1), (20, 1)])
def test_names_in_the_legend_stay_inside_the_figure(
    make_run: MakeRun, n_settings: int, columns: int
) -> None:
    runs = find_runs([make_run(f"run{beta}", n_steps=10, beta=beta) for beta in (1, 2, 3)])
    runs = [
        replace(run, name=f"{n} " + "weight_decay=1.0 " * n_settings) for n, run in enumerate(runs)
    ]
    figure = training_figure(runs, "preference")
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert legend._ncols == columns


def test_supervised_stage_has_no_negatives_and_no_margin(make_run: MakeRun) -> None:
    runs = find_runs([make_run("run", n_steps=20)])
    shown = panels(training_figure(runs, "sft"))
    assert len(shown) == 2 and "margin" not in "".join(shown)
    assert panels(training_figure(runs, "preference", "hit@5")).keys() >= {"validation hit@5"}


def test_stage_without_steps_is_an_error(make_run: MakeRun) -> None:
    with pytest.raises(DataError, match="--stage=sft"):
        training_figure(find_runs([make_run("run")]), "preference")
