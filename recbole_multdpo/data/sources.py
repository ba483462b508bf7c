"""Sources of data sets, and the error messages for a data set that is missing.

RecBole downloads the data sets that it hosts. For any other missing set, and for a failed download,
a `DataError` names the files to get and the converter to run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import recbole
from recbole.config import Config

from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.text import read_settings_file

_CONVERT = "python -m recbole_multdpo.data.convert"
_MOVIELENS = (
    "Get {zip} from https://grouplens.org/datasets/movielens/, unpack it, and run\n"
    f"  {_CONVERT} movielens --input <the unpacked folder> --output {{folder}}"
)
_CIKM = (
    "Get train.jsonl, valid.jsonl, test.jsonl, entity2id.json and item_ids.json of {hub} from "
    "https://huggingface.co/datasets/ZhankuiHe/{hub} (research use; read its terms), put them "
    "into one folder, and run\n"
    f"  {_CONVERT} crs --input <that folder> --output {{folder}}"
)
HOW_TO_GET = {
    "ml-1m": _MOVIELENS.replace("{zip}", "ml-1m.zip"),
    "ml-10m": _MOVIELENS.replace("{zip}", "ml-10m.zip"),
    "goodreads": (
        "Get goodreads_interactions*.json.gz and goodreads_books*.json.gz, of all books or of one "
        "genre, from https://cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html, put them into one "
        f"folder, and run\n  {_CONVERT} goodreads --input <that folder> --output {{folder}}"
    ),
    "goodreads-sprec": (
        "Get train.json and id2name.json of the Goodreads sample that was released with SPRec "
        "(https://arxiv.org/abs/2412.09243), put them into one folder, and run\n"
        f"  {_CONVERT} titles-jsonl --input <that folder> --output {{folder}} "
        "--prompt-template books"
    ),
    "redial": _CIKM.replace("{hub}", "redial_cikm"),
    "reddit-v2": (
        "Get the processed Reddit-V2 that https://github.com/yaochenzhu/Rank-GRPO links to "
        "(research use; read its terms), with the folders train, validation and test and the "
        "catalogue as gt_catalog.json beside them, and run\n"
        f"  {_CONVERT} crs --input <that folder> --output {{folder}}"
    ),
}
_ANY = (
    "Put RecBole's atomic files there, set --data_path to the folder that holds {name}/, or "
    f"convert raw files: {_CONVERT} --help"
)


def hosted_by_recbole(name: str) -> bool:
    """True if RecBole has a download address for the data set."""
    file = Path(recbole.__file__).parent / "properties/dataset/url.yaml"
    return name in read_settings_file(file)


def how_to_get(config: Config) -> str:
    """Instructions for getting a missing data set, with its folder filled in."""
    text = HOW_TO_GET.get(config["dataset"], _ANY)
    return text.replace("{folder}", str(config["data_path"])).replace("{name}", config["dataset"])


@contextmanager
def explaining_missing_files(config: Config) -> Iterator[None]:
    """Context manager around loading a data set: missing files raise a `DataError` with a remedy.

    Raises:
        DataError: the folder lacks interaction files; or it does not exist, and RecBole has no
            address for it or the download fails. Files left by a failed download are removed.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    parts = config["benchmark_filename"]
    files = [f"{name}.{part}.inter" for part in parts] if parts else [f"{name}.inter"]
    missing = [file for file in files if not (folder / file).is_file()]
    if folder.exists() and missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}. {how_to_get(config)}")
    if missing and not hosted_by_recbole(name):
        raise DataError(f"there is no folder {folder}. {how_to_get(config)}")
    try:
        yield
    except (OSError, RuntimeError, EOFError, BadZipFile, SystemExit) as error:
        if not missing or (folder / files[0]).is_file():
            raise  # the data set exists or was downloaded: the error has another cause
        shutil.rmtree(folder, ignore_errors=True)  # an empty folder would block the next attempt
        raise DataError(
            f"{name} could not be downloaded ({error or 'declined'}). {how_to_get(config)}"
        ) from error
