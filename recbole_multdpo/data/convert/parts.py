"""Files of interactions that come split: `train`, `test` and perhaps `valid`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.raw_files import Reject, text_lines

Pair = tuple[str, str, str]  # user, item, place in the user's list


def list_rows(path: Path, reject: Reject) -> Iterable[tuple[int, str, list[str]]]:
    """Yield line, user and items of lines `user item item ...`, separated by spaces or tabs."""
    for line, text in text_lines(path, reject):
        user, *items = text.split()
        yield line, safe_id(user), [safe_id(item) for item in items]


def benchmark(parts: Iterable[str]) -> str:
    """Lines of a property file that name the parts."""
    return (
        f"benchmark_filename: [{', '.join(parts)}]   # parts of the split, one .inter file each\n"
    )


def write_parts(
    folder: DatasetFolder, parts: Mapping[str, Iterable[Pair]], with_places: bool = False
) -> tuple[int, list[str]]:
    """Write `.train.inter` and so on without repeated pairs.

    Args:
        folder: the data set's folder.
        parts: interactions by part.
        with_places: if True, the place in the user's list is the column timestamp.

    Returns:
        The number of users, and the items in the order of their first row.
    """
    users: set[str] = set()
    items: dict[str, None] = {}
    repeated = 0
    for part, pairs in parts.items():
        columns = ["user_id:token", "item_id:token", *(["timestamp:float"] if with_places else [])]
        table = folder.table(f"{part}.inter", columns)
        seen: set[tuple[str, str]] = set()
        for user, item, place in pairs:
            repeated += (user, item) in seen
            if (user, item) not in seen:
                seen.add((user, item))
                users.add(user)
                items.setdefault(item)
                table.write(user, item, *([place] if with_places else []))
    folder.counts |= {"users": len(users), "interactions_repeated": repeated}
    return len(users), list(items)
