"""How all figures look, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_multdpo.errors import ConfigError, MultDPOError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
# Okabe and Ito's palette for colour-blind readers, without its yellow, from dark to light: grey
# prints keep the order.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# one more than there are colours, so that a colour comes back with another marker
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
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "svg.hashsalt": "recbole_multdpo",  # the same file from the same data
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of one line of a figure; any one of them tells it from others."""

    color: str
    marker: str
    linestyle: Any

    @property
    def options(self) -> dict[str, Any]:
        """The three as matplotlib's arguments."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}


def look(number: int) -> Look:
    """The look of the `number`-th line, counted from 0."""
    return Look(
        _COLOURS[number % len(_COLOURS)],
        _MARKERS[number % len(_MARKERS)],
        _DASHES[number % len(_DASHES)],
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
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
    # no date inside, so that the same data give the same file
    dates: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for file, suffix in zip(files, formats, strict=True):
            figure.savefig(file, metadata=dates.get(suffix))
    except OSError as error:
        for file in files:  # half a figure helps nobody
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise MultDPOError(f"cannot write {error.filename}: {error.strerror}.") from error
    return files
