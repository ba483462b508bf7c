"""Every model of RecBole trains, is tested and is loaded again, on a small data set of all kinds.

RecBole's own test of its models (tests/model/test_model_auto.py in its repository), reduced: an
epoch each, through our command and on our split, and the run is then used for a user's list.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import recbole

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.recommend import main as recommend
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.optional_packages import missing_packages
from recbole_multdpo.settings.recbole_code import model_file, recbole_models
from recbole_multdpo.trained.recommender import Recommender
from tests.integration.toy import acting

RECBOLE = Path(recbole.__file__).parent
N_USERS, N_ITEMS, N_ENTITIES = 24, 30, 40
COLUMNS = {
    "inter": ["user_id", "item_id", "rating", "timestamp"],
    "user": ["user_id", "age", "gender", "occupation"],
    "item": ["item_id", "release_year", "class"],
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}


def table(file: Path, header: str, rows: list[tuple[object, ...]]) -> None:
    lines = [header.replace(" ", "\t"), *("\t".join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set `films` with the files and columns of RecBole's ml-100k."""
    rng = np.random.default_rng(0)
    parent = tmp_path_factory.mktemp("data")
    folder = parent / "films"
    folder.mkdir()
    inter = [
        (f"u{user}", f"i{item}", rng.integers(1, 6), 100 * user + time)
        for user in range(N_USERS)
        for time, item in enumerate(rng.choice(N_ITEMS, 12, replace=False))
    ]
    header = "user_id:token item_id:token rating:float timestamp:float"
    table(folder / "films.inter", header, inter)
    users = [(f"u{user}", 20 + user % 5, "MF"[user % 2], f"work{user % 3}") for user in range(24)]
    header = "user_id:token age:token gender:token occupation:token"
    table(folder / "films.user", header, users)
    items = [
        (f"i{i}", f"Film {i}", 1990 + i % 4, f"kind{i % 3} kind{3 + i % 2}") for i in range(30)
    ]
    header = "item_id:token movie_title:token_seq release_year:token class:token_seq"
    table(folder / "films.item", header, items)
    triples = [
        (f"e{head}", f"r{rng.integers(3)}", f"e{rng.integers(N_ENTITIES)}")
        for head in range(N_ENTITIES)
        for _ in range(3)
    ]
    table(folder / "films.kg", "head_id:token relation_id:token tail_id:token", triples)
    links = [(f"i{item}", f"e{item}") for item in range(N_ITEMS)]
    table(folder / "films.link", "item_id:token entity_id:token", links)
    return parent


def arguments(data_path: Path, folder: Path, model: str, *extra: str) -> list[str]:
    return acting(
        [
            f"--model={model}",
            "--dataset=films",
            f"--data_path={data_path}",
            f"--run_dir={folder}",
            "--device=cpu",
            "--num_threads=1",
            "--show_progress=False",
            "--epochs=1",
            "--topk=[5, 20]",
            "--valid_metric=NDCG@5",
            *extra,
        ]
    )


def kind_of(model: str) -> str:
    return model_file(model).parent.name.removesuffix("_recommender")


# RecBole reads these columns of ml-100k by itself; of other data sets only the identifiers
READ = {
    "context_aware": ("inter", "user", "item"),
    "knowledge_aware": ("inter", "kg", "link"),
    "sequential": ("inter", "user", "item"),
}
SMALL = {  # defaults that ask for more than 30 items, or are slow
    "DGCF": ["--train_batch_size=64"],
    "GRU4RecCPR": ["--reranker_CAN_NUM=10"],
    "SASRecCPR": ["--reranker_CAN_NUM=10"],
}
# their items' embeddings come from a file that no data set here has
WITHOUT_DATA = {"KSR", "GRU4RecKG"}
# some of each kind, and ours
FAST = {"EASE", "CKE", "DeepFM", "DIEN", "NeuMF", "Pop", "SASRecF", "SequentialRules"}
RANKED_BY_USER = ("general", "knowledge_aware")


@pytest.mark.parametrize(
    "model",
    [
        model if model in FAST else pytest.param(model, marks=pytest.mark.slow)
        for model in sorted(recbole_models() - WITHOUT_DATA)
    ],
)
def test_a_model_trains_and_is_loaded_again(data_path: Path, tmp_path: Path, model: str) -> None:
    kind = kind_of(model)
    columns = {file: COLUMNS[file] for file in READ.get(kind, ("inter",))}
    extra = [f"--load_col={columns}", *SMALL.get(model, [])]
    if kind == "sequential":
        extra += ["--eval_args={'order': 'TO'}", "--MAX_ITEM_LIST_LENGTH=10"]
    given = arguments(data_path, tmp_path / "run", model, *extra)
    if missing := missing_packages(model, None):
        with pytest.raises(ConfigError, match=re.escape(missing[0])):
            run(given)
        pytest.skip(missing[0])
    result = run(given)
    assert all(0 <= value <= 1 for value in result["test_result"].values())
    assert result["test_result"]["hit@20"] > 0
    if kind in RANKED_BY_USER:
        (answer,) = Recommender.load(tmp_path / "run").for_users(["u1"], k=5)
        assert len(answer.recommendations) == 5


