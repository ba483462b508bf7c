"""The command line of the figures: `python -m recbole_multdpo.plots FIGURE FOLDER ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_multdpo.errors import MultDPOError, install_extra, system_error
from recbole_multdpo.plots import bounds, results, training, tuning
from recbole_multdpo.plots.runs import Run, data_sets, find_runs
from recbole_multdpo.plots.style import save
from recbole_multdpo.runtime.shown_text import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT_FIGURES = {
    "bars": (results.bars_figure, "a metric of every system, as bars"),
    "cutoffs": (results.cutoffs_figure, "a metric against k, the length of the list"),
    "cost": (results.cost_figure, "a metric against the seconds of training"),
}


def main(arguments: list[str] | None = None) -> int:
    """Draw a figure; returns the exit status, 2 for a user error."""
    parsed = _parser().parse_args(arguments)
    try:
        figure = _draw(parsed)
        stem = parsed.output or parsed.folders[0] / parsed.figure
        files = save(figure, stem, parsed.formats.split(","))
    except (MultDPOError, ModuleNotFoundError) as error:
        hint = f" Install it by: {install_extra('plots')}"
        show(f"error: {error}{'' if isinstance(error, MultDPOError) else hint}", sys.stderr)
        return 2
    except OSError as error:
        show(f"error: {system_error(error)}", sys.stderr)
        return 2
    show("\n".join(map(str, files)))
    return 0


def _draw(parsed: argparse.Namespace) -> Figure:
    if parsed.figure == "bounds":
        rows = bounds.read_bounds(parsed.folders[0], parsed.preference, parsed.max_positives)
        return bounds.bounds_figure(rows, data_sets(_runs_in(parsed.folders[0])))
    if parsed.figure == "tuning":
        rows = tuning.read_tuning(parsed.folders[0], parsed.setting, parsed.metric)
        data = data_sets(_runs_in(parsed.folders[0]))
        return tuning.tuning_figure(rows, parsed.setting, parsed.metric, data)
    runs = find_runs(parsed.folders)
    if parsed.figure == "training":
        return training.training_figure(runs, parsed.stage, parsed.metric)
    draw, _ = RESULT_FIGURES[parsed.figure]
    tests = results.read_tests(runs)
    if parsed.systems is not None:
        tests = results.choose_systems(tests, [name.strip() for name in parsed.systems.split(",")])
    return draw(tests, parsed.metric)


def _runs_in(folder: Path) -> list[Run]:
    """The runs of a folder whose table is drawn; none where only the table was kept."""
    return find_runs([folder]) if any(folder.glob("**/config.yaml")) else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recbole_multdpo.plots",
        description="Figures from run folders. A comparison's folder means all its runs.",
    )
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    line = figures.add_parser(
        "training", help="loss, validation, reward margin and log-probabilities by step"
    )
    line.add_argument(
        "--stage", choices=list(training.STAGES), default="preference", help="default: preference"
    )
    line.add_argument("--metric", help="of the validations; default: valid_metric of the run")
    _add_folders(line, "folders of LLMRec runs")
    for name, (_, text) in RESULT_FIGURES.items():
        figure = figures.add_parser(name, help=f"{text}, on the test set")
        figure.add_argument("--metric", default="NDCG@10", help="default: NDCG@10")
        figure.add_argument(
            "--systems", metavar="NAME,NAME", help="only these, by their names in the figure"
        )
        _add_folders(figure, "folders of finished runs; runs of one system are averaged over seeds")
    tuned = figures.add_parser("tuning", help="validation against a setting, optimum marked")
    tuned.add_argument("--setting", default="beta", help="default: beta")
    tuned.add_argument("--metric", default="NDCG@10", help="default: NDCG@10")
    _add_folders(tuned, "folder of a comparison with --tune", number=1)
    bound = figures.add_parser("bounds", help="losses, their gap and its bounds")
    bound.add_argument(
        "--preference", choices=["sets", "levels"], default="sets", help="two sets, or all levels"
    )
    bound.add_argument(
        "--max_positives", type=int, help="only examples with at most so many positives"
    )
    _add_folders(bound, "folder of a run with --track_bounds=True", number=1)
    return parser


def _add_folders(parser: argparse.ArgumentParser, text: str, number: int | str = "+") -> None:
    parser.add_argument("folders", type=Path, nargs=number, metavar="FOLDER", help=text)
    parser.add_argument(
        "--output", type=Path, metavar="NAME",
        help="file name without its ending; default: the figure's name in the first folder",
    )  # fmt: skip
    parser.add_argument(
        "--formats", default="png,pdf", help="some of png,pdf,svg; default: png,pdf"
    )


if __name__ == "__main__":
    sys.exit(main())
