"""The figure of bounds: data, errors, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_multdpo.losses import bounds
from recbole_multdpo.plots.__main__ import main
from recbole_multdpo.plots.bounds import bounds_figure, read_bounds
from recbole_multdpo.training.bounds_log import BoundsLog

pytest.importorskip("matplotlib")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Twenty steps of four examples with one to four positives, the log-ratios growing apart."""
    log = BoundsLog(tmp_path / "bounds.csv")
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([[1] * n + [-1] * (4 - n) + [0] * 5 for n in (1, 2, 3, 4)])
    for step in range(1, 21):
        logps = step / 10 * (levels > 0) + torch.randn(4, 9, generator=generator)
        found = bounds(logps, torch.zeros(4, 9), levels, 1.0)
        log.append(step, ["u1", "u2", "u3", "u4"], "sets", found)
    return tmp_path


def test_command_writes_a_picture_and_a_vector_file(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bounds", str(run_folder)]) == 0
    assert capsys.readouterr().out.split() == [
        str(run_folder / f"bounds.{s}") for s in ("png", "pdf")
    ]
    assert (run_folder / "bounds.png").read_bytes().startswith(b"\x89PNG")
    assert (run_folder / "bounds.pdf").read_bytes().startswith(b"%PDF")


def test_figure_shows_the_means_and_the_gaps_of_several_positives(run_folder: Path) -> None:
    rows = read_bounds(run_folder, "sets", None)
    left, right = bounds_figure(rows).axes
    surrogate, exact = left.get_lines()
    assert (surrogate.get_ydata() > exact.get_ydata()).all()
    assert len(surrogate.get_xdata()) == 20
    assert len(right.collections[0].get_offsets()) == 60  # one positive has no gap
    gap, sorted_upper, corollary = right.get_lines()
    assert (gap.get_ydata() <= sorted_upper.get_ydata()).all()
    assert (sorted_upper.get_ydata() <= corollary.get_ydata()).all()


def test_examples_of_few_positives_only(run_folder: Path) -> None:
    """The paper's Figure 2 has at most three."""
    assert set(read_bounds(run_folder, "sets", 3)["n_positives"]) == {1, 2, 3}
    assert len(bounds_figure(read_bounds(run_folder, "sets", 1)).axes) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preference=levels"], "no row with preference 'levels'"),
        (["--max_positives=0"], "at most 0 positives"),
    ],
)
def test_nothing_to_draw_is_an_error(
    run_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bounds", str(run_folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_run_without_the_file_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bounds", str(tmp_path)]) == 2
    assert "--track_bounds=True" in capsys.readouterr().err
