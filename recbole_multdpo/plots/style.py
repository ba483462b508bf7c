"""Style of all figures, and saving them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_multdpo.errors import ConfigError, MultDPOError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
# Okabe and Ito's palette for colour-blind readers, without its yellow, from dark to light (the
# order survives grey prints).
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# one more than colours, so that a repeated colour gets another marker
_MARKERS = ("o", "s", "^", "D", "v", "X", "P", "*")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.0,  # long enough to show the dashes
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, required by publishers
    "svg.hashsalt": "recbole_multdpo",  # reproducible files
}


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a figure's `number`-th line (from 0), as matplotlib's arguments.

    Any one of the three distinguishes neighbouring lines.
    """
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number % len(_DASHES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(_SETTINGS)
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write `stem.png`, `stem.pdf` ...; returns the files.

    Raises:
        ConfigError: an unknown format.
        MultDPOError: a file cannot be written.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ConfigError(
            f"--formats={','.join(formats)}: must be some of {', '.join(FORMATS)}, comma-separated."
        )
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    # without a date, for reproducible files
    dates: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, suffix in zip(files, formats, strict=True):
            figure.savefig(file, metadata=dates.get(suffix))
    except OSError as error:
        for file in files:  # all formats or none
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise MultDPOError(f"cannot write {error.filename}: {error.strerror}.") from error
    return files
