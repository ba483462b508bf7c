"""Answer a mistyped command at once: names, types and the data set, without importing torch.

`Config` checks all of this again together with what needs RecBole, such as combinations.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings import recbole as shared
from recbole_multdpo.settings.conditions import ZERO_SHOT
from recbole_multdpo.settings.known_data import check_data_set
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.layers import (
    HELPERS,
    check_helper,
    merged,
    own_setting_problems,
    raise_if_any,
    read_sources,
    shared_settings,
)
from recbole_multdpo.settings.messages import nearest, type_problems
from recbole_multdpo.settings.recbole_code import metric_names


def check_early(argv: Sequence[str]) -> None:
    """Check the settings of one run, as far as that is possible without torch.

    Args:
        argv: arguments of the form `--key=value`, without the program's name.

    Raises:
        ConfigError: an argument, a file, a name or a value is wrong.
        DataError: the data set does not exist.
    """
    sources = read_sources(argv)
    settings = merged(sources.layers)
    if settings.get("resume") is None:  # a finished run is answered without its data
        check_data_set(sources.dataset, settings.get("data_path"))
    problems = type_problems(shared.RECBOLE_SETTINGS, settings, sources.origins)
    if sources.model in LANGUAGE_MODELS:
        kind = LANGUAGE_MODELS[sources.model]
        own = {key: settings[key] for key in kind.model_fields if key in settings}
        problems += type_problems(TypeAdapter(kind), own, sources.origins)
    else:
        problems += own_setting_problems(sources.model, settings, sources.origins)
    raise_if_any(problems)
    for role in HELPERS:
        if settings.get(role) is not None:
            check_helper(role, settings[role])
    known = {**shared_settings(), **settings}
    raise_if_any(shared.metric_problems(known, metric_names("RANKING"), metric_names("VALUE")))


def check_loss(name: str) -> None:
    """Refuse a name that is no value of `loss`.

    Raises:
        ConfigError: with the nearest names.
    """
    known = [*LOSSES, ZERO_SHOT]
    if name not in known:
        hint = nearest(name, known) or "."
        raise ConfigError(f"loss: there is no {name!r}{hint} There are {', '.join(known)}.")
