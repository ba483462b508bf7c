"""The `.item` file of a converted data set: one row of texts for each item."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, id_problem, text_field

ItemRow = tuple[int, str, Sequence[str]]  # line, id, texts


def write_items(
    folder: DatasetFolder,
    path: Path | None,
    rows: Iterable[ItemRow],
    columns: Sequence[str],
    wanted: Sequence[str],
    others: bool = False,
) -> None:
    """Write the `.item` file.

    Of several rows of an item the first one with a title counts, and others with other texts are
    rejected. An item without a row gets empty texts; a run calls it by its id.

    Args:
        folder: the data set's folder.
        path: the raw file, for the reject file.
        rows: items with their texts.
        columns: names of the texts' columns, the main one first.
        wanted: items to write, in this order, after which come
        others: if True, those of `rows` that are not wanted.
    """
    known: dict[str, Sequence[str]] = {}
    name = "" if path is None else path.name
    is_wanted: Collection[str] = set(wanted)
    for line, item, texts in rows:
        if item not in is_wanted and not others:
            continue
        if problem := id_problem(item):
            folder.reject(name, line, problem, [item, *texts])
            continue
        fields = [text_field(folder.decoded(text)) for text in texts]
        before = known.setdefault(item, fields)
        if not before[0]:
            known[item] = fields
        elif fields != before:
            folder.reject(name, line, "item listed twice with other texts", [item, *texts])
    table = folder.table("item", ["item_id:token", *(f"{column}:token_seq" for column in columns)])
    nothing = [""] * len(columns)
    for item in dict.fromkeys([*wanted, *known]):
        table.write(item, *known.get(item, nothing))
    folder.counts["items_without_a_row"] = sum(item not in known for item in wanted)
    n_untitled = sum(not known.get(item, nothing)[0].strip() for item in wanted)
    if n_untitled:
        folder.notes.append(
            f"{n_untitled:,} of {len(wanted):,} items have no {columns[0]}; a run calls them by "
            "their ids"
        )
