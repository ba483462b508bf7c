"""RecBole's own models for one epoch through our command, on the users with long histories."""

import json
import math
from pathlib import Path

import pytest

from recbole_multdpo import quick_start
from tests.integration.toy import acting

# Enough for a ranking, small enough for one core: the 70 users with most ratings, a narrow SASRec.
REDUCED = ["--epochs=1", "--user_inter_num_interval=[150,inf)", "--learning_rate=0.01"]

MODELS = {
    "Pop": [],
    "ItemKNN": [],
    "BPR": [],
    "NeuMF": [],
    "LightGCN": [],
    "NGCF": [],
    "EASE": [],
    "SLIMElastic": [],
    "MultiVAE": [],
    "SASRec": [
        "--eval_args={'order': 'TO'}",
        "--MAX_ITEM_LIST_LENGTH=5",
        "--hidden_size=16",
        "--inner_size=16",
        "--n_layers=1",
    ],
    "DMF": [],
}


@pytest.mark.integration
@pytest.mark.parametrize("model", MODELS)
def test_runs_an_epoch_and_evaluates(model: str, tmp_path: Path) -> None:
    arguments = [f"--model={model}", "--dataset=ml-100k", f"--run_dir={tmp_path}"]

    result = quick_start.run(acting(arguments + REDUCED + MODELS[model]))

    ndcg = result["test_result"]["ndcg@10"]
    assert isinstance(ndcg, float) and math.isfinite(ndcg) and 0 < ndcg <= 1
    assert json.loads((tmp_path / "result.json").read_text()) == result
