"""Colours of systems: all different, and visible on white."""

from recbole_multdpo.comparison.colours import colour


def luminance(text: str) -> float:
    """WCAG 2's relative luminance."""
    parts = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_colour_repeats_and_all_have_the_contrast_of_graphics():
    colours = [colour(number) for number in range(60)]
    assert len(set(colours)) == 60
    assert luminance("#FFFFFF") == 1 and luminance("#56B4E9") > 0.35  # a control: too light
    assert all(1.05 / (luminance(text) + 0.05) >= 3 for text in colours)
