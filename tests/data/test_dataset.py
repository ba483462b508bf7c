"""LLMRecDataset: texts by inner id, exact times, levels, and training examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.errors import DataError
from recbole_multdpo.training.negative_draw import draw_negatives
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import N_ITEMS, N_USERS, toy_model, write_toy


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "data")


def test_texts_follow_the_inner_ids(data_path: Path, tmp_path: Path) -> None:
    _, parts, model = toy_model(data_path, tmp_path)
    tokens = parts[0].field2id_token["item_id"]
    for item in range(1, N_ITEMS + 1):
        number = int(tokens[item][1:])
        assert model.item_texts[item].startswith(("Red", "Blue", "Green")[number % 3])


def test_texts_by_a_template_with_missing_values(data_path: Path, tmp_path: Path) -> None:
    file = data_path / "toy" / "toy.item"
    file.write_text(file.read_text().replace("\t1990\n", "\t\n"))  # item 0 has no year
    template = "--item_text_template={movie_title} ({release_year})"
    _, parts, model = toy_model(data_path, tmp_path, template)
    texts = dict(zip(parts[0].field2id_token["item_id"], model.item_texts, strict=True))
    assert texts["i0"] == "Red Night 0"
    assert texts["i1"] == "Blue River 0 (1991)"


def test_the_first_column_that_is_there(data_path: Path, tmp_path: Path) -> None:
    fields = [
        "--item_text_fields=[movie_name | movie_title]",
        "--item_year_field=year | release_year",
    ]
    _, parts, model = toy_model(data_path, tmp_path, *fields)
    assert model.item_texts[1].split()[0] in ("Red", "Blue", "Green")


@pytest.mark.parametrize(
    "setting",
    [
        "--item_text_template={title} ({release_year})",
        "--item_text_fields=[title | name]",
        "--item_year_field=title",
    ],
)
def test_columns_that_are_not_there(data_path: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(DataError, match=r"no column 'title.*item_id, movie_title, release_year"):
        toy_model(data_path, tmp_path, setting)


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


def test_an_item_chosen_again_later_keeps_the_time_of_its_training_row(
    data_path: Path, tmp_path: Path
) -> None:
    """Order and low ratings of the training part must not depend on later interactions."""
    file = data_path / "toy" / "toy.inter"
    header, *rows = file.read_text().rstrip("\n").split("\n")
    again = [f"{row.rsplit(chr(9), 1)[0]}\t{100 + n}" for n, row in enumerate(rows[:2])]
    file.write_text("\n".join([header, *rows, *again]) + "\n")
    _, parts, model = toy_model(data_path, tmp_path, "--eval_args={'order': 'TO'}")
    users, items = (parts[0].field2token_id[f] for f in ("user_id", "item_id"))
    in_order = [items[row.split("\t")[1]] for row in rows if row.startswith("u0\t")]
    assert {part.inter_feat["timestamp"].max().item() for part in parts[1:]} == {100, 101}
    history = model.histories.history(users["u0"]).tolist()
    assert history == in_order[: len(history)] and len(history) > 8
    assert parts[2].user_items(()).history(users["u0"]).tolist() == [in_order[1]]


def test_a_rating_reaches_a_threshold_that_float32_cannot_hold(
    data_path: Path, tmp_path: Path
) -> None:
    file = data_path / "toy" / "toy.inter"
    file.write_text(file.read_text().replace("\t4\t", "\t4.1\t"))
    assert float(np.float32(4.1)) < 4.1
    _, parts, _ = toy_model(data_path, tmp_path)
    assert set(parts[0].user_items((5, 4.1)).levels.tolist()) == {1, 2}


def test_a_user_who_knows_everything_has_no_preference_example(
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
    assert knows_all in train_loader(config, model, parts[0], "sft", 8).users
    assert knows_all not in train_loader(config, model, parts[0], "mult_dpo", 8).users


# -------------------------------------------------------------------------------------------------
# low ratings: each user of the toy gave 5 to eight items and 4 to three

FIVES = ("--val_interval={'rating': '[5,inf)'}", "--num_negatives=4")


def low_items(part) -> dict[int, set[int]]:  # type: ignore[no-untyped-def]
    """Low-rated items that a part may know, by user."""
    known = part.low_rated_items()
    return {user: set(known.history(user).tolist()) for user in range(part.user_num)}


def rated(data_path: Path, part, rating: str) -> dict[int, set[int]]:  # type: ignore[no-untyped-def]
    """Items with a rating in the file, by user."""
    users, items = (part.field2token_id[f] for f in ("user_id", "item_id"))
    found: dict[int, set[int]] = {user: set() for user in range(part.user_num)}
    for row in (data_path / "toy" / "toy.inter").read_text().split("\n")[1:-1]:
        user, item, value, _ = row.split("\t")
        if value == rating and item in items:
            found[users[user]].add(items[item])
    return found


def test_low_ratings_are_kept_separately(data_path: Path, tmp_path: Path) -> None:
    _, plain, _ = toy_model(data_path, tmp_path / "plain", *FIVES)
    _, parts, model = toy_model(data_path, tmp_path, *FIVES, "--low_ratings=below_unrated")
    for one, other in zip(plain, parts, strict=True):
        for field in ("user_id", "item_id"):
            assert one.inter_feat[field].tolist() == other.inter_feat[field].tolist()
    low, fours = low_items(parts[0]), rated(data_path, parts[0], "4")
    assert all(low[user] <= fours[user] for user in low)
    # of a user's three fours RecBole's shares of 8:1:1 give each part one
    assert [len(part.low_rated_items().items) for part in parts] == [N_USERS] * 3


def test_low_ratings_after_the_last_training_item_are_not_known(
    data_path: Path, tmp_path: Path
) -> None:
    in_time = (*FIVES, "--low_ratings=below_unrated", "--eval_args={'order': 'TO'}")
    _, parts, _ = toy_model(data_path, tmp_path, *in_time)
    assert not any(low_items(parts[0]).values())  # the toy's fours come after its fives
    file = data_path / "toy" / "toy.inter"
    rows = [row.split("\t") for row in file.read_text().split("\n")[:-1]]
    # now at times 0 to 2; training ends at the sixth five, time 5
    early = [[*r[:3], str(int(r[3]) - 8)] if r[2] == "4" else r for r in rows]
    file.write_text("\n".join("\t".join(row) for row in early) + "\n")
    _, parts, _ = toy_model(data_path, tmp_path / "early", *in_time)
    assert low_items(parts[0]) == rated(data_path, parts[0], "4")


def test_an_item_rated_again_and_liked_is_not_low(data_path: Path, tmp_path: Path) -> None:
    file = data_path / "toy" / "toy.inter"
    rows = file.read_text().rstrip("\n").split("\n")
    again = [row.replace("\t5\t", "\t1\t") for row in rows[1:] if "\t5\t" in row]
    file.write_text("\n".join([*rows, *again]) + "\n")
    _, parts, _ = toy_model(data_path, tmp_path, *FIVES, "--low_ratings=below_unrated")
    assert any(low_items(parts[0]).values())
    fours = rated(data_path, parts[0], "4")
    assert all(low <= fours[user] for user, low in low_items(parts[0]).items())


@pytest.mark.parametrize("negatives", ["static", "dynamic"])
@pytest.mark.parametrize(("where", "low", "drawn"), [("below", -2, 0), ("above", 0, -2)])
def test_low_ratings_are_a_level_of_their_own(
    data_path: Path, tmp_path: Path, where: str, low: int, drawn: int, negatives: str
) -> None:
    config, parts, model = toy_model(
        data_path,
        tmp_path,
        *FIVES,
        f"--low_ratings={where}_unrated",
        "--eval_args={'group_by': 'none'}",  # so that users have unequal numbers of them
        f"--negatives={negatives}",
        "--max_targets=2",
        "--loss=mult2_dpo",
    )
    model.start_preference_stage("mult2_dpo")
    loader = train_loader(config, model, parts[0], "mult2_dpo", 8)
    loader.set_epoch(1)
    sampler = loader.setwise_sampler
    if isinstance(sampler.negative_sampler, DynamicNegatives):
        draw_negatives(model.eval(), sampler, sampler.negative_sampler, loader.users, 1)
    known, sizes = low_items(parts[0]), set()
    for batch in loader:
        assert model.step(batch).losses.isfinite().all()
        for user, items, levels in zip(
            batch.user_ids.tolist(), batch.candidates.tolist(), batch.levels.tolist(), strict=True
        ):
            by_level = {
                level: [i for i, of in zip(items, levels, strict=True) if of == level]
                for level in (1, low, drawn)
            }
            sizes.add(len(by_level[low]))
            assert len(by_level[low]) == min(len(known[user]), 2)
            assert set(by_level[low]) <= known[user]
            assert len(by_level[drawn]) == 4 and not set(by_level[drawn]) & known[user]
            assert not set(by_level[drawn]) & set(model.histories.history(user).tolist())
            assert all((item == 0) == (of == -1) for item, of in zip(items, levels, strict=True))
    assert {1, 2} <= sizes  # examples of unequal numbers in one batch, so with padding


def test_the_first_stage_knows_no_low_ratings(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(data_path, tmp_path, *FIVES, "--low_ratings=below_unrated")
    batch = next(iter(train_loader(config, model, parts[0], "sft", 8)))
    assert set(batch.levels.unique().tolist()) <= {1, -1}


def test_declared_levels_are_those_of_a_loss_made_for_them(data_path: Path, tmp_path: Path) -> None:
    (data_path / "toy/toy.yaml").write_text("rating_levels: [5, 4]\n")
    _, _, two = toy_model(data_path, tmp_path, "--loss=mult2_dpo")
    _, _, told = toy_model(data_path, tmp_path, "--loss=lipo_bt", "--level_thresholds=[5, 4]")
    _, _, one = toy_model(data_path, tmp_path, "--loss=lipo_bt")
    assert set(two.histories.levels.tolist()) == {1, 2}
    assert two.histories.levels.tolist() == told.histories.levels.tolist()
    assert set(one.histories.levels.tolist()) == {1}
