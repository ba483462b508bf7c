"""LLMRec's typed settings against their property file, and what is impossible together."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import get_scheduler

from recbole_multdpo.model.backbone import DTYPES
from recbole_multdpo.settings.checks import check_combinations, warnings_for
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS, LLMREC
from recbole_multdpo.settings.layers import properties_folder
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.messages import listed, nearest, type_problems
from recbole_multdpo.settings.recbole import RecBoleSettings
from recbole_multdpo.settings.text import read_settings_file

ADAPTER = TypeAdapter(LLMRecSettings)
FILE = properties_folder() / "model/LLMRec.yaml"
DEFAULTS = read_settings_file(FILE)
OWN = {key: value for key, value in DEFAULTS.items() if key in LLMRecSettings.model_fields}
# The part of RecBole's settings that the checks of combinations look at.
SHARED = {
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    "TIME_FIELD": "timestamp",
    "RATING_FIELD": "rating",
    "val_interval": {"rating": "[4,inf)"},
    "train_neg_sample_args": None,
    "train_batch_size": 8,
    "repeatable": False,
    "eval_args": {"mode": {"valid": "full", "test": "full"}},
}
NO_COLUMNS = {"load_col": {"inter": ["user_id"]}}


def make(**changes):
    return LLMRecSettings(**{**OWN, "item_text_fields": ["title"], **changes})


def problems(asked_for=(), shared=None, **changes):
    return check_combinations(make(**changes), {**SHARED, **(shared or {})}, asked_for)


def test_the_property_file_has_each_key_and_no_other():
    assert set(OWN) == set(LLMRecSettings.model_fields)
    others = set(DEFAULTS) - set(OWN)
    assert others <= set(RecBoleSettings.__annotations__)
    assert {"epochs", "learning_rate", "train_batch_size", "train_neg_sample_args"} <= others


def test_the_defaults_are_valid_and_stay_as_they_are_written():
    settings = LLMRecSettings(**OWN)
    assert settings.model_dump(mode="json") == OWN


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS.keys() - {LLMREC}))
def test_a_baselines_file_has_its_own_keys_and_valid_defaults(name):
    kind = LANGUAGE_MODELS[name]
    own = read_settings_file(properties_folder() / f"model/{name}.yaml")
    assert kind.model_fields.keys() - LLMRecSettings.model_fields.keys() <= own.keys()
    assert own.keys() <= kind.model_fields.keys() | set(RecBoleSettings.__annotations__)
    merged = {key: value for key, value in {**OWN, **own}.items() if key in kind.model_fields}
    assert kind(**merged).model_dump(mode="json") == merged
    assert all(field.is_required() for field in kind.model_fields.values())


def test_the_code_has_no_defaults():
    assert all(field.is_required() for field in LLMRecSettings.model_fields.values())


def test_each_setting_is_described_in_its_file():
    for file in sorted(properties_folder().glob("**/*.yaml")):
        for line in file.read_text(encoding="utf-8").splitlines():
            # A mapping's heading may have its comment in the lines below it.
            if line[:1].isalpha() and not line.endswith(":"):
                assert "# (" in line, f"{file.name}: {line}"


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        make().beta = 2.0


def test_unknown_keys_are_refused():
    found = type_problems(ADAPTER, {**OWN, "betta": 1.0}, {})
    assert found == ["betta: is no key that exists; did you mean beta?"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("beta", 0, "must be greater than 0, got 0"),
        ("beta", "high", "must be a number, got 'high'"),
        ("beta", True, "must be a number, got True"),
        ("beta", float("inf"), "must be a finite number, got inf"),
        ("lora_r", 0, "must be greater than or equal to 1, got 0"),
        ("lora_r", 1.0, "must be an integer, got 1.0"),
        ("lora_r", True, "must be an integer, got True"),
        ("warmup_ratio", 1, "must be less than 1, got 1"),
        ("target_share", 0, "must be greater than 0, got 0"),
        ("sft_on_prompt", "maybe", "must be True or False, got 'maybe'"),
        ("sft_on_prompt", 1, "must be True or False, got 1"),
        ("loss", "mult-dpo", "'pl2_dpo', got 'mult-dpo'; did you mean mult_dpo"),
        ("scorer", "fast", "must be 'packed' or 'padded', got 'fast'"),
        ("ranker", None, "must be 'best_first' or 'exhaustive', got None"),
        ("use_chat_template", "yes", "must be 'auto' or must be True or False, got 'yes'"),
        ("item_text_fields", [1], "0 must be text, got 1"),
        ("item_year_field", 5, "must be text, got 5"),
        ("lora_target_modules", 5, "must be text or must be a list, got 5"),
        ("rating_levels", 4, "must be a list, got 4"),
        ("level_thresholds", 4, "must be 'auto' or must be a list, got 4"),
        ("backbone", "", "must have at least 1 character, got ''"),
        ("lr_scheduler_type", "cosin", "did you mean cosine"),
    ],
)  # fmt: skip
def test_wrong_values(key, value, message):
    found = type_problems(ADAPTER, {**OWN, key: value}, {key: "mine.yaml"})
    assert len(found) == 1
    assert found[0].startswith(f"{key} (mine.yaml): ")
    assert message in found[0]


def test_all_wrong_values_are_reported_together():
    found = type_problems(ADAPTER, {**OWN, "beta": -1, "loss": "x", "lora_r": "y"}, {})
    assert [text.split(":")[0] for text in found] == ["lora_r", "loss", "beta"]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("beta", 1, 1.0),
        ("item_text_fields", "title", ("title",)),
        ("item_text_fields", ["a", "b"], ("a", "b")),
        ("lora_target_modules", ["q_proj", "v_proj"], ("q_proj", "v_proj")),
        ("lora_target_modules", "all-linear", "all-linear"),
        ("level_thresholds", [5, 4.5], (5.0, 4.5)),
        ("use_chat_template", True, True),
        ("sft_cache_dir", None, None),
    ],
)
def test_accepted_forms(key, value, kept):
    assert getattr(make(**{key: value}), key) == kept


@pytest.mark.parametrize(
    "name", LLMRecSettings.model_fields["lr_scheduler_type"].annotation.__args__
)
def test_each_schedule_needs_no_further_argument(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
    assert schedule.get_last_lr() == [1.0 if name == "constant" else 0.0]


def test_what_auto_trains():
    assert make(finetune="auto", backbone="tiny").trains_all_weights
    assert not make(finetune="auto", backbone="org/model").trains_all_weights
    assert not make(finetune="lora", backbone="tiny").trains_all_weights
    assert make(finetune="full", backbone="org/model").trains_all_weights


def test_auto_shows_titles_alone_where_each_is_a_token():
    assert make(backbone="tiny").shows_titles_alone
    assert not make(backbone="tiny", tiny_title_tokens=False).shows_titles_alone
    assert not make(backbone="org/model").shows_titles_alone
    assert not make(backbone="tiny", history_format="list").shows_titles_alone
    assert make(backbone="org/model", history_format="titles").shows_titles_alone


def test_the_defaults_are_possible_together():
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiny_hidden_size": 100, "tiny_num_heads": 3}, "a multiple of 2 x tiny_num_heads"),
        ({"tiny_hidden_size": 12, "tiny_num_heads": 4}, "even width"),
        ({"lora_target_modules": []}, "lora_target_modules is empty"),
        ({"item_text_fields": []}, "item_text_fields is empty"),
        ({"item_text_template": "title"}, "names no column in braces"),
        ({"level_thresholds": [4, 5]}, "must fall from level to level"),
        ({"level_thresholds": [4, 4]}, "must fall from level to level"),
        ({"history_split": "temporal", "shared": NO_COLUMNS}, "add timestamp"),
        ({"level_thresholds": [5], "shared": NO_COLUMNS}, "level_thresholds needs ratings: add r"),
        (
            {"loss": "pl2_dpo", "rating_levels": [5, 4], "shared": NO_COLUMNS},
            "rating_levels needs ratings: add rating",
        ),
        ({"loss": "mult2_dpo", "rating_levels": [4, 5]}, "rating_levels=[4.0, 5.0] must fall"),
        ({"loss": "pl2_dpo"}, "loss=pl2_dpo with one level of positives is pl_dpo. Set"),
        ({"loss": "mult2_dpo", "level_thresholds": [4]}, "or use --loss=mult_dpo"),
        ({"loss": "mult2_dpo", "level_thresholds": [], "rating_levels": [5, 4]}, "with one level"),
        ({"asked_for": ["rating_levels"], "rating_levels": [5, 4]}, "rating_levels: no effect"),
        ({"shared": {"train_neg_sample_args": {"sample_num": 1}}}, "must be ~ for LLMRec"),
        ({"shared": {"repeatable": True}}, "repeatable must be False"),
        ({"shared": {"enable_amp": True}}, "enable_amp must be False"),
        ({"shared": {"eval_args": {"mode": {"valid": "labeled", "test": "full"}}}}, "got labeled"),
        ({"asked_for": ["lora_r"]}, "lora_r: no effect with finetune=auto and the tiny backbone"),
        ({"asked_for": ["lora_alpha"], "finetune": "full", "backbone": "org/m"}, "finetune=full"),
        ({"asked_for": ["tiny_num_layers"], "backbone": "org/m"}, "no effect with backbone=org/m"),
        ({"asked_for": ["popularity_alpha"]}, "negative_distribution=popularity"),
        ({"negatives": "dynamic", "loss": "simpo"}, "no reference. Add --dynamic_weights=policy"),
        (
            {"negatives": "dynamic", "negative_pool": "ranker", "negative_pool_size": 63},
            "negative_pool_size=63 is less than num_negatives=64",
        ),
        (
            {"asked_for": ["negative_temperature", "dynamic_weights"]},
            "dynamic_weights, negative_temperature: no effect with negatives=static. "
            "Add --negatives=dynamic",
        ),
        ({"asked_for": ["negative_pool"]}, "Add --negatives=dynamic"),
        (
            {"asked_for": ["popularity_alpha"], "negatives": "dynamic"},
            "popularity_alpha: no effect with negatives=dynamic. Add --negatives=static",
        ),
        (
            {"asked_for": ["negative_pool_size"], "negatives": "dynamic"},
            "no effect with negative_pool=catalogue",
        ),
        (
            {"asked_for": ["negatives"], "negatives": "dynamic", "num_negatives": "all"},
            "negatives: no effect with num_negatives=all, which draws none. Add --num_neg",
        ),
        (
            {"asked_for": ["negative_distribution"], "num_negatives": "all"},
            "negative_distribution: no effect with num_negatives=all",
        ),
        ({"reference_cache": True, "loss": "simpo"}, "loss=simpo with reference=sft has none"),
        ({"reference_cache": True, "negatives": "dynamic"}, "Use --negatives=static"),
        (
            {"stop_at_metrics": True, "shared": {"metrics": ["NDCG", "ItemCoverage"]}},
            "which ItemCoverage would measure. Use --stop_at_metrics=False",
        ),
        ({"low_ratings": "below_unrated", "loss": "dpo"}, "takes no more than one"),
        ({"low_ratings": "below_unrated", "shared": {"val_interval": None}}, "must limit rating"),
        (
            {
                "low_ratings": "above_unrated",
                "shared": {"val_interval": {"rating": "[4,inf)", "timestamp": "[9,inf)"}},
            },
            "must limit rating and nothing else",
        ),
        (
            {
                "low_ratings": "below_unrated",
                "shared": {
                    "load_col": {"inter": ["rating"]},
                    "eval_args": {"order": "TO", "mode": {"valid": "full", "test": "full"}},
                },
            },
            "add timestamp",
        ),
        ({"low_ratings": "below_unrated", "shared": NO_COLUMNS}, "low_ratings=below_unrated needs"),
        (
            {"asked_for": ["stop_at_metrics"], "stop_at_metrics": True, "ranker": "exhaustive"},
            "stop_at_metrics: no effect with ranker=exhaustive",
        ),
        ({"asked_for": ["kpo_k"]}, "kpo_k: no effect with loss=mult_dpo. Use it with --loss=kpo,"),
        ({"asked_for": ["pl_nodes"], "loss": "dpo"}, "--loss=pl_dpo or pl2_dpo, or leave it out"),
        ({"track_bounds": True, "loss": "simpo"}, "loss=simpo with reference=sft has none"),
        ({"track_bounds": True, "reference": "none"}, "loss=mult_dpo with reference=none has none"),
        ({"loss": "kto", "reference": "none"}, "reference=none: loss=kto compares"),
        ({"loss": "kto", "shared": {"train_batch_size": 1}}, "train_batch_size=1: loss=kto"),
    ],
)  # fmt: skip
def test_impossible_combinations(changes, message):
    found = problems(**changes)
    assert len(found) == 1
    assert message in found[0]


def test_possible_neighbours_of_the_impossible_ones():
    assert problems(level_thresholds=[5, 4]) == []
    assert problems(history_split="temporal", shared={"load_col": None}) == []
    assert problems(history_split="temporal", shared={"load_col": {"inter": "*"}}) == []
    assert problems(asked_for=["lora_r"], finetune="lora") == []
    assert problems(asked_for=["popularity_alpha"], negative_distribution="popularity") == []
    assert problems(loss="sft", sft_epochs=0) == []
    assert problems(loss="zero_shot") == []
    assert "track_bounds=True needs" in problems(loss="zero_shot", track_bounds=True)[0]
    assert "no effect with loss=zero_shot" in problems({"kpo_k"}, loss="zero_shot")[0]
    dynamic = {"negatives": "dynamic", "asked_for": ["negatives", "negative_temperature"]}
    assert problems(**dynamic) == []
    assert problems(**dynamic, loss="simpo", dynamic_weights="policy") == []
    assert problems(**dynamic, negative_pool="ranker", negative_pool_size=64) == []
    assert problems(**dynamic, negative_pool="uniform", negative_pool_size=1, loss="dpo") == []
    assert problems(**dynamic, negative_pool_size=1) == []
    assert problems(**dynamic, num_negatives="all", loss="dpo") == []  # which draws one
    all_negatives = {"negatives": "dynamic", "num_negatives": "all", "reference_cache": True}
    assert problems(["num_negatives"], **all_negatives) == []  # a file may have the others
    assert problems(asked_for=["kpo_k", "list_order"], loss="kpo") == []
    assert problems(loss="kto", low_ratings="below_unrated") == []
    for remedy in ({"level_thresholds": [5, 4]}, {"low_ratings": "below_unrated"}):
        assert problems(loss="pl2_dpo", **remedy) == []
    assert problems(["rating_levels"], loss="mult2_dpo", rating_levels=[5, 4]) == []
    assert problems(loss="lipo_bt", rating_levels=[5, 4], shared=NO_COLUMNS) == []
    assert problems(loss="dpo", shared={"train_batch_size": 1}) == []


@pytest.mark.parametrize(
    ("key", "loss", "expected"),
    [
        ("epochs", "sft", "epochs: no effect with loss=sft, which trains no preferences. Use"),
        ("beta", "sft", "beta: no effect with loss=sft"),
        ("negatives", "sft", "negatives: no effect with loss=sft"),
        ("sft_epochs", "zero_shot", "sft_epochs: no effect with loss=zero_shot, which trains noth"),
        ("learning_rate", "zero_shot", "learning_rate: no effect with loss=zero_shot"),
        ("num_negatives", "dpo", "num_negatives: no effect with loss=dpo, which has one negative"),
    ],
)
def test_settings_of_a_stage_that_a_loss_does_not_have(key: str, loss: str, expected: str):
    (problem,) = problems([key], loss=loss)
    assert problem.startswith(expected)
    assert problems([key], loss="mult_dpo") == []  # which has both stages and many negatives
    assert problems(loss=loss) == []  # a settings file may have it


def test_all_items_are_negatives_by_default_where_they_are_free():
    assert make(num_negatives="auto").set_of_negatives == "all"
    for changes in (
        {"backbone": "org/lm"},
        {"tiny_title_tokens": False},
        {"normalize_over": "vocabulary"},
        {"negatives": "dynamic"},
        {"negative_distribution": "popularity"},
        {"low_ratings": "below_unrated"},
    ):
        assert make(num_negatives="auto", **changes).set_of_negatives == 64
        assert make(num_negatives="all", **changes).set_of_negatives == "all"
        assert make(num_negatives=5, **changes).set_of_negatives == 5


def test_every_dtype_that_is_allowed_can_be_loaded():
    allowed = LLMRecSettings.model_fields["dtype"].annotation
    assert list(get_args(allowed)) == ["auto", *DTYPES]
    (problem,) = type_problems(ADAPTER, {**OWN, "dtype": "float16"}, {})
    assert problem.startswith("dtype: must be 'auto', 'float32' or 'bfloat16', got 'float16'")
    assert "did you mean bfloat16 or float32" in problem


def test_warnings():
    cpu = torch.device("cpu")
    assert warnings_for(make(), cpu) == []
    assert "random weights" in warnings_for(make(loss="zero_shot"), cpu)[0]
    assert warnings_for(make(loss="zero_shot", backbone="smollm2"), cpu) == []
    assert warnings_for(make(tf32=True), cpu) == ["tf32=True has no effect on a CPU."]
    assert warnings_for(make(tf32=True), torch.device("cuda:0")) == []
    fused = make(use_liger_kernel=True, backbone="org/lm")
    assert warnings_for(fused, cpu) == ["use_liger_kernel=True has no effect on a CPU."]
    assert warnings_for(fused, torch.device("cuda:0")) == []


def test_messages():
    assert listed(["one thing."]) == "one thing."
    assert listed(["a", "b"]) == "2 settings are wrong:\n- a\n- b"
    assert nearest("learning-rate", ["learning_rate", "seed"]) == "; did you mean learning_rate?"
    assert nearest("ndcg", ["NDCG"]) == "; did you mean NDCG?"
    assert nearest("zzz", ["seed"]) == ""


def test_the_folder_of_property_files_is_the_repositorys_own():
    assert FILE.is_file()
    assert FILE.parent.parent.parent == Path(__file__).resolve().parents[2]
