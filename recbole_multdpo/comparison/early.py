"""Answer a mistyped comparison at once: names and the data set, without importing torch.

`make_plan` checks every system's settings again, with their values and effects.
"""

from __future__ import annotations

from recbole_multdpo.comparison.request import Request, System, prefixes
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.early import check_loss
from recbole_multdpo.settings.known_data import check_data_set
from recbole_multdpo.settings.layers import check_model, read_sources, valid_keys, value_of
from recbole_multdpo.settings.other_names import nearest_setting
from recbole_multdpo.settings.recbole_code import recbole_models


def check_names(request: Request) -> None:
    """Check models, losses, settings and the data set of a comparison.

    Raises:
        ConfigError: one of them has no such name.
        DataError: the data set does not exist.
    """
    for system in request.systems:
        check_model(system.model)
        if system.loss is not None:
            check_loss(system.loss)
    valid = {system: valid_keys(system.model) for system in request.systems}
    _check_keys("vary", list(request.vary), valid)
    _check_keys("tune", list(request.tune), valid)
    for system in request.systems:
        settings = {"model": system.model, **request.settings_of(system, valid)}
        try:
            sources = read_sources([f"--{key}={text}" for key, text in settings.items()])
        except ConfigError as error:
            raise ConfigError(f"{system.name}: {error}") from error
        check_data_set(sources.dataset, value_of(sources.layers, "data_path"))


def _check_keys(name: str, keys: list[str], valid: dict[System, set[str]]) -> None:
    """Refuse varied or tuned keys that are settings of no system with their prefix."""
    for key in keys:
        prefix, dot, own = key.rpartition(".")
        of_prefix = [system for system in valid if not dot or prefix in prefixes(system)]
        known = set().union(*(valid[system] for system in of_prefix))
        if prefix in recbole_models():  # perhaps an assistant
            known |= valid_keys(prefix)
        if own not in known:
            hint = nearest_setting(own, known)
            raise ConfigError(
                f"{name}: {key}: there is no such setting{hint or ' and none with a similar name'}"
            )
