"""RecBole as its source code describes it, against RecBole as it is when imported."""

import pytest
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_multdpo.settings.config import _model_class
from recbole_multdpo.settings.optional_packages import missing_packages
from recbole_multdpo.settings.recbole_code import metric_names, model_type, recbole_models

INSTALLED = sorted(model for model in recbole_models() if not missing_packages(model, None))


def test_types_of_all_models() -> None:
    assert len(INSTALLED) > 80
    assert {name: model_type(name) for name in INSTALLED} == {
        name: _model_class(name).type.name for name in INSTALLED
    }
    assert {"TRADITIONAL", "GENERAL", "SEQUENTIAL"} <= set(map(model_type, INSTALLED))
    with pytest.raises(KeyError):
        model_type("NoModel")


@pytest.mark.parametrize("kind", ["RANKING", "VALUE"])
def test_metrics(kind: str) -> None:
    wanted = {name for name, found in metric_types.items() if found == EvaluatorType[kind]}
    assert metric_names(kind) == wanted
