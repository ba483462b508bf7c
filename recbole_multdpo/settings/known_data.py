"""The data sets that are known by name, and the sentences about one that is missing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.layers import RECBOLE_DATA_PATH, RECBOLE_DATA_SET, properties_folder
from recbole_multdpo.settings.messages import nearest
from recbole_multdpo.settings.recbole_code import recbole_folder
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


@cache
def hosted_data_sets() -> frozenset[str]:
    """Names of the data sets that RecBole downloads."""
    return frozenset(read_settings_file(recbole_folder() / "properties/dataset/url.yaml"))


def described_data_sets() -> list[str]:
    """Names of the data sets whose columns and protocol are in a property file of ours."""
    return sorted(file.stem for file in (properties_folder() / "dataset").glob("*.yaml"))


def present_data_sets(data_path: Path) -> list[str]:
    """Names of the folders in `data_path` that hold a data set."""
    try:
        folders = [each for each in data_path.iterdir() if each.is_dir()]
    except OSError:
        return []
    return sorted(each.name for each in folders if any(each.glob(f"{each.name}.*inter")))


def how_to_get(name: str, folder: Path) -> str:
    """Instructions for getting a data set that is missing in its folder."""
    text = HOW_TO_GET.get(name, _ANY)
    return text.replace("{folder}", str(folder)).replace("{name}", name)


def missing_folder(name: str, folder: Path) -> str:
    """Sentences about a data set without a folder, with the nearest name that is known or there."""
    present = present_data_sets(folder.parent)
    known = {*HOW_TO_GET, *described_data_sets(), *present, *hosted_data_sets()}
    hint = "" if name in HOW_TO_GET else nearest(name, known)
    if hint:
        return (
            f"there is no data set {name}{hint} For one of your own, there is no folder {folder}. "
            f"{how_to_get(name, folder)}"
        )
    return f"there is no folder {folder}. {how_to_get(name, folder)}"


def check_data_set(name: str, data_path: str | None) -> None:
    """Refuse a data set that has no folder and that RecBole cannot download.

    Args:
        name: the data set.
        data_path: the setting; None for its default, and for the data set that comes with RecBole.

    Raises:
        DataError: with the nearest name, or how to get it.
    """
    if data_path is None and name == RECBOLE_DATA_SET:
        return
    folder = Path(data_path or RECBOLE_DATA_PATH) / name
    if not folder.exists() and name not in hosted_data_sets():
        raise DataError(missing_folder(name, folder))
