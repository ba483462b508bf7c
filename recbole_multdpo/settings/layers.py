"""The settings of a run from all their places, with every key checked; torch is not imported.

A setting is taken from, the strongest first: the command line, `config_dict`, the files of
`--config_files` (a later one wins), the file of `--protocol` in `properties/protocol`, the data
set's own file `<name>.yaml` in its folder, the files in `properties/` (dataset or its family,
model, overall), RecBole's own property files. A language model's files are `LLMRec.yaml`,
`LLMRec.pretrained.yaml` with a backbone other than `tiny`, and its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import ConfigError, doc_page
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings import recbole as shared
from recbole_multdpo.settings.asked_for import check_asked
from recbole_multdpo.settings.effects import acts
from recbole_multdpo.settings.information import (
    FORMER_KEY,
    KEY,
    as_tested_before,
    with_known_names,
)
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS, LLMREC, models_with
from recbole_multdpo.settings.lists import with_lists
from recbole_multdpo.settings.messages import listed, nearest
from recbole_multdpo.settings.optional_packages import missing_packages
from recbole_multdpo.settings.other_names import nearest_setting
from recbole_multdpo.settings.recbole_code import is_own, model_type, recbole_folder, recbole_models
from recbole_multdpo.settings.text import (
    parse_command_line,
    parse_literal,
    parse_setting,
    read_settings_file,
)

AUTO = "auto"  # value of resume: find the run
RECBOLE_DATA_PATH = "dataset"  # RecBole's default of data_path
RECBOLE_DATA_SET = "ml-100k"  # comes with RecBole
SAVED_DTYPE = "float32"  # of runs without the setting
# settings that name a model of RecBole which helps a language model, and what it does
HELPERS = {"assistant": "assist", "sft_teacher": "teach"}

_LANGUAGE_MODEL_KEYS = frozenset(
    key for settings in LANGUAGE_MODELS.values() for key in settings.model_fields
)
_WITHOUT_FAMILY = frozenset({"amazon-m2"})  # sessions, not reviews
_RECBOLE_PROCESSES = frozenset("nproc world_size local_rank group_offset ip port".split())


@dataclass(frozen=True)
class Layer:
    """Settings from one place.

    Attributes:
        origin: the place, for messages: a file, `config_dict`, or `command line`.
        settings: what is set there.
        is_file: True for a file, where keys of language models are allowed for other models too.
        is_default: True for our own property files.
    """

    origin: str
    settings: Mapping[str, Any]
    is_file: bool = False
    is_default: bool = False


@dataclass
class Sources:
    """The settings of one run.

    Attributes:
        model: name of the model, which exists.
        dataset: name of the data set, which need not exist.
        layers: settings by place, weakest first; every key is one of the model's.
        warnings: sentences for the log.
        saved_dtype: the type of weights of the run that is continued; None for a new run.
    """

    model: str
    dataset: str
    layers: list[Layer]
    warnings: list[str] = field(default_factory=list)
    saved_dtype: str | None = None

    @property
    def origins(self) -> dict[str, str]:
        """The place of each setting that does not come from our property files."""
        return {
            key: layer.origin
            for layer in self.layers
            if not layer.is_default
            for key in layer.settings
        }


def read_sources(
    argv: Sequence[str],
    config_dict: Mapping[str, Any] | None = None,
    run_folder: Path | None = None,
) -> Sources:
    """Read the settings of a run and check their names; arguments as for `load_config`.

    Raises:
        ConfigError: an argument or a file cannot be read, the model does not exist or lacks a
            package, or a key is none of its settings.
    """
    sources = Sources("", "", [])
    user_layers = _with_known_names(
        _user_layers(argv, config_dict, run_folder, sources), sources.warnings
    )
    model, dataset = required(user_layers, "model"), required(user_layers, "dataset")
    check_model(model)
    _check_dataset_name(dataset)
    pretrained = value_of(user_layers, "backbone") not in (None, "tiny")
    layers = [
        *_default_layers(model, dataset, pretrained),
        *_data_folder_layers(value_of(user_layers, "data_path"), dataset),
        *user_layers,
    ]
    if model in LANGUAGE_MODELS:
        layers = _with_helper_settings(layers)
    sources.model, sources.dataset = model, dataset
    sources.layers = _with_valid_keys(layers, model, sources.warnings)
    return sources


def _user_layers(
    argv: Sequence[str],
    config_dict: Mapping[str, Any] | None,
    run_folder: Path | None,
    sources: Sources,
) -> list[Layer]:
    """The user's settings, weakest first: of a run folder, files, config_dict, command line."""
    given = Layer("config_dict", _converted(config_dict or {}))
    command_line = Layer("command line", parse_command_line(argv))
    asked = {**given.settings, **command_line.settings}
    files = [_file_layer(Path(name)) for name in file_names(asked.get("config_files"))]
    for layer in files:
        check_asked(layer.settings, layer.origin, asked)
    resume = value_of([*files, given, command_line], "resume")
    if isinstance(resume, str) and resume != AUTO:
        run_folder = Path(resume)
        if not (run_folder / "config.yaml").is_file():
            raise ConfigError(
                f"resume={resume}: there is no {run_folder / 'config.yaml'}. Name the folder "
                "of a run that was started."
            )
    saved = [] if run_folder is None else [_run_layer(run_folder / "config.yaml", asked, sources)]
    asking = [*files, given, command_line]
    # the settings of a run hold what its protocol set: only one that is asked for now is read
    return [*saved, *_protocol_layers(value_of(asking, "protocol")), *asking]


