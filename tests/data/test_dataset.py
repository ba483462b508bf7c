"""LLMRecDataset: texts by inner id, exact times, levels; and who is a training context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.quick_start import _train_loader
from tests.integration.toy import N_ITEMS, toy_model, write_toy


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "data")


def test_texts_follow_the_inner_ids(data_path: Path, tmp_path: Path) -> None:
    _, parts, model = toy_model(data_path, tmp_path)
    tokens = parts[0].field2id_token["item_id"]
    for item in range(1, N_ITEMS + 1):
        number = int(tokens[item][1:])
        assert model.item_texts[item].startswith(("Red", "Blue", "Green")[number % 3])


def test_times_closer_than_float32_resolves_keep_their_order(
    data_path: Path, tmp_path: Path
) -> None:
    # Unix times one second apart: float32 steps of 64 seconds would tie them all
    file = data_path / "toy" / "toy.inter"
    header, *rows = file.read_text().rstrip("\n").split("\n")
    later = [row.split("\t") for row in rows]
    file.write_text(
        "\n".join([header, *("\t".join([*r[:3], str(880000000 + int(r[3]))]) for r in later)])
        + "\n"
    )
    assert np.float32(880000000) == np.float32(880000010)
    _, parts, model = toy_model(data_path, tmp_path)
    times = {(r[0], r[1]): int(r[3]) for r in later}
    user_tokens, item_tokens = (parts[0].field2id_token[f] for f in ("user_id", "item_id"))
    for user in range(1, len(user_tokens)):
        history = model.histories.history(user)
        seen = [times[user_tokens[user], item_tokens[item]] for item in history]
        assert seen == sorted(seen) and len(seen) == 9


def test_a_user_who_knows_everything_is_no_preference_context(
    data_path: Path, tmp_path: Path
) -> None:
    file = data_path / "toy" / "toy.inter"
    file.write_text(
        file.read_text() + "".join(f"all\ti{item}\t5\t{item}\n" for item in range(N_ITEMS))
    )
    # no validation and test part, so that all of the user's items are training items
    config, parts, model = toy_model(
        data_path, tmp_path, "--eval_args={'split': {'RS': [1.0, 0.0, 0.0]}}"
    )
    knows_all = int(np.flatnonzero(parts[0].field2id_token["user_id"] == "all")[0])
    assert knows_all in _train_loader(config, model, parts[0], "sft", 8).users
    assert knows_all not in _train_loader(config, model, parts[0], "mult_dpo", 8).users
