"""A comparison with everything checked before the first run starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from recbole_multdpo.comparison.command import check_prefix
from recbole_multdpo.comparison.request import (
    Member,
    Request,
    System,
    edge_settings,
    prefixes,
    varied,
)
from recbole_multdpo.comparison.results import BEYOND_ACCURACY
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import Config, load_config, settings_of
from recbole_multdpo.settings.effects import declared, idle, in_run
from recbole_multdpo.settings.hardware import FLOAT32
from recbole_multdpo.settings.llmrec import LIST_METRICS
from recbole_multdpo.settings.text import parse_setting

TAIL_RATIO = 0.8  # the tail is the usual 80 % of the items, where the settings say nothing
SAME_PROTOCOL = tuple(key for key, acting in declared().items() if acting.protocol)


@dataclass(frozen=True)
class Plan:
    """A checked comparison.

    Attributes:
        members: the runs, all systems of a seed before the next seed.
        settings: of each system's runs, key to the value's text; seed and folder are added later.
        spaces: each system's search space, key to values or range; empty if nothing is tuned.
        metric: the metric that decides which system is best, such as `ndcg@10`.
        larger_is_better: the direction of that metric.
        folder: the comparison's folder.
        auto_dtype: what `dtype: auto` is in all runs; None if no system has it.
        dtype_choice: the reason, in one sentence.
        configs: the configuration of each system, without its seed.
    """

    members: tuple[Member, ...]
    settings: Mapping[System, dict[str, str]]
    spaces: Mapping[System, dict[str, Any]]
    metric: str
    larger_is_better: bool
    folder: Path
    auto_dtype: str | None = None
    dtype_choice: str | None = None
    configs: Mapping[System, Config] = field(default_factory=dict)

    @property
    def systems(self) -> tuple[System, ...]:
        """The compared systems."""
        return tuple(self.settings)

    @property
    def first_seed(self) -> int:
        """The seed with which settings are tuned."""
        return self.members[0].seed


def make_plan(request: Request, *, resumed: bool = False) -> Plan:
    """Check every system's settings before the first run, not when its turn comes hours later.

    Args:
        request: what to compare.
        resumed: leave out settings without effect, which earlier versions accepted, instead of
            refusing them.

    Raises:
        ConfigError: a system's settings are wrong, its protocol differs from the others', a varied
            or tuned key is a setting of no system, or there is no validation part to tune by.
    """
    if resumed and request.auto_dtype is None:
        request = replace(request, auto_dtype=FLOAT32)  # as before there was `auto`
    known = _acting_settings(request)
    if not resumed:
        _check_used("vary", request.vary, known)
        _check_used("tune", request.tune, known)
    given = {system: _asked(request, system, known) for system in known}
    if resumed:
        given = {system: acting(own, request.auto_dtype) for system, own in given.items()}
    spaces = {system: request.search_space(system, known) for system in known}
    configs = {
        system: _checked(system, settings, spaces[system], request.auto_dtype)
        for system, settings in given.items()
    }
    choices = [system for system, config in configs.items() if config.dtype_choice is not None]
    auto_dtype, dtype_choice = request.auto_dtype, None
    if choices:
        dtype_choice = configs[choices[0]].dtype_choice
        auto_dtype = auto_dtype or str(configs[choices[0]]["dtype"])
        for system in choices:
            given[system]["dtype"] = auto_dtype
    _apply_assistant_settings(request, given, configs, spaces)
    _check_protocol(configs)
    for system, space in spaces.items():
        for tried in edge_settings(space):
            _checked(system, {**given[system], **tried}, space)
    first = configs[next(iter(configs))]
    if any(spaces.values()) and not _has_validation(first):
        raise ConfigError(
            f"tune: split={first['eval_args']['split']} with "
            f"benchmark_filename={first['benchmark_filename']} has no validation part to choose "
            "by. Use a split that has one, such as {'RS': [0.8, 0.1, 0.1]}, or name its file "
            "between those of training and test; or leave tune out."
        )
    name, at, _ = first["valid_metric"].lower().partition("@")
    if not at or name in LIST_METRICS:
        raise ConfigError(
            f"valid_metric={first['valid_metric']}: a comparison is one of what rankings find for "
            "each user. Use a metric of hits, such as NDCG@10."
        )
    folder = _folder(request, first)
    for system, settings in given.items():
        settings["metrics"] = str(_with_beyond_accuracy(first["metrics"]))
        if first["tail_ratio"] is None:
            settings["tail_ratio"] = str(TAIL_RATIO)
        typed = configs[system].settings
        if typed is not None and typed.sft_cache_dir is None:
            settings["sft_cache_dir"] = str(folder.parent / "sft_cache")
    return Plan(
        members=tuple(Member(system, seed) for seed in _seeds(request, first) for system in given),
        settings=given,
        spaces=spaces,
        metric=first["valid_metric"].lower(),
        larger_is_better=bool(first["valid_metric_bigger"]),
        folder=folder,
        auto_dtype=auto_dtype,
        dtype_choice=dtype_choice,
        configs=configs,
    )


def _has_validation(config: Config) -> bool:
    """True if the split, or the files of `benchmark_filename`, include a validation part."""
    if config["benchmark_filename"] is not None:
        return len(config["benchmark_filename"]) == 3
    split = config["eval_args"]["split"]
    shares = split.get("RS") or split.get("TS")
    return shares[1] > 0 if shares else split["LS"] != "test_only"


def _apply_assistant_settings(
    request: Request,
    given: dict[System, dict[str, str]],
    configs: dict[System, Config],
    spaces: Mapping[System, Mapping[str, Any]],
) -> None:
    """Add settings such as `EASE.reg_weight` to the systems whose assistant is EASE.

    Raises:
        ConfigError: such a setting is wrong, or its prefix names neither a system nor an assistant.
    """
    names = {name for system in given for name in prefixes(system)}
    for system, config in configs.items():
        if config.settings is None or config.settings.assistant is None:
            continue
        names.add(config.settings.assistant)
        added = request.assistant_settings(config.settings.assistant)
        if added:
            given[system] |= added
            configs[system] = _checked(system, given[system], spaces[system])
    for key in request.settings:
        check_prefix(key, names)


def _acting_settings(request: Request) -> dict[System, set[str]]:
    """The compared systems, and the names of the settings that have an effect on each.

    A system is taken once for all values of a varied setting that has no effect on it: they would
    be the same run under several names. A setting that has an effect with some values of the tuned
    ones has one.
    """
    valid = {system: settings_of(system.model) for system in request.systems}
    acting: dict[System, set[str]] = {}
    for system in request.systems:
        for each in varied(system, request.vary, valid[system]):
            known = {**valid, each: valid[system]}
            asked, space = _asked(request, each, known), request.search_space(each, known)
            idle_keys = _idle(asked, space, request.auto_dtype)
            kept = {key: [text] for key, text in each.own[len(system.own) :]}
            (known_as,) = varied(system, kept, kept.keys() - idle_keys)
            acting.setdefault(known_as, valid[system] - idle_keys)
    return acting


def _asked(
    request: Request, system: System, known: Mapping[System, AbstractSet[str]]
) -> dict[str, str]:
    """A system's settings with its model and loss, key to the value's text."""
    loss = {} if system.loss is None else {"loss": system.loss}
    return {"model": system.model, **loss, **request.settings_of(system, known)}


def _idle(
    settings: Mapping[str, str], tuned: Iterable[str] = (), auto_dtype: str | None = None
) -> set[str]:
    """Settings without effect on a run; of one that is wrong, those that its loss has no use for.

    Args:
        settings: of the run, key to the value's text.
        tuned: those whose values are not known yet.
        auto_dtype: as for `load_config`.
    """
    model = settings["model"]
    # some of these are refused with the loss wherever they are set, so that they go first
    named = {key: settings[key] for key in ("model", "loss") if key in settings}
    foreign = idle(in_run(named), declared(model), model)
    try:
        own = {key: text for key, text in settings.items() if key not in foreign}
        config = load_config([], config_dict=own, auto_dtype=auto_dtype)
    except ConfigError:  # the check of the system as it would be run says why
        try:
            values = {key: parse_setting(key, text) for key, text in settings.items()}
            return foreign | idle(in_run(values), declared(model), model)
        except (ValueError, TypeError, LookupError):
            return foreign
    final = {key: value for key, value in config.final_config_dict.items() if key not in set(tuned)}
    return foreign | idle(in_run(final), declared(model), model)


def acting(settings: Mapping[str, str], auto_dtype: str | None = None) -> dict[str, str]:
    """The settings of a run, key to the value's text, without those that have no effect on it.

    A command line may not have these, and what is tuned can leave others without effect.
    """
    without = _idle(settings, auto_dtype=auto_dtype)
    return {key: text for key, text in settings.items() if key not in without}


def _check_used(name: str, keys: Mapping[str, Any], known: Mapping[System, set[str]]) -> None:
    for key in keys:
        if "." not in key and not any(key in own for own in known.values()):
            raise ConfigError(
                f"{name}: {key} is a setting of none of the systems, or has no effect on any."
            )


def _checked(
    system: System,
    settings: Mapping[str, str],
    tuned: Iterable[str],
    auto_dtype: str | None = None,
) -> Config:
    """The configuration of a run, without what has an effect only with other tuned values.

    Raises:
        ConfigError: the settings are wrong.
    """
    elsewhere: set[str] = set()
    if tuned:
        elsewhere = _idle(settings, (), auto_dtype) - _idle(settings, tuned, auto_dtype)
    try:
        return load_config(
            [f"--{key}={text}" for key, text in settings.items() if key not in elsewhere],
            auto_dtype=auto_dtype,
        )
    except ConfigError as error:
        raise ConfigError(f"{system.name}: {error}") from error


def _check_protocol(configs: Mapping[System, Config]) -> None:
    (first, reference), *others = configs.items()
    for system, config in others:
        for key in SAME_PROTOCOL:
            if config[key] != reference[key]:
                raise ConfigError(
                    f"{key} is {reference[key]!r} for {first.name} and {config[key]!r} for "
                    f"{system.name}: their figures could not be compared. Set it for all."
                )


def _seeds(request: Request, config: Config) -> tuple[int, ...]:
    if isinstance(request.seeds, tuple):
        return request.seeds
    first = config["seed"] if request.first_seed is None else request.first_seed
    return tuple(range(first, first + request.seeds))


def _with_beyond_accuracy(metrics: Sequence[str]) -> list[str]:
    present = {name.lower() for name in metrics}
    return [*metrics, *(name for name in BEYOND_ACCURACY if name.lower() not in present)]


def _folder(request: Request, config: Config) -> Path:
    if request.run_dir is not None:
        return Path(request.run_dir)
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(config["checkpoint_dir"]) / f"comparison-{config['dataset']}-{time}"