def _protocol_layers(name: Any) -> list[Layer]:
    """The settings of a protocol; [] without one.

    Raises:
        ConfigError: there is no such protocol; with the nearest name.
    """
    if name is None:
        return []
    if name not in protocol_names():
        hint = nearest(str(name), protocol_names()) or "."
        raise ConfigError(
            f"protocol: there is no protocol {name!r}{hint} There are "
            f"{', '.join(protocol_names())}; --help=protocol describes them."
        )
    return [_file_layer(_protocol_file(name), is_default=True)]


def _protocol_file(name: str) -> Path:
    return properties_folder() / "protocol" / f"{name}.yaml"


def protocol_names() -> list[str]:
    """Names of the protocols, each a file in `properties/protocol`."""
    return sorted(file.stem for file in _protocol_file("any").parent.glob("*.yaml"))


def protocol_settings(name: str) -> dict[str, Any]:
    """The settings of a protocol that exists."""
    return merged(_protocol_layers(name))


def _run_layer(file: Path, asked: Mapping[str, Any], sources: Sources) -> Layer:
    """Settings from a run's folder, which may come from anybody."""
    layer = _file_layer(file)
    settings = dict(layer.settings)
    project = settings.pop("wandb_project", None)
    if settings.pop("log_wandb", None) and "log_wandb" not in asked:
        sources.warnings.append(
            f"{file}: log_wandb: True is not taken from a run's folder, as it sends data away. "
            f"To log to Weights & Biases again, add --log_wandb=True --wandb_project={project}."
        )
    check_asked(settings, file, asked)
    # the machine that continues a run may be fast at another type
    sources.saved_dtype = str(settings.get("dtype", SAVED_DTYPE))
    settings.pop("trust_remote_code", None)
    settings = as_tested_before(settings, is_sequential(settings))
    return replace(layer, settings=settings)


def _with_known_names(layers: Sequence[Layer], warnings: list[str]) -> list[Layer]:
    """Layers with former names of settings replaced."""
    warnings += [
        f"{FORMER_KEY} ({layer.origin}): is called {KEY} now, and is of every model."
        for layer in layers
        if FORMER_KEY in layer.settings
    ]
    return [replace(layer, settings=with_known_names(layer.settings)) for layer in layers]


def _with_valid_keys(layers: Sequence[Layer], model: str, warnings: list[str]) -> list[Layer]:
    """Refuse unknown keys; drop language models' keys in files while another model runs."""
    valid = valid_keys(model)
    if any(layer.settings.get("transform") for layer in layers):
        valid |= shared.TRANSFORM_KEYS
    problems, kept_layers = [], []
    for layer in layers:
        foreign = [key for key in layer.settings if key not in valid]
        ignored = _LANGUAGE_MODEL_KEYS.intersection(foreign) if layer.is_file else frozenset()
        problems += [
            f"{key} ({layer.origin}): {_why_invalid(key, model, valid)}"
            for key in foreign
            if key not in ignored
        ]
        if ignored and not layer.is_default:
            warnings.append(
                f"{layer.origin}: {', '.join(sorted(ignored))} are {models_with(ignored)}'s "
                f"settings and do not apply to {model}."
            )
        kept = {key: layer.settings[key] for key in layer.settings if key not in ignored}
        kept_layers.append(Layer(layer.origin, kept, layer.is_file, layer.is_default))
    raise_if_any(problems)
    return kept_layers


