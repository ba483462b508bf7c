"""Style of all figures, and saving them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from recbole_multdpo.comparison.colours import colour
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runtime.shown_text import mathtext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
_LETTER = 0.075  # inches of a letter of a legend, the widest apart
_HANDLE = 10  # the line before a name, in letters
# eight markers and five dashes are forty pairs, for prints in black and white
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

    Any one of the three distinguishes neighbouring lines. Colours do not repeat.
    """
    return {
        "color": colour(number),
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number % len(_DASHES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(_SETTINGS)
    return Figure(figsize=(width, height), layout="constrained")


def set_title(figure: Figure, data_sets: Iterable[str], text: str) -> None:
    """Write the names of the data sets, and a text, above a figure."""
    names = ", ".join(dict.fromkeys(data_sets))
    title = mathtext(f"{names}: {text}" if names else text)
    if len(figure.axes) == 1:  # beside the legend of the figure, not above it
        figure.axes[0].set_title(title, fontsize=10, loc="left")
    else:
        figure.suptitle(title, fontsize=10)


def set_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Write a legend below a figure, in as many columns as its width takes; long names are cut."""
    letters = int(figure.get_figwidth() / _LETTER)
    names = [shorten(name, letters - _HANDLE, placeholder=" ...") for name in names]
    columns = letters // (max(map(len, names), default=0) + _HANDLE)
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, min(columns, 3)))


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
