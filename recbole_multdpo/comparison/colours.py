"""Colours of systems, the same in the report's page and in figures."""

from __future__ import annotations

import colorsys

# after Okabe and Ito's palette for colour-blind readers; lightness varies, so that neighbours
# differ in a grey print, and each has a contrast of 3 to white at least
_FIRST = ("#000000", "#0072B2", "#D55E00", "#009E73", "#B5508C", "#2F8FCB", "#8C564B", "#B87A00")
_GOLDEN_RATIO = 0.618034  # steps around the circle of hues that never meet again
_LIGHTNESS = (0.22, 0.36, 0.29)


def colour(number: int) -> str:
    """The `number`-th colour (from 0), as `#rrggbb`; no two numbers share one."""
    if number < len(_FIRST):
        return _FIRST[number]
    hue = number * _GOLDEN_RATIO % 1
    parts = colorsys.hls_to_rgb(hue, _LIGHTNESS[number % len(_LIGHTNESS)], 0.6)
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)
