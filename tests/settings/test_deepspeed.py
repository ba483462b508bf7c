"""DeepSpeed's configuration: names, files, what the run fills in, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.deepspeed import deepspeed_settings
from recbole_multdpo.settings.layers import properties_folder
from tests.settings.published_deepspeed import PUBLISHED, REFUSED

FOLDER = properties_folder() / "deepspeed"
RUN = {
    "learner": "adamw",
    "clip_grad_norm": {"max_norm": 1.5},
    "dtype": "bfloat16",
    "learning_rate": 5e-5,
    "sft_learning_rate": 1e-4,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run alike with and without DeepSpeed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "deepspeed" else find(name)
    )


def read(setting: Any, warnings: list[str] | None = None, **run: Any) -> dict[str, Any]:
    told = [] if warnings is None else warnings
    return deepspeed_settings(setting, {**RUN, **run}, 4, FOLDER, told)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_ours_is_accepted_under_its_name(file: Path) -> None:
    stage = read(file.stem)["zero_optimization"]["stage"]
    assert str(stage) in file.stem
    assert ("offload_optimizer" in read(file.stem)["zero_optimization"]) == ("offload" in file.stem)


def test_the_run_fills_in_what_it_decides() -> None:
    found = read("zero2")
    assert (found["train_batch_size"], found["train_micro_batch_size_per_gpu"]) == (4, 1)
    assert found["gradient_clipping"] == 1.5
    assert found["bf16"] == {"enabled": True}
    assert read("zero2", clip_grad_norm=None, dtype="float32")["gradient_clipping"] == 0.0
    assert read("zero2", dtype="float32")["bf16"] == {"enabled": False}


def test_a_file_as_for_transformers_with_auto(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    content = {
        "fp16": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": True},
        "wall_clock_breakdown": False,
    }
    file.write_text(json.dumps(content, indent="\t"))
    found = read(str(file))
    assert found["zero_optimization"] == {"stage": 3, "overlap_comm": True}
    assert found["wall_clock_breakdown"] is False
    assert found["train_batch_size"] == 4
    assert read(content) == found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_taken(name: str) -> None:
    """With the schedule that they name, if they name one; the run's own values come in."""
    given = PUBLISHED[name]
    kind = given.get("scheduler", {}).get("type", "WarmupCosineLR")
    schedule = {
        "WarmupLR": "constant_with_warmup",
        "WarmupDecayLR": "linear",
        "WarmupCosineLR": "cosine",
    }[kind]
    found = read(given, lr_scheduler_type=schedule)
    assert str(found["zero_optimization"]["stage"]) in name
    assert found["bf16"] == {"enabled": True} and found["gradient_clipping"] == 1.5
    assert found.keys().isdisjoint({"optimizer", "scheduler", "fp16", "deepspeed_config"})
    assert "auto" not in json.dumps(found)
    if kind != "WarmupCosineLR":
        with pytest.raises(ConfigError, match=f"--lr_scheduler_type={schedule}"):
            read(given)


@pytest.mark.parametrize("name", REFUSED)
def test_published_files_that_contradict_the_run_are_refused_key_by_key(name: str) -> None:
    given, messages = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        read(given)
    for message in messages:
        assert re.search(message, str(caught.value))


def test_values_that_are_the_run_s_own_are_taken() -> None:
    """As a number instead of auto."""
    given = {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_type": "linear"}},
        "zero_optimization": {"stage": 2},
    }
    read(given, learning_rate=1e-4)
    with pytest.raises(ConfigError, match="params.lr=0.0001"):  # of one stage only
        read(given)


def test_a_file_of_accelerate(tmp_path: Path) -> None:
    """Its deepspeed_config is translated, or names a file of DeepSpeed's."""
    given = {
        "deepspeed_config": {
            "zero_stage": 3,
            "offload_optimizer_device": "nvme",
            "offload_optimizer_nvme_path": "/scratch",
            "offload_param_device": "cpu",
            "gradient_clipping": 1.5,
        },
        "mixed_precision": "bf16",
        "num_processes": 8,
    }
    file = tmp_path / "accelerate.yaml"
    file.write_text(json.dumps(given))
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch"},
        "offload_param": {"device": "cpu"},
    }
    assert read(str(file))["zero_optimization"] == zero
    with pytest.raises(ConfigError, match=f"{file}, deepspeed_config: bf16.enabled=True"):
        read(str(file), dtype="float32")
    named = {"deepspeed_config": {"deepspeed_config_file": "zero1"}, "mixed_precision": "no"}
    assert read(named) == read("zero1")


def test_bfloat16_gradients_are_added_up_in_float32_unless_said_otherwise() -> None:
    assert read("zero2")["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in read("zero2", dtype="float32")
    own = {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "bf16"}}
    assert read(own)["data_types"] == {"grad_accum_dtype": "bf16"}


def test_round_robin_gradients_are_left_out_with_a_warning() -> None:
    told: list[str] = []
    zero = {"stage": 2, "round_robin_gradients": True}
    assert read({"zero_optimization": zero}, told)["zero_optimization"] == {"stage": 2}
    assert "round_robin_gradients is not taken" in told[0] and zero["round_robin_gradients"]
    read("zero2", told)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("given", "run", "message"),
    [
        ({"train_batch_size": 64}, {}, "train_batch_size=64 is decided by .*say auto"),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps=2"),
        ({"gradient_clipping": 1.0}, {}, "gradient_clipping=1.0 is decided by clip_grad_norm"),
        ({"bf16": {"enabled": False}}, {}, "bf16.enabled=False .* or use --dtype=float32"),
        (
            {"bf16": {"enabled": True}},
            {"dtype": "float32"},
            "bf16.enabled=True is decided by dtype, which is float32: .* use --dtype=bfloat16",
        ),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled: .* use --dtype=bfloat16"),
        ({"optimizer": {"type": "Lion"}}, {}, "optimizer.type=Lion is decided by learner"),
        ({"optimizer": {"type": "AdamW"}}, {"learner": "sgd"}, "learner, which is sgd"),
        (
            {"scheduler": {"type": "WarmupLR"}},
            {},
            "scheduler.type=WarmupLR .* which is cosine: remove scheduler, or use "
            "--lr_scheduler_type=constant_with_warmup",
        ),
        ({"scheduler": {"type": "OneCycle"}}, {}, "which is cosine: remove scheduler[.]"),
        ({"zero_optimization": {"stage": 4}}, {}, "stage must be 1, 2 or 3, got 4"),
        ({"zero_optimization": {"stage": 0}}, {}, "got 0. Without ZeRO, leave --deepspeed out"),
        ({"zero_optimization": {}}, {}, "stage must be 1, 2 or 3, got None"),
        ({}, {"learner": "sparse_adam"}, "sparse_adam is not for DeepSpeed"),
        ({}, {"learner": "adagrad"}, "adagrad is not for DeepSpeed: use adamw"),
        ({}, {"clip_grad_norm": {"max_norm": 1.0, "norm_type": 1}}, "norm_type=1"),
    ],
)
def test_contradictions(given: dict[str, Any], run: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read({"zero_optimization": {"stage": 2}, **given}, **run)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deepspeed=zero9: there is no such file.*zero1, zero2"):
        read("zero9")
    broken, listed = tmp_path / "broken.json", tmp_path / "list.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="broken.json: cannot be read as JSON"):
        read(str(broken))
    listed.write_text("[1]")
    with pytest.raises(ConfigError, match="list.json: must be a mapping, got list"):
        read(str(listed))


def test_without_deepspeed_the_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'deepspeed"):
        read("zero1")
