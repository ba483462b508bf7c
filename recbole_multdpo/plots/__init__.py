"""Figures from run folders: `python -m recbole_multdpo.plots --help`.

Figures are drawn from the files of finished runs, as PNG and PDF (SVG on demand). Colours suit
colour-blind readers; line styles and markers work without colour. Needs matplotlib (the extra
`plots`).
"""
