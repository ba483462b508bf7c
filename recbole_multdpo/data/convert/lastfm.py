"""Converter of Last-FM (HetRec 2011), whole or with CoLaKG's split, with artists by name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.parts import Pair, benchmark, list_rows, write_parts
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import Reject, find_file, find_files, text_lines
from recbole_multdpo.data.convert.stored_rows import StoredRows, add_filter_arguments
from recbole_multdpo.data.convert.tables import Layout, table_rows
from recbole_multdpo.errors import DataError

HELP = "Last-FM of HetRec 2011: artists.dat, and user_artists.dat or CoLaKG's train.txt, test.txt"

_TABS = Layout("\t", quoted=False, detect=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for filtering pairs; none of them applies to CoLaKG's split."""
    add_filter_arguments(parser, k_core=1)


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    artists = find_file(options.input, ["artists.dat"], need="the artists' names")
    parts = {part: find_files(options.input, [f"{part}.txt"]) for part in ("train", "test")}
    if all(parts.values()):
        if options.k_core != 1:
            raise DataError(
                "--k-core: CoLaKG's files are split already, and have a core of their own"
            )
        ids = _numbers(options.input, "item_map.txt", folder.reject)
        pairs = {part: _pairs(files[0], ids, folder) for part, files in parts.items()}
        n_users, wanted = write_parts(folder, pairs)
        split, columns, sources = (
            benchmark(parts),
            ["user_id", "item_id"],
            ["train.txt", "test.txt"],
        )
    else:
        plays = find_file(options.input, ["user_artists.dat"], need="who listened to whom")
        rows = StoredRows(folder, options.k_core)
        for line, (user, artist) in table_rows(plays, ["userID", "artistID"], folder.reject, _TABS):
            if user and artist:
                rows.add(safe_id(user), safe_id(artist))
            else:
                folder.reject(plays.name, line, "empty id", [user, artist])
        rows.keep(options.repeats)
        columns, wanted, split = rows.write(), rows.kept_items(), ""
        n_users, sources = rows.numbers["n_users"], [plays.name]
    write_items(folder, artists, _artists(artists, folder.reject), ["title"], wanted)
    return folder.finish(
        properties=property_file(
            folder,
            f"Last-FM, {n_users:,} users, {folder.rows['item']:,} artists",
            columns,
            split=split,
        ),
        text_field="title",
        year_field=None,
        report={"sources": [*sources, artists.name]},
    )


def _artists(path: Path, reject: Reject) -> Iterator[ItemRow]:
    for line, (artist, name) in table_rows(path, ["id", "name"], reject, _TABS):
        yield line, safe_id(artist), [name]


def _numbers(folder: Path, name: str, reject: Reject) -> dict[str, str]:
    """HetRec's id of each number in CoLaKG's files: lines `id number`."""
    path = find_file(folder, [name], need="HetRec's ids of the numbers in train.txt and test.txt")
    lines = (text.split() for _, text in text_lines(path, reject))
    return {fields[1]: fields[0] for fields in lines if len(fields) == 2}


def _pairs(path: Path, ids: dict[str, str], folder: DatasetFolder) -> Iterator[Pair]:
    for line, user, items in list_rows(path, folder.reject):
        for place, item in enumerate(items):
            if item in ids:
                yield user, ids[item], str(place)
            else:
                folder.reject(path.name, line, "item that item_map.txt lacks", item)