COLUMNS_OF_ROWS = f"--load_col={{'inter': {COLUMNS['inter']}}}"
NEGATIVES = "--train_neg_sample_args={'distribution': 'uniform', 'sample_num': 1}"
WITH_CLASSES = (
    "--load_col={'inter': ['user_id', 'item_id', 'timestamp'], 'item': ['item_id', 'class']}"
)


@pytest.mark.parametrize(
    ("model", "wrong", "expected", "remedy"),
    [
        (
            "SASRecF",
            ["--eval_args={'order': 'TO'}", "--selected_features=[age]", WITH_CLASSES],
            "'age'.* --load_col, --selected_features",
            ["--selected_features=[class]"],
        ),
        (
            "BPR",
            ["--train_neg_sample_args=~"],
            r"neg_item_id.* Set --train_neg_sample_args=\"{'dis",
            [NEGATIVES],
        ),
        (
            "FM",  # what a user will rate is not known
            ["--numerical_features=[rating]"],
            "'rating'.* be of users or items; see --load_col, --numerical_features",
            ["--numerical_features=[]"],
        ),
        (
            "SASRec",
            ["--eval_args={'order': 'TO'}", "--transform=nope"],
            "no transform named 'nope'.*--transform",
            ["--transform=~"],
        ),
    ],
)
def test_what_recbole_stumbles_over_is_named_and_the_remedy_works(
    data_path: Path,
    tmp_path: Path,
    model: str,
    wrong: list[str],
    expected: str,
    remedy: list[str],
) -> None:
    def given(folder: str, *more: str) -> list[str]:
        texts = [*arguments(data_path, tmp_path / folder, model), COLUMNS_OF_ROWS, *wrong, *more]
        return list({text.split("=", 1)[0]: text for text in texts}.values())

    with pytest.raises(ConfigError, match=f"RecBole's {model} fails with .*{expected}"):
        run(given("refused"))
    run(given("run", *remedy))


def test_a_model_without_epochs_may_be_validated_seldom(data_path: Path, tmp_path: Path) -> None:
    given = arguments(data_path, tmp_path / "run", "EASE", COLUMNS_OF_ROWS)
    seldom = arguments(data_path, tmp_path / "b", "EASE", COLUMNS_OF_ROWS, "--eval_step=3")
    assert run(seldom)["test_result"] == run(given)["test_result"]


def test_ml_100k_has_what_each_model_reads() -> None:
    """Ours for every model, and RecBole's for its kind; what the user sets stays."""
    inter = ["user_id", "item_id", "rating", "timestamp"]
    ours = {"inter": inter, "item": ["item_id"]}
    users = {"user": ["user_id", "age", "gender", "occupation"]}
    expected = {
        "EASE": ours,
        "RippleNet": {**ours, "kg": COLUMNS["kg"], "link": COLUMNS["link"]},
        "DeepFM": {**ours, **users, "item": ["item_id", "release_year", "class"]},
    }
    for model, columns in expected.items():
        assert load_config([f"--model={model}", "--dataset=ml-100k"])["load_col"] == columns
    given = "{'inter': ['user_id', 'item_id']}"
    config = load_config(["--model=DeepFM", "--dataset=ml-100k", f"--load_col={given}"])
    assert config["load_col"] == {"inter": ["user_id", "item_id"]}


def test_items_without_an_entity_are_counted(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    shutil.copytree(data_path / "films", folder)
    links = (folder / "films.link").read_text(encoding="utf-8").splitlines()
    (folder / "films.link").write_text("\n".join(links[:-3]) + "\n", encoding="utf-8")
    columns = {file: COLUMNS[file] for file in READ["knowledge_aware"]}
    given = arguments(tmp_path, tmp_path / "run", "CKE", f"--load_col={columns}")
    lost = run(given)["rows"]["lost"]["no entity in .link and .kg"]
    assert lost["items"] == 3 and lost["rows"] > 3


def test_recommend_needs_no_titles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain files, with other names of columns and no .item file: items go by their ids."""
    rng = np.random.default_rng(0)
    (tmp_path / "books").mkdir()
    rows = [(f"u{u}", f"b{b}", 4) for u in range(20) for b in rng.choice(30, 8, replace=False)]
    table(tmp_path / "books" / "books.inter", "user:token book:token stars:float", rows)
    fields = ["--USER_ID_FIELD=user", "--ITEM_ID_FIELD=book"]
    columns = "--load_col={'inter': ['user', 'book', 'stars']}"
    for model in ("Pop", "EASE"):
        given = arguments(tmp_path, tmp_path / model, model, *fields, columns)
        run([text.replace("=films", "=books") for text in given])
        capsys.readouterr()
        assert recommend([str(tmp_path / model), "--users", "u1", "--k=3"]) == 0
        assert len(re.findall(r"^ +[123] +b\d+ ", capsys.readouterr().out, re.MULTILINE)) == 3
