"""The model card: its line about training, and the hub's metadata."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

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


def card_of(**changes: object) -> ModelCard:
    """A card as the hub reads it."""
    result = {**RESULT, "loss": "mult_dpo", "test_result": {"ndcg@10": 0.5, "ndcg@5": 0.4}}
    settings = {**SETTINGS, "valid_metric": "NDCG@10", **changes}
    return ModelCard(model_card(settings, result, ["A", "B"], adapter=False))


def test_the_hub_reads_origin_and_results() -> None:
    data = card_of(backbone="Qwen/Qwen2.5-0.5B-Instruct").data
    assert data.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert data.base_model_relation == "finetune"
    assert (data.language, data.license, data.datasets) == ("en", "other", ["toy"])
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert {"recommendation", "mult_dpo"} <= set(data.tags)
    (found,) = data.eval_results  # of the cut-off that decides
    assert (found.metric_type, found.metric_value, found.dataset_name) == ("ndcg@10", 0.5, "toy")
    assert found.dataset_split == "test" and "80 / 10 / 10 %" in found.dataset_args["protocol"]
    assert found.dataset_args["test_information"] == "train"


def test_only_names_of_the_hub_are_base_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for backbone in ("tiny", "models/mine", "./models/mine", "mine"):
        assert card_of(backbone=backbone).data.base_model is None
    assert card_of(backbone="smollm2").data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_given_licence_and_hostile_text() -> None:
    odd = {**RESULT, "loss": "sft", "dataset": "a: b\n---\n# x \x1b[31m"}
    text = model_card(SETTINGS, odd, ["A", "B"], adapter=True, license_id="mit", language="de")
    data = ModelCard(text).data
    assert (data.license, data.language, data["library_name"]) == ("mit", "de", "peft")
    assert data.datasets == ["a: b\\n---\\n# x \\x1b[31m"] and "\x1b" not in text
