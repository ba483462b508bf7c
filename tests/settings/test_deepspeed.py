"""DeepSpeed's configuration: names, files, what the run fills in, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import properties_folder
from recbole_multdpo.settings.deepspeed import deepspeed_settings

FOLDER = properties_folder() / "deepspeed"
RUN = {"learner": "adamw", "clip_grad_norm": {"max_norm": 1.5}, "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run alike with and without DeepSpeed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "deepspeed" else find(name)
    )


def read(setting: Any, **run: Any) -> dict[str, Any]:
    return deepspeed_settings(setting, {**RUN, **run}, 4, FOLDER)


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


@pytest.mark.parametrize(
    ("given", "run", "message"),
    [
        ({"train_batch_size": 64}, {}, "train_batch_size=64 is decided by .*say auto"),
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps=2"),
        ({"gradient_clipping": 1.0}, {}, "gradient_clipping=1.0 is decided by clip_grad_norm"),
        ({"bf16": {"enabled": False}}, {}, "bf16=False is decided by dtype"),
        ({"fp16": {"enabled": True}}, {}, "fp16 is decided by dtype: remove it"),
        ({"optimizer": {"type": "AdamW"}}, {}, "optimizer is decided by learner, learning_rate"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "scheduler is decided by lr_scheduler_type"),
        ({"zero_optimization": {"stage": 4}}, {}, "stage must be 1, 2 or 3, got 4"),
        ({"zero_optimization": {"stage": 0}}, {}, "got 0. Without ZeRO, leave --deepspeed out"),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
            {},
            "round_robin_gradients: .* Remove it",
        ),
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
    with pytest.raises(ConfigError, match=r"not installed.*recbole-multdpo\[deepspeed\]"):
        read("zero1")
