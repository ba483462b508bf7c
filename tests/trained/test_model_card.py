"""The model card's line about training."""

import pytest

from recbole_multdpo.trained.model_card import model_card

SETTINGS = {
    "context": "history",
    "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}},
    "normalize_over": "catalogue",
}
RESULT = {
    "dataset": "toy",
    "versions": {"recbole_multdpo": "0"},
    "num_items": 3,
    "num_users_evaluated": 2,
    "test_set": "0",
    "valid_result": None,
    "test_result": {"ndcg@10": 0.5},
}


@pytest.mark.parametrize(
    ("loss", "training"),
    [
        ("mult_dpo", "supervised fine-tuning, then `mult_dpo` on set-wise preferences."),
        ("sft", "supervised fine-tuning."),
        ("zero_shot", "nothing but its pretraining."),
    ],
)
def test_training_line(loss: str, training: str) -> None:
    card = model_card(SETTINGS, {**RESULT, "loss": loss}, ["A", "B"], adapter=False)
    assert f"- **Trained by**: {training}\n" in card