def _why_invalid(key: str, model: str, valid: set[str]) -> str:
    if key in _RECBOLE_PROCESSES:
        return (
            "RecBole's own way to several processes is not used. Start the command with torchrun "
            f"or deepspeed, which tell every process who it is ({doc_page('scaling')})."
        )
    if key in _LANGUAGE_MODEL_KEYS:
        owner = models_with({key})
        return f"is a setting of {owner}, not of {model}. Leave it out, or use --model={owner}."
    having = [name for name in sorted(recbole_models()) if key in model_settings(name)]
    if having:
        more = f" and {len(having) - 3} more" if len(having) > 3 else ""
        return f"is a setting of {', '.join(having[:3])}{more}, not of {model}. Leave it out."
    owner, dot, _ = key.partition(".")
    if dot:
        return (
            f"is a setting of an assistant {owner}, and there is none. Add --assistant={owner} (or "
            f"--sft_teacher={owner}), or leave it out."
        )
    hint = nearest_setting(key, valid)
    return f"there is no such setting{hint or ' and none with a similar name'}"


def _with_helper_settings(layers: Sequence[Layer]) -> list[Layer]:
    """Layers with keys like `EASE.reg_weight` moved into the strongest settings of that helper."""
    roles = [*HELPERS]
    if value_of(layers, "loss") == "zero_shot" or value_of(layers, "sft_epochs") == 0:
        roles.remove("sft_teacher")  # nothing is taught
    prefixes = {f"{role}_settings": f"{value_of(layers, role)}." for role in roles}
    gathered: dict[str, dict[str, Any]] = {own: {} for own in prefixes}
    kept = []
    for layer in layers:
        moved = {key for key in layer.settings if key.startswith(tuple(prefixes.values()))}
        rest = {key: layer.settings[key] for key in layer.settings if key not in moved}
        for own, prefix in prefixes.items():
            whole = layer.settings.get(own, {})
            if isinstance(whole, Mapping):  # the type check refuses anything else
                gathered[own] |= whole
            dotted = {key for key in moved if key.startswith(prefix)}
            gathered[own] |= {key[len(prefix) :]: layer.settings[key] for key in dotted}
            if dotted:
                rest[own] = dict(gathered[own])
        kept.append(replace(layer, settings=rest))
    return kept


def _converted(config_dict: Mapping[str, Any]) -> dict[str, Any]:
    settings = {}
    for key, value in config_dict.items():
        try:
            settings[key] = parse_setting(key, value) if isinstance(value, str) else plain(value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key} (config_dict): {error}.") from None
    return settings


def file_names(files: Any) -> list[str]:
    """Paths separated by spaces, as in RecBole, or a list if a path contains a space.

    Raises:
        ConfigError: the value is neither.
    """
    names = files.split() if isinstance(files, str) and not files.startswith("[") else files
    if isinstance(names, str):
        names = parse_literal(names)
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f'config_files: must be paths separated by spaces, or ["a.yaml"], got {files!r}.'
        )
    return names


def _file_layer(path: Path, is_default: bool = False) -> Layer:
    return Layer(str(path), read_settings_file(path), is_file=True, is_default=is_default)


def properties_folder() -> Path:
    """Folder of our property files: inside the package if installed, next to it in a clone."""
    return _shipped("properties", "overall.yaml")


def experiment_file(name: str) -> Path:
    """The experiment's file: a path, or the name of one that comes with the package: `losses`."""
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    shipped = experiments_folder()
    known = sorted(file.stem for file in shipped.glob("*.yaml"))
    if name not in known:
        hint = nearest(name, known) or "."
        raise ConfigError(
            f"experiment: there is no file {name}, and no experiment of that name{hint} "
            f"There are {', '.join(known)} ({shipped})."
        )
    return shipped / f"{name}.yaml"


