"""Draw the data flow of a run as SVG.

The boxes lie on a grid; each names the module that does the work, and a test checks that it exists.
The SVG is written without a plotting library, so that the file is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

BOX_WIDTH, BOX_HEIGHT = 196, 74
COLUMN, ROW = 252, 132  # from one box to the next
MARGIN = 24


@dataclass(frozen=True)
class Box:
    """A step: position on the grid, name, description and module."""

    column: float
    row: float
    title: str
    text: str
    module: str = ""

    @property
    def left(self) -> float:
        return MARGIN + self.column * COLUMN

    @property
    def top(self) -> float:
        return MARGIN + self.row * ROW


BOXES = {
    "files": Box(0, 0, "atomic files", ".inter  .item  .user", "data/convert/"),
    "dataset": Box(1, 0, "dataset", "split, item texts", "data/dataset.py"),
    "sampler": Box(2, 0, "set-wise sampler", "history | targets | negatives", "data/sampler.py"),
    "batch": Box(3, 0, "batch", "prompt + candidates, levels", "data/batch.py"),
    "policy": Box(2, 1, "policy and reference", "adapter on and off, or a copy", "model/llmrec.py"),
    "scorer": Box(3, 1, "packed scorer", "a prompt is computed once", "scoring/packed.py"),
    "loss": Box(3, 2, "loss", "SFT, then Mult-DPO or another", "losses/preference.py"),
    "trainer": Box(2, 2, "trainer", "steps, validation, checkpoints", "training/trainer.py"),
    "recbole": Box(1, 1, "RecBole's models", "EASE, LightGCN, BPR, ...", ""),
    "ranker": Box(1, 2, "ranker", "exact top K in the title trie", "ranking/exact.py"),
    "evaluator": Box(0, 1, "RecBole's evaluator", "full catalogue, every user", "runs/per_user.py"),
    "result": Box(0, 2, "run folder", "result.json, tables, figures", "runs/folder.py"),
}


@dataclass(frozen=True)
class Arrow:
    """A flow from a side of one box to a side of another."""

    start: str
    side: str
    end: str
    end_side: str
    label: str = ""


ARROWS = (
    Arrow("files", "right", "dataset", "left"),
    Arrow("dataset", "right", "sampler", "left", "train"),
    Arrow("sampler", "right", "batch", "left"),
    Arrow("batch", "bottom", "scorer", "top", "ids [B, P], candidates [B, C]"),
    Arrow("policy", "right", "scorer", "left", "weights"),
    Arrow("scorer", "bottom", "loss", "top", "log π of every item [B, C]"),
    Arrow("loss", "left", "trainer", "right", "loss [B]"),
    Arrow("trainer", "top", "policy", "bottom", "gradient step"),
    Arrow("trainer", "left", "ranker", "right", "policy"),
    Arrow("dataset", "bottom", "recbole", "top", "same split"),
    Arrow("recbole", "left", "evaluator", "right"),
    Arrow("ranker", "left", "evaluator", "right"),
    Arrow("evaluator", "bottom", "result", "top"),
)


def data_flow_svg() -> str:
    """The picture as SVG."""
    width = max(box.left for box in BOXES.values()) + BOX_WIDTH + MARGIN
    height = max(box.top for box in BOXES.values()) + BOX_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" font-family="sans-serif">',
        "<title>How data flows through a run</title>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
        *(_box(box) for box in BOXES.values()),
        *(_arrow(arrow) for arrow in ARROWS),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    middle = box.left + BOX_WIDTH / 2
    dashes = "" if box.module else ' stroke-dasharray="5 3"'
    lines = [(22, 15, "bold", box.title), (42, 12, "normal", box.text)]
    texts = [_text(middle, box.top + y, size, escape(t), w) for y, size, w, t in lines]
    module = _text(middle, box.top + 61, 11, escape(box.module), "normal", "monospace")
    return (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
        f'rx="6" fill="#f4f4f4" stroke="black"{dashes}/>' + "".join(texts) + module
    )


def _arrow(arrow: Arrow) -> str:
    x1, y1 = _side(BOXES[arrow.start], arrow.side)
    x2, y2 = _side(BOXES[arrow.end], arrow.end_side)
    if y1 == y2 or x1 == x2:
        path = f"M{x1:g} {y1:g}L{x2:g} {y2:g}"
    else:  # along, across, along
        middle = (x1 + x2) / 2
        path = f"M{x1:g} {y1:g}H{middle:g}V{y2:g}H{x2:g}"
    line = f'<path d="{path}" fill="none" stroke="black" marker-end="url(#head)"/>'
    if not arrow.label:
        return line
    if x1 == x2:
        place = (x1 - 8, (y1 + y2) / 2 + 4, "end")
    else:
        place = ((x1 + x2) / 2, y1 - 6, "middle")
    return line + _text(place[0], place[1], 11, escape(arrow.label), anchor=place[2])


def _side(box: Box, side: str) -> tuple[float, float]:
    x = {"left": box.left, "right": box.left + BOX_WIDTH}.get(side, box.left + BOX_WIDTH / 2)
    y = {"top": box.top, "bottom": box.top + BOX_HEIGHT}.get(side, box.top + BOX_HEIGHT / 2)
    return x, y


def _text(
    x: float,
    y: float,
    size: int,
    text: str,
    weight: str = "normal",
    family: str = "",
    anchor: str = "middle",
) -> str:
    font = f' font-family="{family}"' if family else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}"{font} '
        f'text-anchor="{anchor}">{text}</text>'
    )
