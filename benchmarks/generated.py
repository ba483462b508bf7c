"""Generate a data set of any size in the shape of ml-10m, as RecBole's atomic files.

Users rate in half stars. The popularity of items follows a Zipf law, the number of ratings per user
is log-normal, and users prefer one of a few kinds of items, so that models can learn. Titles come
from a MovieLens `movies.csv`, or are made of words of the ml-100k titles shipped with RecBole.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import recbole

from recbole_multdpo.errors import DataError

NAME = "generated"
N_KINDS = 20
SETTINGS = [
    f"--dataset={NAME}",
    "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp'], 'item': ['item_id']}",
    "--val_interval={'rating': '[4,inf)'}",
    "--item_text_fields=[movie_title]",
    "--item_year_field=release_year",
    "--prompt_template=movies",
]


def real_titles(path: Path) -> list[str]:
    """Read the `title` column of a MovieLens `movies.csv`, plain or gzipped, with the years."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        return [row["title"] for row in csv.DictReader(io.StringIO(text))]
    except (OSError, KeyError) as error:
        raise DataError(f"--titles={path}: {error!r}; name a MovieLens movies.csv") from error


def made_up_titles(n_items: int) -> list[str]:
    """Make titles of one to five words of ml-100k's titles, with a year."""
    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    words = np.array(sorted({word for row in rows for word in row[1].split()}))
    rng = np.random.default_rng(0)
    return [
        f"{' '.join(rng.choice(words, size=rng.integers(1, 6)))} ({rng.integers(1920, 2010)})"
        for _ in range(n_items)
    ]


def write(folder: Path, titles: list[str], n_users: int, n_ratings: int) -> Path:
    """Write `generated/generated.inter` and `.item` in `folder` and return `folder`.

    Prints the number of ratings: slightly fewer than `n_ratings`, as very active users draw popular
    items repeatedly.
    """
    target = folder / NAME
    target.mkdir(parents=True)
    with (target / f"{NAME}.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\tmovie_title:token_seq\trelease_year:token\n")
        for item, title in enumerate(titles):
            name, year = split_year(title)
            file.write(f"{item}\t{name}\t{year}\n")

    rng = np.random.default_rng(0)
    activity = rng.lognormal(sigma=1.2, size=n_users)
    counts = np.maximum(rng.multinomial(n_ratings, activity / activity.sum()), 1)
    popularity = 1 / np.arange(10, 10 + len(titles)) ** 0.9
    kind_of = rng.integers(N_KINDS, size=len(titles))
    n_written = 0
    with (target / f"{NAME}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        for first in range(0, n_users, 1000):
            # twice as many as needed, because a user rates an item once
            some = np.arange(first, min(first + 1000, n_users))
            users = np.repeat(some, 2 * counts[some])
            favourite = rng.integers(N_KINDS, size=n_users)[users]
            items = _draw(rng, popularity, kind_of, favourite)
            likes = (kind_of[items] == favourite).astype(int)
            stars = np.clip(rng.normal(3.3 + likes, 1.0, len(items)), 0.5, 5)
            times = rng.integers(800_000_000, 1_230_000_000, len(items))
            _, kept = np.unique(users * len(titles) + items, return_index=True)
            kept = rng.permutation(kept)
            kept = kept[np.argsort(users[kept], kind="stable")]
            of_user = np.bincount(users[kept] - first, minlength=len(some))
            place = np.arange(len(kept)) - np.repeat(of_user.cumsum() - of_user, of_user)
            kept = kept[place < counts[users[kept]]]
            n_written += len(kept)
            columns = (users[kept], items[kept], np.round(2 * stars[kept]) / 2, times[kept])
            file.writelines(
                f"{user}\t{item}\t{rating}\t{when}\n"
                for user, item, rating, when in zip(*columns, strict=True)
            )
    print(f"generated {n_users:,} users, {len(titles):,} items, {n_written:,} ratings")
    return folder


def _draw(
    rng: np.random.Generator, popularity: np.ndarray, kind_of: np.ndarray, favourite: np.ndarray
) -> np.ndarray:
    """Draw one item per entry of `favourite` by popularity; every second one is of that kind."""
    items = rng.choice(len(popularity), size=len(favourite), p=popularity / popularity.sum())
    for kind in range(N_KINDS):
        rows = np.flatnonzero((favourite == kind) & (rng.random(len(favourite)) < 0.5))
        of_kind = np.flatnonzero(kind_of == kind)
        weights = popularity[of_kind] / popularity[of_kind].sum()
        items[rows] = rng.choice(of_kind, size=len(rows), p=weights)
    return items


def split_year(title: str) -> tuple[str, str]:
    """Split 'Toy Story (1995)' into ('Toy Story', '1995'); the year is empty if absent."""
    title = " ".join(title.split())
    if title.endswith(")") and title[-5:-1].isdigit() and title[:-6].strip():
        return title[:-6].strip(), title[-5:-1]
    return title, ""
