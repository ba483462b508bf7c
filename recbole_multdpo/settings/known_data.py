"""The data sets that are known by name, and the sentences about one that is missing."""

from __future__ import annotations

from pathlib import Path

from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.layers import (
    RECBOLE_DATA_PATH,
    RECBOLE_DATA_SET,
    dataset_file,
    hosted_data_sets,
    properties_folder,
)
from recbole_multdpo.settings.messages import nearest

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
    "ml-20m": _MOVIELENS.replace("{zip}", "ml-20m.zip"),
    "amazon": (
        "Get reviews and metadata of a category from https://amazon-reviews-2023.github.io/ (or "
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html for 2014), put them into one "
        f"folder, and run\n  {_CONVERT} amazon --input <that folder> --output {{folder}}"
    ),
    "amazon-beauty-5core": (
        "Get sequential_data.txt, datamaps.json and meta.json.gz of P5's Beauty "
        "(https://github.com/jeykigung/P5), put them into one folder, and run\n"
        f"  {_CONVERT} sequences --input <that folder> --output {{folder}}"
    ),
    "lastfm": (
        "Get hetrec2011-lastfm-2k.zip from https://grouplens.org/datasets/hetrec-2011/, unpack it, "
        f"and run\n  {_CONVERT} lastfm --input <the unpacked folder> --output {{folder}}"
    ),
    "lastfm-colakg": (
        "Get train.txt, test.txt, item_map.txt and user_map.txt of data/lastfm in "
        "https://github.com/ziqiangcui/CoLaKG, and artists.dat of HetRec's Last-FM "
        "(https://grouplens.org/datasets/hetrec-2011/), put them into one folder, and run\n"
        f"  {_CONVERT} lastfm --input <that folder> --output {{folder}}"
    ),
    "steam": (
        "Get steam_reviews.json.gz and steam_games.json.gz from "
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data, put them into one folder, and "
        f"run\n  {_CONVERT} steam --input <that folder> --output {{folder}}"
    ),
    "mind": (
        "Get MINDsmall or MINDlarge from https://msnews.github.io/ (its terms apply), unpack it, "
        f"and run\n  {_CONVERT} mind --input <the unpacked folder> --output {{folder}}"
    ),
    "yelp": (
        "Get yelp_academic_dataset_review.json and yelp_academic_dataset_business.json from "
        "https://www.yelp.com/dataset (its terms apply), put them into one folder, and run\n"
        f"  {_CONVERT} table --input <that folder> "
        "--interactions yelp_academic_dataset_review.json --user user_id --item business_id "
        "--rating stars --time date --items yelp_academic_dataset_business.json --text name "
        "--k-core 5 --output {folder}"
    ),
    "book-crossing": (
        "Get BX-Book-Ratings.csv and BX-Books.csv from "
        "https://www.kaggle.com/datasets/ruchi798/bookcrossing-dataset, put them into one folder, "
        f"and run\n  {_CONVERT} table --input <that folder> --interactions BX-Book-Ratings.csv "
        "--user User-ID --item ISBN --rating Book-Rating --items BX-Books.csv "
        "--text Book-Title Book-Author --separator ';' --escape '\\' --encoding latin-1 "
        "--k-core 5 --output {folder}"
    ),
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


def described_data_sets() -> list[str]:
    """Names of the data sets, or families of them, that have a property file of ours."""
    return sorted(file.stem for file in (properties_folder() / "dataset").glob("*.yaml"))


def undescribed_data_sets() -> list[str]:
    """Names of the data sets that RecBole downloads and whose columns no property file names."""
    return sorted(name for name in hosted_data_sets() if dataset_file(name) is None)


def present_data_sets(data_path: Path) -> list[str]:
    """Names of the folders in `data_path` that hold a data set."""
    try:
        folders = [each for each in data_path.iterdir() if each.is_dir()]
    except OSError:
        return []
    return sorted(each.name for each in folders if any(each.glob(f"{each.name}.*inter")))


def how_to_get(name: str, folder: Path) -> str:
    """Instructions for getting a data set that is missing in its folder."""
    described = dataset_file(name)
    family = "" if described is None else described.stem
    text = HOW_TO_GET.get(name) or HOW_TO_GET.get(family, _ANY)
    return text.replace("{folder}", str(folder)).replace("{name}", name)


def missing_folder(name: str, folder: Path) -> str:
    """Sentences about a data set without a folder, with the nearest name that is known or there."""
    is_one = name in HOW_TO_GET.keys() - _families()
    hint = "" if is_one else _nearest(name, present_data_sets(folder.parent))
    if hint:
        return (
            f"there is no data set {name}{hint} For one of your own, there is no folder {folder}. "
            f"{how_to_get(name, folder)}"
        )
    return f"there is no folder {folder}. {how_to_get(name, folder)}"


def _nearest(name: str, present: list[str]) -> str:
    """`; did you mean ml-100k?`: case, hyphens and underscores apart, or similar, or a family's."""
    hosted = hosted_data_sets()
    known = {*HOW_TO_GET, *described_data_sets(), *present, *hosted} - _families()
    same = [each for each in known if _letters(each) == _letters(name)]
    members = sorted(each for each in hosted if each.startswith(name.lower() + "-"))
    if same or not members:
        return nearest(name, same or known)
    more = f" or {len(members) - 3} more" if len(members) > 3 else ""
    return f"; did you mean {' or '.join(members[:3])}{more}?"


def _families() -> set[str]:
    """Names of property files that describe several data sets, and none of that name."""
    described = set(described_data_sets()) - hosted_data_sets()
    return {name for name in described if any(h.startswith(name + "-") for h in hosted_data_sets())}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


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
