"""Packages that RecBole imports for some models or settings are named before anything runs."""

from __future__ import annotations

import importlib.util

import pytest

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.optional_packages import missing_packages, packages_of
from recbole_multdpo.settings.recbole_code import recbole_models
from tests.virtual_cuda import VirtualCuda

SETTINGS = {"neigh_info_method": "random", "n_cate": 1}


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is, whatever there is here."""
    optional = {"wandb", "liger_kernel", "community", *EXPECTED.values()} | {"lightgbm", "xgboost"}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name in optional else find(name, package),
    )


EXPECTED = {"KGAT": "dgl", "KGIN": "torch_scatter", "MCCLK": "torch_scatter", "NCL": "faiss"}


def test_which_models_need_what() -> None:
    trees = {"LightGBM", "XGBoost"}
    missing = {model for model in recbole_models() if missing_packages(model, SETTINGS)}
    assert missing == {*EXPECTED, *trees}
    for model, package in EXPECTED.items():
        assert package in packages_of(model)


@pytest.mark.parametrize(
    ("model", "extra", "message"),
    [
        ("NCL", (), "model=NCL needs faiss, which is not installed. Run: pip install faiss-cpu"),
        ("KGAT", (), "model=KGAT needs dgl, which is not installed. Run: pip install dgl"),
        ("MCCLK", (), "torch_scatter, which is not installed. Run: pip install torch-scatter"),
        ("XGBoost", (), "needs lightgbm and xgboost, which are not installed. Run: pip install"),
        ("NNCF", ("--neigh_info_method=louvain",), "Run: pip install python-louvain"),
        ("EASE", ("--log_wandb=True",), "log_wandb=True needs wandb, .*Run: pip install wandb"),
        ("LLMRec", ("--log_wandb=True",), "log_wandb=True needs wandb, .*Run: pip install wandb"),
    ],
)
def test_it_is_said_with_the_settings(model: str, extra: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config([f"--model={model}", "--dataset=ml-100k", *extra])


def test_kernels_are_asked_for_on_a_gpu_only() -> None:
    arguments = ["--model=LLMRec", "--dataset=ml-100k", "--backbone=org/lm", "--dtype=float32"]
    fused = [*arguments, "--use_liger_kernel=True"]
    assert load_config(fused).warnings == ["use_liger_kernel=True has no effect on a CPU."]
    with VirtualCuda():
        load_config(arguments)
        with pytest.raises(ConfigError, match="needs liger_kernel.* pip install liger-kernel"):
            load_config(fused)
    with pytest.raises(ConfigError, match="no effect with the tiny backbone. Use --backbone="):
        load_config(["--model=LLMRec", "--dataset=ml-100k", "--use_liger_kernel=True"])


@pytest.mark.parametrize("model", ["NNCF", "LDiffRec"])
def test_what_only_some_settings_need_is_not_asked_for(model: str) -> None:
    load_config([f"--model={model}", "--dataset=ml-100k"])
