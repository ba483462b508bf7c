"""Data sets that RecBole downloads, as files with the headers that were verified for them."""

import pytest

from recbole_multdpo.data.counted_dataset import dataset_class
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.item_text import TextReport
from recbole_multdpo.runs.load import load_dataset
from recbole_multdpo.runs.preflight import check_inputs
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.layers import dataset_file

N_USERS, N_ITEMS, PER_USER = 15, 25, 12

# columns of the .inter and the .item file, and the value of a text column for item 3
FILES = {
    # RUCAIBox/LLMRank, ShirinTahmasebi/LLMRecBench: hosted copies
    "ml-1m": (
        "user_id:token item_id:token rating:float timestamp:float",
        "item_id:token movie_title:token_seq release_year:token genre:token_seq",
    ),
    # converter of RUCAIBox/RecSysDatasets, and the names of other copies
    "ml-10m": (
        "user_id:token item_id:token rating:float timestamp:float",
        "item_id:token movie_name:token_seq release_year:token type:token_seq",
    ),
    "ml-20m": (
        "user_id:token item_id:token rating:float timestamp:float",
        "item_id:token movie_title:token_seq release_year:token class:token_seq",
    ),
    # the converter and freerec agree; the order of columns differs by category
    "amazon-beauty": (
        "user_id:token item_id:token rating:float timestamp:float",
        "item_id:token title:token sales_type:token sales_rank:float categories:token_seq "
        "price:float brand:token",
    ),
    "amazon-video-games-23": (
        "user_id:token item_id:token rating:float timestamp:float parent_asin:token",
        "item_id:token parent_asin:token title:token",
    ),
    "steam-merged": (
        "user_id:token play_hours:float product_id:token timestamp:float",
        "id:token app_name:token title:token genres:token_seq tags:token_seq",
    ),
    "lastfm": (
        "user_id:token artist_id:token weight:float tag_value:token_seq",
        "artist_id:token name:token url:token picture_url:token",
    ),
    "yelp-2022": (
        "user_id:token item_id:token rating:float timestamp:float useful:float review_id:token",
        "item_id:token item_name:token_seq city:token_seq state:token categories:token_seq",
    ),
    "book-crossing": (
        "user_id:token item_id:token rating:float",
        "item_id:token book_title:token_seq book_author:token publication_year:float",
    ),
    "mind-small-train": (
        "user_id:token item_id:token label:float timestamp:float",
        "item_id:token title:token_seq abstract:token_seq category:token",
    ),
    "amazon-beauty-5core": (
        "user_id:token item_id:token timestamp:float",
        "item_id:token title:token_seq",
    ),
}
TITLES = ("title", "app_name", "movie_title", "movie_name", "name", "item_name", "book_title")


def _value(column, item, kind):
    if column in TITLES:
        return f'"Title" of {item}, &amp; more' if item % 2 else f"Title {item}"
    return "2.5" if kind == "float" else f"w{item % 3}"


@pytest.fixture(params=FILES)
def hosted(request, tmp_path):
    """The folder of a data set with the columns of its hosted files."""
    name, folder = request.param, tmp_path / request.param
    folder.mkdir()
    inter, items = (header.split() for header in FILES[name])
    rows = ["\t".join(inter)]
    for user in range(N_USERS):
        for place in range(PER_USER):
            item = (2 * user + place) % N_ITEMS
            values = {
                "user_id": f"u{user}",
                "rating": ("9" if name == "book-crossing" else "5") if place else "1",
                "label": str(float(place > 0)),
                "timestamp": str(1_400_000_000 + place),
            }
            values |= dict.fromkeys(("item_id", "product_id", "artist_id"), f"i{item}")
            rows.append("\t".join(values.get(c.split(":")[0], "0.5") for c in inter))
    (folder / f"{name}.inter").write_text("\n".join(rows) + "\n")
    rows = ["\t".join(items)]
    for item in range(N_ITEMS):
        columns = [column.split(":") for column in items]
        rest = [_value(column, item, kind) for column, kind in columns[1:]]
        rows.append("\t".join([f"i{item}", *rest]))
    (folder / f"{name}.item").write_text("\n".join(rows) + "\n")
    return name, tmp_path


@pytest.mark.parametrize("model", ["LLMRec", "EASE", "SASRec"])
def test_the_settings_fit_the_files(hosted, model):
    name, parent = hosted
    more = ["--eval_args={'order': 'TO'}"] if model == "SASRec" else []
    if model == "SASRec" and "timestamp" not in FILES[name][0]:
        pytest.skip("the data set has no times")
    config = load_config([f"--model={model}", f"--dataset={name}", f"--data_path={parent}", *more])
    check_inputs(config)
    kind = LLMRecDataset if model == "LLMRec" else dataset_class(config)
    dataset = load_dataset(config, kind)
    assert dataset.user_num == N_USERS + 1
    assert dataset.inter_num in (
        N_USERS * (PER_USER - 1),
        N_USERS * PER_USER,
    )
    if model == "LLMRec":
        report: TextReport = dataset.text_report
        assert (report.n_items, report.n_missing, report.n_empty) == (N_ITEMS, 0, 0)
        assert all("Title" in text for text in dataset.item_texts[1:])
    parts = dataset.build()
    assert all(len(part) for part in parts)


def test_families():
    assert dataset_file("amazon-books-18").stem == "amazon"
    assert dataset_file("amazon-beauty-5core").stem == "amazon-beauty-5core"
    assert dataset_file("steam-not-merged").stem == "steam"
    assert dataset_file("yelp-2018").stem == "yelp"
    assert dataset_file("amazon-mine") is None  # not hosted: a user's own
    assert dataset_file("amazon-m2") is None  # sessions
    assert dataset_file("gowalla-merged") is None
