"""RecBole's Config with checked settings: reads, merges and validates them.

A setting is taken from, the strongest first: the command line, `config_dict`, the files of
`--config_files` (a later one wins), the data set's own file `<name>.yaml` in its folder, the files
in `properties/` (dataset, model, overall), RecBole's own property files. A language model's files
are `LLMRec.yaml`, `LLMRec.pretrained.yaml` with a backbone other than `tiny`, and its own.
RecBole accepts any key and evaluates values as Python; here every key is known, every value is a
literal, and a mistake is reported before anything is loaded.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import recbole
import torch
from pydantic import TypeAdapter
from recbole.config import Config as RecBoleConfig
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, ModelType, get_model
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings import recbole as shared
from recbole_multdpo.settings.asked_for import check_asked
from recbole_multdpo.settings.checks import check_combinations, warnings_for
from recbole_multdpo.settings.conversation_models import check_conversation_model
from recbole_multdpo.settings.deepspeed import deepspeed_settings, process_problems
from recbole_multdpo.settings.effects import acts, declared, idle, idle_problems, in_run
from recbole_multdpo.settings.hardware import AUTO as AUTO_DTYPE
from recbole_multdpo.settings.hardware import FLOAT32, device_of, fast_dtype
from recbole_multdpo.settings.information import AUTO as AUTO_INFORMATION
from recbole_multdpo.settings.information import (
    FORMER_KEY,
    KEY,
    as_tested_before,
    default_information,
    information_problems,
    with_known_names,
)
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS, LLMREC, models_with
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.messages import listed, nearest, type_problems
from recbole_multdpo.settings.optional_packages import (
    missing_for_kernels,
    missing_for_logging,
    missing_packages,
)
from recbole_multdpo.settings.text import (
    SettingsLoader,
    parse_command_line,
    parse_literal,
    parse_setting,
    read_settings_file,
)
from recbole_multdpo.settings.unused import unused_problems

_LANGUAGE_MODEL_KEYS = frozenset(
    key for settings in LANGUAGE_MODELS.values() for key in settings.model_fields
)
_RECBOLE = Path(recbole.__file__).parent
AUTO = "auto"  # value of resume: find the run
RECBOLE_DATA_PATH = "dataset"  # RecBole's default of data_path

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


class Config(RecBoleConfig):
    """RecBole's Config for one run; read settings as `config["key"]`, as everywhere in RecBole.

    Attributes:
        settings: a language model's own settings, typed; None for every other model.
        assistant: configuration of a language model's assistant, else None.
        argv: the command line it was made from.
        warnings: sentences for the log, on settings that work but are seldom wanted.
        deepspeed: DeepSpeed's complete configuration; None without DeepSpeed.
        dtype_choice: why `dtype: auto` is the type that `settings` has; None where it was not auto.
    """

    def __init__(
        self,
        argv: Sequence[str] = (),
        config_dict: Mapping[str, Any] | None = None,
        run_folder: Path | None = None,
        auto_dtype: str | None = None,
    ):
        """Read, merge and check all settings; see `load_config`."""
        self.argv = list(argv)
        self.warnings: list[str] = []
        self.settings: LLMRecSettings | None = None
        self.deepspeed: dict[str, Any] | None = None
        self.assistant: Config | None = None
        self.dtype_choice: str | None = None
        self._auto_dtype = auto_dtype
        user_layers = self._with_known_names(self._user_layers(config_dict, run_folder))
        model, dataset = _required(user_layers, "model"), _required(user_layers, "dataset")
        _check_dataset_name(dataset)
        model_class = _model_class(model)
        pretrained = _value(user_layers, "backbone") not in (None, "tiny")
        self._layers = [
            *_default_layers(model, dataset, pretrained),
            *_data_folder_layers(_value(user_layers, "data_path"), dataset),
            *user_layers,
        ]
        if model in LANGUAGE_MODELS:
            self._layers = _with_assistant_settings(self._layers)
        self._check_keys(model, model_class)
        super().__init__(model=model, dataset=dataset)
        self._resolved = self._resolve()
        if self.settings is not None and self.settings.assistant is not None:
            self.assistant = _assistant_config(self.settings, self._resolved)

    @property
    def set_by_user(self) -> set[str]:
        """Names of the settings that do not come from the property files."""
        layers = (layer for layer in self._layers if not layer.is_default)
        return {key for layer in layers for key in layer.settings}

    def to_dict(self) -> dict[str, Any]:
        """All settings of the run as plain data, in a form that `--config_files` reads back.

        The folder of this run, RecBole's derived values and the process's rank are left out.
        `data_path` is None for the data set that comes with RecBole, and `device` is the setting
        rather than the device found, so that the settings mean the same on another machine.
        """
        return deepcopy(self._resolved)

    # methods that RecBole's constructor calls, in this order

    def _get_model_and_dataset(self, model: str, dataset: str) -> tuple[str, type, str]:
        """RecBole's method, except that a baseline, whose class is LLMRec, keeps its name."""
        return model, _model_class(model), dataset

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these lists, which are globals shared by all configurations.
        for category, keys in self.parameters.items():
            self.parameters[category] = list(keys)

    def _build_yaml_loader(self) -> type[SettingsLoader]:
        return SettingsLoader

    def _load_config_files(self, file_list: Any) -> dict[str, Any]:
        return _merged(layer for layer in self._layers if layer.is_file)

    def _load_variable_config_dict(self, config_dict: Any) -> dict[str, Any]:
        return _merged(layer for layer in self._layers if layer.origin == "config_dict")

    def _load_cmd_line(self) -> dict[str, Any]:
        return _merged(layer for layer in self._layers if layer.origin == "command line")

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = _merged(self._layers)

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = super()._get_final_config_dict()
        final["model"], final["dataset"] = self.model, self.dataset
        origins = {
            key: layer.origin
            for layer in self._layers
            if not layer.is_default
            for key in layer.settings
        }
        self._load_what_the_model_reads(final, origins)
        self._check_types(final, origins)
        self._choose_dtype(final)
        self._fill_gaps(final)
        self._check_combinations(final, origins)
        self._without_pickles(final, origins)
        self._as_set = {
            key: deepcopy(value)
            for key, value in final.items()
            if acts(key, self.model).saved_as_set
        }
        return final

    def _set_default_parameters(self) -> None:
        try:
            super()._set_default_parameters()
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(f"RecBole rejects these settings: {error}") from error
        folder = self.external_config_dict.get("data_path")
        # RecBole ignores data_path for the data set that it brings along.
        self.final_config_dict["data_path"] = (
            os.path.join(folder, self.dataset)
            if folder is not None
            else os.path.normpath(self.final_config_dict["data_path"])
        )

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        """RecBole's method, which does not know `totalN`: its loader replaces one of `uniN`."""
        total = shared.total_candidates(self.final_config_dict["eval_args"]["mode"][phase])
        if total is None:
            super()._set_eval_neg_sample_args(phase)
            return
        arguments = {"distribution": "uniform", "sample_num": total}
        self.final_config_dict[f"{phase}_neg_sample_args"] = arguments

    def _init_device(self) -> None:
        """Set device, local_rank and single_spec, without RecBole's own process group.

        RecBole sets CUDA_VISIBLE_DEVICES to "0" in every process. Here it is set only if the user
        gave gpu_id, and never under a launcher, which has set it or expects all devices.
        """
        final = self.final_config_dict
        self._check_processes()
        final["gpu_id"] = str(final["gpu_id"])
        final["local_rank"] = processes.local_rank()
        final["single_spec"] = True
        final["device"] = self._find_device(final)
        # with use_gpu, RecBole's trainer queries the device's GPU memory
        final["use_gpu"] = final["device"].type == "cuda"
        if self.settings is not None:
            self.warnings += warnings_for(self.settings, final["device"])
            if final["use_gpu"]:
                _raise_if_any(missing_for_kernels(self.settings.use_liger_kernel))

    def _find_device(self, final: Mapping[str, Any]) -> torch.device:
        """The device of this process."""
        launched = "LOCAL_RANK" in os.environ
        if "gpu_id" in self.external_config_dict and not launched:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(final["gpu_id"])
        allowed = bool(final["use_gpu"] and str(final["gpu_id"]))
        return device_of(final["device"], allowed, processes.local_rank() if launched else None)

    # sources of settings

    def _user_layers(
        self, config_dict: Mapping[str, Any] | None, run_folder: Path | None
    ) -> list[Layer]:
        """The user's settings, weakest first: of a run folder, files, config_dict, command line."""
        given = Layer("config_dict", _converted(config_dict or {}))
        command_line = Layer("command line", parse_command_line(self.argv))
        asked = {**given.settings, **command_line.settings}
        files = [_file_layer(Path(name)) for name in _file_names(asked.get("config_files"))]
        for layer in files:
            check_asked(layer.settings, layer.origin, asked)
        resume = _value([*files, given, command_line], "resume")
        if isinstance(resume, str) and resume != AUTO:
            run_folder = Path(resume)
            if not (run_folder / "config.yaml").is_file():
                raise ConfigError(
                    f"resume={resume}: there is no {run_folder / 'config.yaml'}. Name the folder "
                    "of a run that was started."
                )
        saved = [] if run_folder is None else [self._run_layer(run_folder / "config.yaml", asked)]
        return [*saved, *files, given, command_line]

    def _run_layer(self, file: Path, asked: Mapping[str, Any]) -> Layer:
        """Settings from a run's folder, which may come from anybody."""
        layer = _file_layer(file)
        settings = dict(layer.settings)
        project = settings.pop("wandb_project", None)
        if settings.pop("log_wandb", None) and "log_wandb" not in asked:
            self.warnings.append(
                f"{file}: log_wandb: True is not taken from a run's folder, as it sends data away. "
                f"To log to Weights & Biases again, add --log_wandb=True --wandb_project={project}."
            )
        check_asked(settings, file, asked)
        # the machine that continues a run may be fast at another type
        self._auto_dtype = str(settings.get("dtype", FLOAT32))
        settings.pop("trust_remote_code", None)
        settings = as_tested_before(settings, _is_sequential(settings))
        return replace(layer, settings=settings)

    # Checks

    def _with_known_names(self, layers: Sequence[Layer]) -> list[Layer]:
        """Layers with former names of settings replaced."""
        self.warnings += [
            f"{FORMER_KEY} ({layer.origin}): is called {KEY} now, and is of every model."
            for layer in layers
            if FORMER_KEY in layer.settings
        ]
        return [replace(layer, settings=with_known_names(layer.settings)) for layer in layers]

    def _check_processes(self) -> None:
        """Refuse more processes than examples in a step."""
        n_processes = processes.launched_world_size()
        if n_processes == 1 or self.settings is None:
            return
        final = self.final_config_dict
        for epochs, key in (("sft_epochs", "sft_batch_size"), ("epochs", "train_batch_size")):
            if final[epochs] and final[key] < n_processes:
                raise ConfigError(
                    f"{key}={final[key]} examples per step, of all processes together, are too few "
                    f"for {n_processes} processes. Start {final[key]} at most, or raise --{key}."
                )

    def _check_keys(self, model: str, model_class: type) -> None:
        """Refuse unknown keys; drop language models' keys in files while another model runs."""
        valid = _valid_keys(model, model_class)
        if any(layer.settings.get("transform") for layer in self._layers):
            valid |= shared.TRANSFORM_KEYS
        problems, layers = [], []
        for layer in self._layers:
            foreign = [key for key in layer.settings if key not in valid]
            ignored = _LANGUAGE_MODEL_KEYS.intersection(foreign) if layer.is_file else frozenset()
            problems += [
                f"{key} ({layer.origin}): {_why_invalid(key, model, valid)}"
                for key in foreign
                if key not in ignored
            ]
            if ignored and not layer.is_default:
                self.warnings.append(
                    f"{layer.origin}: {', '.join(sorted(ignored))} are {models_with(ignored)}'s "
                    f"settings and do not apply to {model}."
                )
            kept = {key: layer.settings[key] for key in layer.settings if key not in ignored}
            layers.append(Layer(layer.origin, kept, layer.is_file, layer.is_default))
        _raise_if_any(problems)
        self._layers = layers

    def _without_pickles(self, final: dict[str, Any], origins: Mapping[str, str]) -> None:
        """Refuse RecBole's paths of pickled data sets and loaders; none are written."""
        _raise_if_any(
            [
                f"{key} ({origins.get(key, 'RecBole')}): RecBole would load {final[key]}, a "
                "pickle, and loading one can run any code. Leave it out: every run builds its data "
                "from the atomic files."
                for key in ("dataset_save_path", "dataloaders_save_path")
                if final.get(key) is not None
            ]
        )
        for key in ("save_dataset", "save_dataloaders"):
            if final.get(key):
                final[key] = False
                self.warnings.append(
                    f"{key}=True is ignored: RecBole would write a pickle, which no run reads, as "
                    "loading one can run any code."
                )

    def _load_what_the_model_reads(self, final: dict[str, Any], origins: Mapping[str, str]) -> None:
        """Add the columns that RecBole loads for this model to those of our property files.

        Our files list the columns that every model reads; knowledge graphs, users' ages or items'
        genres are for some. A value of the user stays.
        """
        columns = final.get("load_col")
        if "load_col" in origins or columns is None:
            return
        merged = {suffix: list(names) for suffix, names in columns.items()}
        for suffix, names in (self.internal_config_dict["load_col"] or {}).items():
            own = merged.setdefault(suffix, [])
            own += [name for name in names if name not in own]
        final["load_col"] = merged

    def _fill_gaps(self, final: dict[str, Any]) -> None:
        """Set settings with only one workable value for the kind of model, unless the user did."""
        if final.get("data_path") is None:
            final["data_path"] = self.internal_config_dict["data_path"]
        if final.get(KEY, AUTO_INFORMATION) == AUTO_INFORMATION:
            final[KEY] = default_information(final)
        if "threshold" not in self.external_config_dict and _is_ranked(final):
            final["threshold"] = None  # RecBole's preset is for labelled rows, see below
        if "train_neg_sample_args" in self.external_config_dict:
            return
        if not hasattr(self.model_class, "input_type") and final.get("loss_type") == "CE":
            final["train_neg_sample_args"] = None  # RecBole refuses negatives with this loss
        elif final["MODEL_TYPE"] == ModelType.CONTEXT and _is_ranked(final):
            # RecBole's preset for these models expects labelled rows; a ranking has only positives
            final["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}

    def _check_types(self, final: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """Check the type and range of each setting; set `settings` for a language model."""
        problems = type_problems(shared.RECBOLE_SETTINGS, final, origins)
        if self.model in LANGUAGE_MODELS:
            kind = LANGUAGE_MODELS[self.model]
            own = {key: final[key] for key in kind.model_fields if key in final}
            problems += type_problems(TypeAdapter(kind), own, origins)
            _raise_if_any(problems)
            self.settings = kind(**own)
        else:
            # a RecBole model's own settings have no declared type, only their default's
            problems += [
                f"{key} ({origins[key]}): must be {_kind(default)}, got {final[key]!r}"
                for key, default in _recbole_model_settings(self.model).items()
                if key in origins and not _same_kind(default, final[key])
            ]
            _raise_if_any(problems)

    def _choose_dtype(self, final: dict[str, Any]) -> None:
        """Replace `dtype: auto` by the run's type, or the one that the device is fast at."""
        if self.settings is None or self.settings.dtype != AUTO_DTYPE:
            return
        dtype, reason = self._auto_dtype, "as the run was begun"
        if dtype in (None, AUTO_DTYPE):
            dtype, reason = fast_dtype(self._find_device(final))
        own = {**self.settings.model_dump(), "dtype": dtype}
        _raise_if_any(type_problems(TypeAdapter(type(self.settings)), own, {"dtype": "run folder"}))
        self.settings, final["dtype"] = type(self.settings)(**own), dtype
        self.dtype_choice = f"dtype=auto is {dtype}: {reason}"

    def _check_combinations(self, final: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """Check settings against each other, after the check of types."""
        problems = shared.evaluation_problems(
            final, *(_metrics(kind) for kind in (EvaluatorType.RANKING, EvaluatorType.VALUE))
        )
        explicit = self._load_cmd_line()
        problems += unused_problems(
            final,
            explicit,
            is_language_model=self.settings is not None,
            is_ranked=_is_ranked(final),
            reads_labels=self.settings is None and _reads_labels(self.model_class),
        )
        if self.settings is not None:
            problems += check_combinations(self.settings, final, explicit)
            problems += _metric_problems(self.model, final)
        else:
            problems += idle_problems(in_run(final), explicit, self.model)
        problems += information_problems(self.model, final, self.settings is not None)
        problems += missing_for_logging(final)
        if self.model not in LANGUAGE_MODELS:
            problems += missing_packages(self.model, final)
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final["eval_args"]["order"] != "TO":
            problems.append(
                f"eval_args: {self.model} learns from the order of events and needs order TO. Add "
                "--eval_args=\"{'order': 'TO'}\", for the models it is compared with too."
            )
        if final["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            problems += shared.sequence_file_problems(final)
        _raise_if_any(problems)
        if self.settings is not None and self.settings.deepspeed is not None:
            self.deepspeed = deepspeed_settings(
                self.settings.deepspeed,
                final,
                processes.launched_world_size(),
                properties_folder() / "deepspeed",
                self.warnings,
            )
        if self.settings is not None:
            several = self.deepspeed is not None or processes.launched_world_size() > 1
            _raise_if_any(process_problems(self.settings, self.deepspeed, several))

    def _resolve(self) -> dict[str, Any]:
        final = {
            **self.final_config_dict,
            **self._as_set,
            "data_path": self.external_config_dict.get("data_path"),
        }
        if final["data_path"] is None and self.dataset != "ml-100k":
            final["data_path"] = self.internal_config_dict["data_path"]
        first = {"model": self.model, "dataset": self.dataset}
        known = _valid_keys(self.model, self.model_class) | shared.TRANSFORM_KEYS
        rest = {k: v for k, v in final.items() if k in known and acts(k, self.model).saved}
        return plain({**first, **rest})


def load_config(
    argv: Sequence[str],
    *,
    config_dict: dict[str, Any] | None = None,
    run_folder: Path | None = None,
    auto_dtype: str | None = None,
) -> Config:
    """Read the settings of one run from a command line, files and a dictionary.

    Args:
        argv: arguments of the form `--key=value`, without the program's name; sys.argv is not
            read.
        config_dict: settings between the command line and the files in precedence; text values are
            read as on the command line.
        run_folder: folder of a run whose settings are the weakest of the user's, as with `resume`.
        auto_dtype: what `dtype: auto` is, where it was decided before; None to decide it here.

    Returns:
        The complete, checked configuration.

    Raises:
        ConfigError: an argument, a file, a key, a value or a combination is wrong; all problems of
            one kind are reported together, each with what is allowed.
    """
    return Config(argv, config_dict, run_folder, auto_dtype)


def settings_of(model: str) -> set[str]:
    """Names of all settings that affect a model.

    Raises:
        ConfigError: there is no such model.
    """
    kind: Any = _model_class(model)
    keys = _valid_keys(model, kind)
    return keys - idle(in_run({"model": model, "MODEL_TYPE": kind.type}), keys, model)


def properties_folder() -> Path:
    """Folder of our property files: inside the package if installed, next to it in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise ConfigError(
        f"the property files are missing ({package / 'properties'}). Install the package again."
    )


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Read the settings that a run saved in its folder; former names are replaced.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    saved = read_settings_file(folder / "config.yaml")
    return as_tested_before(saved, _is_sequential(saved))


def _is_sequential(settings: Mapping[str, Any]) -> bool:
    """True if these are settings of one of RecBole's sequential models."""
    name = settings.get("model")
    if name not in recbole_models():
        return False
    model_class: Any = _model_class(str(name))
    return bool(model_class.type == ModelType.SEQUENTIAL)


def _with_assistant_settings(layers: Sequence[Layer]) -> list[Layer]:
    """Layers with keys like `EASE.reg_weight` moved into the strongest `assistant_settings`."""
    prefix = f"{_value(layers, 'assistant')}."
    gathered: dict[str, Any] = {}
    kept = []
    for layer in layers:
        dotted = {key for key in layer.settings if key.startswith(prefix)}
        whole = layer.settings.get("assistant_settings", {})
        if isinstance(whole, Mapping):  # the type check refuses anything else
            gathered |= whole
        gathered |= {key[len(prefix) :]: layer.settings[key] for key in dotted}
        rest = {key: layer.settings[key] for key in layer.settings if key not in dotted}
        if dotted:
            rest["assistant_settings"] = dict(gathered)
        kept.append(replace(layer, settings=rest))
    return kept


def _assistant_config(settings: LLMRecSettings, run: Mapping[str, Any]) -> Config:
    """Make the assistant's configuration: data, split and evaluation are the run's.

    Args:
        settings: the language model's settings.
        run: all settings of the run.

    Raises:
        ConfigError: the model cannot assist, or its settings are wrong.
    """
    name = str(settings.assistant)
    if name not in recbole_models():
        hint = nearest(name, recbole_models()) or "; use one of RecBole's, such as EASE"
        raise ConfigError(f"assistant: there is no model {name!r} that can assist{hint}")
    kind: Any = _model_class(name)
    if kind.type not in (ModelType.GENERAL, ModelType.TRADITIONAL):
        raise ConfigError(
            f"assistant={name} is no general model: it needs more than who chose which item. Use "
            "EASE, ItemKNN, BPR, LightGCN or another of RecBole's general models."
        )
    common = shared.ADDED_KEYS | shared.UNLISTED_KEYS | set(general_arguments)
    common |= {*evaluation_arguments, *dataset_arguments}
    common -= {"model", "dataset", *(key for key, acting in declared().items() if not acting.saved)}
    foreign = sorted(common & settings.assistant_settings.keys())
    if foreign:
        raise ConfigError(
            f"assistant_settings: {', '.join(foreign)} must be those of the run. Set them for it."
        )
    given = {key: run[key] for key in sorted(common & run.keys())}
    try:
        config = Config(
            [f"--model={name}", f"--dataset={run['dataset']}"],
            {**given, **settings.assistant_settings},
        )
        if config["context"] == "conversation":
            check_conversation_model(config)
    except ConfigError as error:
        raise ConfigError(f"assistant {name}: {error}") from error
    return config


def _converted(config_dict: Mapping[str, Any]) -> dict[str, Any]:
    settings = {}
    for key, value in config_dict.items():
        try:
            settings[key] = parse_setting(key, value) if isinstance(value, str) else plain(value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key} (config_dict): {error}.") from None
    return settings


def _file_names(files: Any) -> list[str]:
    """Paths separated by spaces, as in RecBole, or a list if a path contains a space."""
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


def _default_layers(model: str, dataset: str, pretrained: bool) -> list[Layer]:
    """Our property files, weakest first; a pretrained backbone has milder defaults than `tiny`."""
    folder = properties_folder()
    shared_files = [LLMREC, *([f"{LLMREC}.pretrained"] if pretrained else [])]
    of_model = [*(shared_files if model in LANGUAGE_MODELS else []), model]
    files = [
        folder / "overall.yaml",
        *(folder / f"model/{name}.yaml" for name in dict.fromkeys(of_model)),
        folder / f"dataset/{dataset}.yaml",
    ]
    return [_file_layer(file, is_default=True) for file in files if file.is_file()]


def _data_folder_layers(data_path: Any, dataset: str) -> list[Layer]:
    """The property file next to the atomic files, as `recbole_multdpo.data.convert` writes it."""
    if not isinstance(data_path, str):
        data_path = RECBOLE_DATA_PATH
        if dataset == "ml-100k":  # RecBole's own copy is used
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


def _value(layers: Sequence[Layer], key: str) -> Any:
    """The strongest layer's value; None if no layer has the key."""
    return next((layer.settings[key] for layer in reversed(layers) if key in layer.settings), None)


def _required(layers: Sequence[Layer], key: str) -> str:
    value = _value(layers, key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key}: must be text, got {value!r}. Write it in quotes.")
    if not value:
        example = {"model": LLMREC, "dataset": "ml-100k"}[key]
        raise ConfigError(f"no {key} is given. Add --{key}=NAME, for example --{key}={example}.")
    return value


def _merged(layers: Iterable[Layer]) -> dict[str, Any]:
    """Merge layers, later ones stronger; `eval_args` is merged part by part."""
    merged: dict[str, Any] = {}
    for layer in layers:
        settings = deepcopy(dict(layer.settings))
        if "eval_args" in settings:
            settings["eval_args"] = shared.merged_eval_args(
                merged.get("eval_args", {}), settings["eval_args"]
            )
        merged.update(settings)
    return merged


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ConfigError(listed(problems))


def _check_dataset_name(dataset: str) -> None:
    if not re.fullmatch(r"[^/\\]+", dataset) or dataset in (".", ".."):
        raise ConfigError(
            f"dataset={dataset}: must be the name of a folder in data_path, not a path. "
            "Set --data_path to the folder that holds it."
        )


@cache
def recbole_models() -> frozenset[str]:
    """Names of RecBole's models, from its files: importing all of them would take seconds."""
    names: set[str] = set()
    for file in _RECBOLE.glob("model/*_recommender/*.py"):
        source = file.read_text(encoding="utf-8")
        classes = re.findall(r"^class (\w+)\(", source, re.MULTILINE)
        names.update(name for name in classes if name.lower() == file.stem)
    return frozenset(names)


def _model_class(name: str) -> type:
    if name in LANGUAGE_MODELS:
        llmrec: type = import_module("recbole_multdpo.model.llmrec").LLMRec  # takes seconds
        return llmrec
    if name not in recbole_models():
        known = [*LANGUAGE_MODELS, *sorted(recbole_models())]
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise ConfigError(f"model: there is no model {name!r}{hint}")
    _raise_if_any(missing_packages(name, None))
    return get_model(name)


@cache
def _recbole_model_settings(model: str) -> dict[str, Any]:
    """RecBole's defaults of one model's own settings; {} without a property file."""
    file = _RECBOLE / f"properties/model/{model}.yaml"
    return read_settings_file(file) if file.is_file() and file.read_text("utf-8").strip() else {}


def _valid_keys(model: str, model_class: Any) -> set[str]:
    files = [_RECBOLE / "properties/overall.yaml", _RECBOLE / "properties/dataset/sample.yaml"]
    keys = {key for file in files for key in read_settings_file(file)}
    keys |= shared.ADDED_KEYS | shared.UNLISTED_KEYS
    if model in LANGUAGE_MODELS:
        return keys | LANGUAGE_MODELS[model].model_fields.keys()
    keys |= _recbole_model_settings(model).keys()
    keys |= shared.UNLISTED_MODEL_KEYS.get(model, frozenset())
    return keys | shared.UNLISTED_TYPE_KEYS.get(model_class.type.name, frozenset())


def _why_invalid(key: str, model: str, valid: set[str]) -> str:
    if key in _RECBOLE_PROCESSES:
        return (
            "RecBole's own way to several processes is not used. Start the command with torchrun "
            "or deepspeed, which tell every process who it is (docs/scaling.md)."
        )
    if key in _LANGUAGE_MODEL_KEYS:
        owner = models_with({key})
        return f"is a setting of {owner}, not of {model}. Leave it out, or use --model={owner}."
    having = [name for name in sorted(recbole_models()) if key in _recbole_model_settings(name)]
    if having:
        more = f" and {len(having) - 3} more" if len(having) > 3 else ""
        return f"is a setting of {', '.join(having[:3])}{more}, not of {model}. Leave it out."
    owner, dot, _ = key.partition(".")
    if dot:
        return (
            f"is a setting of an assistant {owner}, and there is none. Add --assistant={owner}, or "
            "leave it out."
        )
    hint = nearest(key, valid)
    return f"there is no such setting{hint or ' and none with a similar name'}"


def _reads_labels(kind: Any) -> bool:
    """True if a model of RecBole is trained on labels: one of its methods reads their column."""
    methods = dict(inspect.getmembers(kind, inspect.isfunction))
    methods.pop("__init__")  # sets the column's name even in models that never read it
    names = {name for method in methods.values() for name in method.__code__.co_names}
    # the trainer of decision trees reads labels
    return kind.type == ModelType.DECISIONTREE or not names.isdisjoint({"LABEL", "LABEL_FIELD"})


def _metrics(kind: Any) -> set[str]:
    return {name for name, metric_kind in metric_types.items() if metric_kind == kind}


def _is_ranked(final: Mapping[str, Any]) -> bool:
    metrics = final["metrics"]
    names = [metrics] if isinstance(metrics, str) else metrics
    return any(name.lower() in _metrics(EvaluatorType.RANKING) for name in names)


def _metric_problems(model: str, final: Mapping[str, Any]) -> list[str]:
    if _is_ranked(final):
        return []
    ranking = ", ".join(sorted(_metrics(EvaluatorType.RANKING)))
    return [f"metrics={final['metrics']}: {model} ranks items, so use ranking metrics: {ranking}."]


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
