"""Data that every system may use at test, `test_information`, and what it need not rank.

Published leave-one-out tables give the validation item to every system at test; a model without it
looks worse than it is. One setting decides for all kinds of systems:

- `train`: the training part.
- `train_valid`: fitted weights stay, inputs grow. Histories in prompts and sequences include the
  validation items, and so do the user rows that item-item models and autoencoders score.
- `refit`: after validation has chosen settings and number of epochs, the system is trained again on
  both parts and then tested.
- `rolling`: RecBole's test of sequential models, where the input of a test row is all rows before
  it, including test rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

KEY = "test_information"
FORMER_KEY = "test_history"  # of language models, before all systems had the setting
AUTO = "auto"

# notes for tables of results
KNOWN = {
    "train": "At test every system knows the training part alone (test_information=train).",
    "train_valid": "At test every system is given the validation items as input, its weights "
    "being fitted to the training part (test_information=train_valid).",
    "refit": "Every tested system is fitted to the training and the validation part together "
    "(test_information=refit).",
    "rolling": "At test every row knows all rows of the user before it, of the test part too "
    "(test_information=rolling).",
}

SEEN = "seen_items"
# notes likewise on items that rank for nobody who has seen them
LEFT_OUT = {
    "positives": "Items that a user rated below val_interval rank like unrated ones "
    "(seen_items=positives).",
    "rated": "Items that a user is known to have rated below val_interval are never ranked "
    "(seen_items=rated).",
}

# General models that compute a user's scores from the user's items (`classical.user_rows` checks
# it); all others have weights per user.
READS_ROWS = frozenset(
    "ADMMSLIM AsymKNN CDAE DiffRec EASE FISM ItemKNN LDiffRec MacridVAE MultiDAE MultiVAE NAIS"
    " RaCT RecVAE SLIMElastic SequentialRules SimpleX".split()
)
# models without input
NO_INPUT = frozenset({"Pop", "Random"})
_BY_USERS = frozenset({"AsymKNN", "ItemKNN"})  # with knn_method=user


def default_information(settings: Mapping[str, Any]) -> str:
    """Value of `auto`: train_valid for leave-one-out, else train."""
    split = settings["eval_args"]["split"]
    parts_in_files = settings.get("benchmark_filename") is not None
    leave_one_out = split.get("LS") == "valid_and_test" and not parts_in_files
    return "train_valid" if leave_one_out else "train"


def information_problems(
    model: str, settings: Mapping[str, Any], is_language_model: bool
) -> list[str]:
    """Reasons why a model cannot be tested with this information, one sentence each.

    Args:
        model: its name.
        settings: final settings, `test_information` resolved.
        is_language_model: True for one of ours.
    """
    value, kind = settings[KEY], settings["MODEL_TYPE"].name
    if value == "rolling" and kind != "SEQUENTIAL":
        return [
            f"{KEY}=rolling is RecBole's test of sequential models, in which every test row knows "
            f"the test rows before it, and {model} ranks for all of a user's test items at once. "
            f"Use --{KEY}=train, train_valid or refit, for the models it is compared with too."
        ]
    if value == "refit" and kind == "DECISIONTREE":
        return [f"{KEY}=refit: {model} is no model of epochs. Use --{KEY}=train."]
    # RecBole's models with training stages: pretraining chooses no best epoch
    stage = settings.get("train_stage") or ""
    if stage.endswith("pretrain") and (
        value == "refit" or (value == "train_valid" and kind != "SEQUENTIAL")
    ):
        return [
            f"{KEY}={value}: with train_stage={stage} {model} is pretrained alone, and no best "
            f"epoch is chosen by validation. Use --{KEY}=train, for the models it is compared with "
            "too, or --train_stage=finetune."
        ]
    if kind == "SEQUENTIAL" and settings.get("benchmark_filename") is not None:
        if value != "rolling":
            return [
                f"{KEY}={value}: {model}'s sequences are in the files of benchmark_filename and "
                f"are taken as they are. Use --{KEY}=rolling."
            ]
        return []
    if value != "train_valid":
        return []
    if settings.get("context") == "conversation":
        return [
            f"{KEY}=train_valid: no effect with context=conversation, where a conversation of the "
            f"test part is all that is known of it. Use --{KEY}=train or refit."
        ]
    if is_language_model or kind == "SEQUENTIAL" or model in NO_INPUT:
        return []
    by_users = model in _BY_USERS and settings.get("knn_method") == "user"
    if model in READS_ROWS and not by_users:
        return []
    return [cannot_grow(f"{model}{' with knn_method=user' if by_users else ''}")]


def cannot_grow(name: str) -> str:
    """Sentence for a model whose input cannot grow."""
    return (
        f"{KEY}=train_valid, the default in leave-one-out: {name} keeps what it knows of a user in "
        "weights and can be shown nothing more at test. Use "
        f"--{KEY}=refit, or --{KEY}=train, for the models it is compared with too."
    )


def with_known_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of the settings with the former name of `test_information` replaced."""
    renamed = dict(settings)
    if FORMER_KEY in renamed:
        former = renamed.pop(FORMER_KEY)
        renamed.setdefault(KEY, former)
    return renamed


def as_tested_before(settings: Mapping[str, Any], is_sequential: bool) -> dict[str, Any]:
    """Saved settings of a run; those that it was made before are added, as they were then."""
    before: dict[str, str | None] = {
        KEY: "rolling" if is_sequential else "train",
        SEEN: "positives",
    }
    if settings.get("model") in LANGUAGE_MODELS:
        before |= {"history_format": "list", "sft_teacher": None}
    return {**before, **with_known_names(settings)}
