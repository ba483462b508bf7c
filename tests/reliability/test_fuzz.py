"""Random damage to everything that is read from outside: nothing but our own errors comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_multdpo.comparison.command import is_comparison, read_request
from recbole_multdpo.data.convert.__main__ import main as convert
from recbole_multdpo.errors import CheckpointError, ConfigError, MultDPOError
from recbole_multdpo.runs.checkpoint import load_checkpoint, save_checkpoint
from recbole_multdpo.settings.config import load_config, settings_of
from recbole_multdpo.settings.text import parse_command_line, read_settings_file
from tests.reliability import FUZZ_TIMES

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# -------------------------------------------------------------------------------------------------
# command line and YAML

VALUES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        "True False None ~ null nan inf -1 0 1e400 [] {} [[]] {1:2} [1,2 __import__('os') *a &a !!x"
        " 0x1F 1_000 '' \"a 'a ../.. / \x00 [None] {'RS':[0,0,0]} [4,inf) [nan,nan] 9"
        "9999999999999999999999".split(" ")
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**64), 2**64)
        | st.floats()
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    ).map(repr),
)
# not --model and --dataset, which name files; not settings that only name a place
KEYS = st.sampled_from(
    sorted(settings_of("LLMRec") - {"model", "dataset", "gpu_id", "checkpoint_dir", "run_dir"})
)


@settings(RELAXED, max_examples=80 * FUZZ_TIMES)
@given(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3))
def test_settings_on_the_command_line(arguments: list[tuple[str, str]]) -> None:
    argv = [f"--{key}={value}" for key, value in arguments]
    try:
        config = load_config(["--model=LLMRec", "--dataset=ml-100k", "--device=cpu", *argv])
    except ConfigError as error:
        named = [key for key, _ in arguments] + ["argument", "settings file"]
        assert any(name in str(error) for name in named)
    else:
        assert config.settings is not None


@settings(RELAXED, max_examples=300 * FUZZ_TIMES)
@given(st.lists(st.text(max_size=20) | VALUES.map("--seeds={}".format), max_size=4))
def test_any_command_line(argv: list[str]) -> None:
    for read in (parse_command_line, is_comparison, read_request):
        try:
            read(argv)
        except MultDPOError as error:
            assert len(str(error)) > 20


YAML = st.one_of(
    st.binary(max_size=60),
    st.lists(st.tuples(st.text(max_size=8), VALUES), max_size=4).map(
        lambda pairs: "\n".join(f"{key}: {value}" for key, value in pairs).encode(
            "utf-8", "surrogatepass"
        )
    ),
    st.sampled_from([b"a: &x [*x]", b"[" * 5000, b"!!python/object/apply:os.system ['true']"]),
)


@settings(RELAXED, max_examples=300 * FUZZ_TIMES)
@given(YAML)
def test_settings_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    try:
        assert isinstance(read_settings_file(file), dict)
    except ConfigError as error:
        assert str(file) in str(error)


# -------------------------------------------------------------------------------------------------
# checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "step-3"
    tensors = {"w": torch.arange(6.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_checkpoint(folder, tensors, {"stage": "sft", "score": 0.5}, {"0.step": torch.tensor(3.0)})
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@settings(RELAXED, max_examples=300 * FUZZ_TIMES)
@given(data=st.data())
def test_a_damaged_checkpoint_is_never_loaded(
    tmp_path: Path, checkpoint: dict[str, bytes], data: st.DataObject
) -> None:
    """Bits flipped, ends cut, bytes put in, files taken away: every change is noticed."""
    name = data.draw(st.sampled_from(sorted(checkpoint)))
    content = checkpoint[name]
    at = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["bit", "cut", "insert", "random", "remove"]))
    damaged: bytes | None = None
    if damage == "bit":
        bit = 1 << data.draw(st.integers(0, 7))
        damaged = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    elif damage == "cut":
        damaged = content[:at]
    elif damage == "insert":
        damaged = content[:at] + data.draw(st.binary(min_size=1, max_size=9)) + content[at:]
    elif damage == "random":
        damaged = data.draw(st.binary(max_size=60))
    for file, original in checkpoint.items():
        (tmp_path / file).write_bytes(original)
    if damaged is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damaged)
    same_json = name == "state.json" and _same_json(damaged, content)
    if damaged == content or same_json:
        load_checkpoint(tmp_path)
        return
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


def _same_json(damaged: bytes | None, content: bytes) -> bool:
    """White space may change, and nothing else."""
    try:
        return damaged is not None and json.loads(damaged) == json.loads(content)
    except (ValueError, RecursionError):
        return False


@settings(RELAXED, max_examples=100 * FUZZ_TIMES)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda x: st.lists(x)))
def test_any_json_in_place_of_the_state(tmp_path: Path, value: Any) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        (tmp_path / name).write_bytes(b"")
    for state in (value, {"format": 2, "checksums": value}, {"format": 2, "checksum": value}):
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path)


# -------------------------------------------------------------------------------------------------
# converters

TURN = {
    "context": ["Hi", "I like Heat"],
    "resp": "Alien?",
    "rec": [1],
    "prev_entity": [7],
    "dialog_id": "d",
    "turn_id": "t",
    "is_user": 0,
}
PROMPT = {
    "prompt": [{"content": "What next?", "role": "user"}],
    "groundtruth_with_release_year": [["Heat", "1995"]],
    "seen_titles": ["Alien"],
}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# what each converter takes, and its options
RAW: dict[str, tuple[list[str], dict[str, str]]] = {
    "movielens .dat": (
        ["movielens"],
        {
            "movies.dat": "1::Heat (1995)::Action\n2::Alien (1979)::Horror\n",
            "ratings.dat": "1::1::5::978300760\n1::2::4::978300761\n",
        },
    ),
    "movielens .csv": (
        ["movielens"],
        {
            "movies.csv": 'movieId,title,genres\n1,"Heat, The (1995)",Action\n',
            "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n",
        },
    ),
    "goodreads": (
        ["goodreads", "--k-core", "1"],
        {
            "goodreads_books.json": lines(
                {"book_id": "11", "title": "Earth", "publication_year": "2001"}
            ),
            "goodreads_interactions.json": lines(
                {
                    "user_id": "a",
                    "book_id": "11",
                    "rating": 5,
                    "date_added": "Fri Aug 25 13:55:02 -0700 2017",
                }
            ),
        },
    ),
    "conversations": (
        ["crs"],
        {
            "entity2id.json": json.dumps({"<http://dbpedia.org/resource/Heat>": 1, "Alien": 7}),
            "item_ids.json": json.dumps([1, 7]),
            **{f"{part}.jsonl": lines(TURN) for part in ("train", "valid", "test")},
        },
    ),
    "rank-grpo": (
        ["crs"],
        {
            "gt_catalog.json": json.dumps([["Heat", "1995"], ["Alien", "1979"]]),
            **{f"{part}.jsonl": lines(PROMPT) for part in ("train", "validation", "test")},
        },
    ),
    "titles": (
        ["titles-jsonl"],
        {
            "train.json": lines(
                {"instruction": "x", "input": 'Read: "It", "Emma", please', "output": '"Heat"'}
            ),
            "id2name.json": json.dumps({"0": "It", "1": "Emma", "2": "Heat"}),
        },
    ),
}
PIECES = st.one_of(
    st.sampled_from(
        ["\n", "\t", '"', "::", ",", "{", "}", "[", "]", "null", "NaN", "1e999", "\x00", "[]", "{}"]
    ),
    st.text(max_size=3),
)


@settings(RELAXED, max_examples=40 * FUZZ_TIMES)
@given(data=st.data())
@pytest.mark.parametrize("kind", RAW)
def test_converters_of_damaged_files(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    data: st.DataObject,
) -> None:
    """A data set that is whole, or a message and nothing."""
    arguments, files = RAW[kind]
    name = data.draw(st.sampled_from(sorted(files)))
    text = files[name]
    for _ in range(data.draw(st.integers(0, 3))):
        at, n_cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(PIECES) + text[at + n_cut :]
    folder = tmp_path_factory.mktemp("raw")
    for file, content in {**files, name: text}.items():
        (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    output = folder / "out" / "toy"
    status = convert([*arguments, "--input", str(folder), "--output", str(output)])
    said = capsys.readouterr()
    if status == 0:
        assert (output / "toy.inter").exists() or (output / "toy.train.inter").exists()
    else:
        assert status == 2 and said.err.startswith("error: ") and not output.exists()