def experiments_folder() -> Path:
    """Folder of the experiments that come with the package."""
    return _shipped("experiments", "losses.yaml")


def _shipped(name: str, file: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parent / name):
        if (folder / file).is_file():
            return folder
    kind = "property files" if name == "properties" else name
    raise ConfigError(f"the {kind} are missing ({package / name}). Install the package again.")


def _default_layers(model: str, dataset: str, pretrained: bool) -> list[Layer]:
    """Our property files, weakest first; a pretrained backbone has milder defaults than `tiny`."""
    folder = properties_folder()
    shared_files = [LLMREC, *([f"{LLMREC}.pretrained"] if pretrained else [])]
    of_model = [*(shared_files if model in LANGUAGE_MODELS else []), model]
    files = [
        folder / "overall.yaml",
        *(folder / f"model/{name}.yaml" for name in dict.fromkeys(of_model)),
    ]
    described = dataset_file(dataset)
    files += [] if described is None else [described]
    return [_file_layer(file, is_default=True) for file in files if file.is_file()]


@cache
def hosted_data_sets() -> frozenset[str]:
    """Names of the data sets that RecBole downloads."""
    return frozenset(_recbole_settings("dataset/url.yaml"))


def dataset_file(name: str) -> Path | None:
    """The property file of a data set; None if there is none.

    A data set that RecBole downloads may belong to a family with one file: `amazon-beauty` and
    `amazon-books-18` are described by `amazon.yaml`, `steam-merged` by `steam.yaml`.
    """
    folder = properties_folder() / "dataset"
    names = [name]
    if name in hosted_data_sets() - _WITHOUT_FAMILY:
        parts = name.split("-")
        names += ["-".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
    return next((file for each in names if (file := folder / f"{each}.yaml").is_file()), None)


def _data_folder_layers(data_path: Any, dataset: str) -> list[Layer]:
    """The property file next to the atomic files, as `recbole_multdpo.data.convert` writes it."""
    if not isinstance(data_path, str):
        data_path = RECBOLE_DATA_PATH
        if dataset == RECBOLE_DATA_SET:  # RecBole's own copy is used
            return []
    file = Path(data_path) / dataset / f"{dataset}.yaml"
    if not file.is_file():
        return []
    layer = _file_layer(file, is_default=True)
    declarations = {key: acts(key.rpartition(".")[2]) for key in layer.settings}
    foreign = {key for key, acting in declarations.items() if not acting.data_folder}
    if foreign:
        asked = any(declarations[key].asked for key in foreign)
        where = "" if asked else " or in a file of --config_files"
        raise ConfigError(
            f"{file}: a data set's own file may not set {', '.join(sorted(foreign))}. Remove it "
            f"there, and set it on the command line{where} where it is wanted."
        )
    return [layer]


def value_of(layers: Sequence[Layer], key: str) -> Any:
    """The strongest layer's value; None if no layer has the key."""
    return next((layer.settings[key] for layer in reversed(layers) if key in layer.settings), None)


def required(layers: Sequence[Layer], key: str) -> str:
    """The value of `model` or `dataset`.

    Raises:
        ConfigError: it is missing or no text.
    """
    value = value_of(layers, key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key}: must be text, got {value!r}. Write it in quotes.")
    if not value:
        example = {"model": LLMREC, "dataset": RECBOLE_DATA_SET}[key]
        raise ConfigError(f"no {key} is given. Add --{key}=NAME, for example --{key}={example}.")
    return value


def merged(layers: Iterable[Layer]) -> dict[str, Any]:
    """Merge layers, later ones stronger; `eval_args` is merged part by part.

    A single value is a list where the setting takes one.
    """
    found: dict[str, Any] = {}
    for layer in layers:
        settings = with_lists(deepcopy(dict(layer.settings)))
        if "eval_args" in settings:
            settings["eval_args"] = shared.merged_eval_args(
                found.get("eval_args", {}), settings["eval_args"]
            )
        found.update(settings)
    return found


def raise_if_any(problems: list[str]) -> None:
    """Raise a `ConfigError` that lists the problems, if there are any."""
    if problems:
        raise ConfigError(listed(problems))


def check_model(name: str) -> None:
    """Refuse the name of no model, and a model of RecBole whose packages are not installed.

    Raises:
        ConfigError: with the nearest names, or the packages.
    """
    if name in LANGUAGE_MODELS:
        return
    if name not in recbole_models():
        known = [*LANGUAGE_MODELS, *sorted(recbole_models())]
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise ConfigError(f"model: there is no model {name!r}{hint}")
    raise_if_any(missing_packages(name, None))


def check_helper(role: str, name: str) -> None:
    """Refuse a model that cannot help a language model.

    Args:
        role: the setting that names it, a key of `HELPERS`.
        name: the model.

    Raises:
        ConfigError: there is no such model of RecBole, or it is no general one.
    """
    if name not in recbole_models():
        hint = nearest(name, recbole_models()) or "; use one of RecBole's, such as EASE"
        raise ConfigError(f"{role}: there is no model {name!r} that can {HELPERS[role]}{hint}")
    if model_type(name) not in ("GENERAL", "TRADITIONAL"):
        raise ConfigError(
            f"{role}={name} is no general model: it needs more than who chose which item. Use "
            "EASE, ItemKNN, BPR, LightGCN or another of RecBole's general models."
        )


def _check_dataset_name(dataset: str) -> None:
    if not re.fullmatch(r"[^/\\]+", dataset) or dataset in (".", ".."):
        raise ConfigError(
            f"dataset={dataset}: must be the name of a folder in data_path, not a path. "
            "Set --data_path to the folder that holds it."
        )


def is_sequential(settings: Mapping[str, Any]) -> bool:
    """True if these are settings of one of RecBole's sequential models."""
    name = settings.get("model")
    return name in recbole_models() and model_type(str(name)) == "SEQUENTIAL"


@cache
def model_settings(model: str) -> dict[str, Any]:
    """Defaults of one model's own settings; {} without a property file."""
    if is_own(model):
        return read_settings_file(properties_folder() / f"model/{model}.yaml")
    return _recbole_settings(f"model/{model}.yaml")


def _recbole_settings(name: str) -> dict[str, Any]:
    file = recbole_folder() / "properties" / name
    return read_settings_file(file) if file.is_file() and file.read_text("utf-8").strip() else {}


@cache
def shared_settings() -> dict[str, Any]:
    """RecBole's defaults of the settings that every model has."""
    return {**_recbole_settings("dataset/sample.yaml"), **_recbole_settings("overall.yaml")}


def with_floats(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with whole numbers as floats where the default is one: `1` and `1.0` are one value.

    Keys of caches and comparisons of settings then agree.
    """
    own = model_settings(model) if model in recbole_models() else {}
    defaults = {**shared_settings(), **own}
    return {
        key: float(value) if type(value) is int and type(defaults.get(key)) is float else value
        for key, value in settings.items()
    }


def valid_keys(model: str) -> set[str]:
    """Names of all settings that a model accepts."""
    keys = set(shared_settings()) | shared.ADDED_KEYS | shared.UNLISTED_KEYS
    if model in LANGUAGE_MODELS:
        return keys | LANGUAGE_MODELS[model].model_fields.keys()
    keys |= model_settings(model).keys()
    keys |= shared.UNLISTED_MODEL_KEYS.get(model, frozenset())
    return keys | shared.UNLISTED_TYPE_KEYS.get(model_type(model), frozenset())


def own_setting_problems(
    model: str, settings: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    """Values of a RecBole model's own settings that are of another kind than RecBole's default.

    These settings have no declared type, only their default's.
    """
    return [
        f"{key} ({origins[key]}): must be {_kind(default)}, got {settings[key]!r}"
        for key, default in model_settings(model).items()
        if key in origins and not _same_kind(default, settings[key])
    ]


def _same_kind(default: Any, value: Any) -> bool:
    """True if a value may replace a RecBole default; a default of None or text allows any."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and (isinstance(default, bool | str) or default is None)
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    if isinstance(default, list | dict):
        return value is None or isinstance(value, type(default))
    return True


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "True or False"
    kind = {"list": "a list", "dict": "a mapping"}.get(type(default).__name__, "a number")
    return f"{kind} like RecBole's default {default!r}"
