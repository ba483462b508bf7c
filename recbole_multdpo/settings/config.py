"""RecBole's Config with checked settings: reads, merges and validates them.

Where they come from is in `layers.py`. RecBole accepts any key and evaluates values as Python; here
every key is known, every value is a literal, and a mistake is reported before anything is loaded.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import TypeAdapter
from recbole.config import Config as RecBoleConfig
from recbole.utils import ModelType, get_model
from recbole.utils.argument_list import dataset_arguments, evaluation_arguments, general_arguments

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings import recbole as shared
from recbole_multdpo.settings.by_size import AUTO as AUTO_EPOCHS
from recbole_multdpo.settings.checks import check_combinations, warnings_for
from recbole_multdpo.settings.conversation_models import check_conversation_model
from recbole_multdpo.settings.deepspeed import deepspeed_settings, process_problems
from recbole_multdpo.settings.effects import acts, declared, idle, idle_problems, in_run
from recbole_multdpo.settings.hardware import AUTO as AUTO_DTYPE
from recbole_multdpo.settings.hardware import device_of, fast_dtype
from recbole_multdpo.settings.information import AUTO as AUTO_INFORMATION
from recbole_multdpo.settings.information import (
    KEY,
    as_tested_before,
    default_information,
    information_problems,
)
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.layers import (
    HELPERS,
    check_helper,
    check_model,
    is_sequential,
    merged,
    own_setting_problems,
    properties_folder,
    raise_if_any,
    read_sources,
    valid_keys,
    with_floats,
)
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.messages import type_problems
from recbole_multdpo.settings.optional_packages import (
    missing_for_kernels,
    missing_for_logging,
    missing_packages,
)
from recbole_multdpo.settings.protocol import protocol_problems
from recbole_multdpo.settings.recbole_code import is_own, metric_names, recbole_models
from recbole_multdpo.settings.text import SettingsLoader, read_settings_file
from recbole_multdpo.settings.unused import unused_problems


class Config(RecBoleConfig):
    """RecBole's Config for one run; read settings as `config["key"]`, as everywhere in RecBole.

    Attributes:
        settings: a language model's own settings, typed; None for every other model.
        assistant: configuration of a language model's assistant, else None.
        teacher: configuration of its teacher, else None.
        argv: the command line it was made from.
        warnings: sentences for the log, on settings that work but are seldom wanted.
        notes: sentences for the log that are no warnings.
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
        self.settings: LLMRecSettings | None = None
        self.deepspeed: dict[str, Any] | None = None
        self.assistant: Config | None = None
        self.teacher: Config | None = None
        self.dtype_choice: str | None = None
        sources = read_sources(self.argv, config_dict, run_folder)
        model, dataset = sources.model, sources.dataset
        self.warnings: list[str] = sources.warnings
        self.notes: list[str] = []
        self._layers = sources.layers
        self._auto_dtype = sources.saved_dtype or auto_dtype
        super().__init__(model=model, dataset=dataset)
        self._resolved = self._resolve()
        if self.settings is not None:
            own, run = self.settings, self._resolved
            self.assistant = _helper(run, "assistant", own.assistant, own.assistant_settings)
            self.teacher = _helper(run, "sft_teacher", own.teacher, own.sft_teacher_settings)

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
        return merged(layer for layer in self._layers if layer.is_file)

    def _load_variable_config_dict(self, config_dict: Any) -> dict[str, Any]:
        return merged(layer for layer in self._layers if layer.origin == "config_dict")

    def _load_cmd_line(self) -> dict[str, Any]:
        return merged(layer for layer in self._layers if layer.origin == "command line")

    def _merge_external_config_dict(self) -> None:
        self.external_config_dict = merged(self._layers)

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
        self._write_floats(final)
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
        """RecBole's method, without `totalN` and lists, which replace a loader of `uniN`."""
        total = shared.total_candidates(self.final_config_dict["eval_args"]["mode"][phase])
        if phase == "test" and self.final_config_dict.get("candidate_lists") is not None:
            total = 1
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
                raise_if_any(missing_for_kernels(self.settings.use_liger_kernel))

    def _find_device(self, final: Mapping[str, Any]) -> torch.device:
        """The device of this process."""
        launched = "LOCAL_RANK" in os.environ
        if "gpu_id" in self.external_config_dict and not launched:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(final["gpu_id"])
        allowed = bool(final["use_gpu"] and str(final["gpu_id"]))
        return device_of(final["device"], allowed, processes.local_rank() if launched else None)

    # Checks

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

    def _without_pickles(self, final: dict[str, Any], origins: Mapping[str, str]) -> None:
        """Refuse RecBole's paths of pickled data sets and loaders; none are written."""
        raise_if_any(
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

    def _write_floats(self, final: dict[str, Any]) -> None:
        """Replace whole numbers in settings of floats, those of assistant and teacher too."""
        final |= with_floats(self.model, final)
        for role in HELPERS:
            own = final.get(f"{role}_settings")
            if isinstance(own, dict) and final.get(role) in recbole_models():
                final[f"{role}_settings"] = with_floats(str(final[role]), own)

    def _check_types(self, final: dict[str, Any], origins: Mapping[str, str]) -> None:
        """Check the type and range of each setting; set `settings` for a language model."""
        problems = type_problems(shared.RECBOLE_SETTINGS, final, origins)
        if self.model in LANGUAGE_MODELS:
            kind = LANGUAGE_MODELS[self.model]
            own = {key: final[key] for key in kind.model_fields if key in final}
            problems += type_problems(TypeAdapter(kind), own, origins)
            raise_if_any(problems)
            self.settings = kind(**own)
            typed = self.settings.model_dump()
            final |= {key: typed[key] for key in own if type(typed[key]) is float}
        else:
            problems += own_setting_problems(self.model, final, origins)
            raise_if_any(problems)

    def _choose_dtype(self, final: dict[str, Any]) -> None:
        """Replace `dtype: auto` by the run's type, or the one that the device is fast at."""
        if self.settings is None or self.settings.dtype != AUTO_DTYPE:
            return
        dtype, reason = self._auto_dtype, "as the run was begun"
        if dtype in (None, AUTO_DTYPE):
            dtype, reason = fast_dtype(self._find_device(final))
        own = {**self.settings.model_dump(), "dtype": dtype}
        raise_if_any(type_problems(TypeAdapter(type(self.settings)), own, {"dtype": "run folder"}))
        self.settings, final["dtype"] = type(self.settings)(**own), dtype
        self.dtype_choice = f"dtype=auto is {dtype}: {reason}"

    def _check_combinations(self, final: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """Check settings against each other, after the check of types."""
        raise_if_any(protocol_problems(final))  # the reason of what follows
        problems = shared.evaluation_problems(final, metric_names("RANKING"), metric_names("VALUE"))
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
            if final["epochs"] == AUTO_EPOCHS:
                problems.append(f"epochs={AUTO_EPOCHS} is of LLMRec alone. Set a number.")
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
        raise_if_any(problems)
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
            raise_if_any(process_problems(self.settings, self.deepspeed, several))

    def _resolve(self) -> dict[str, Any]:
        final = {
            **self.final_config_dict,
            **self._as_set,
            "data_path": self.external_config_dict.get("data_path"),
        }
        if final["data_path"] is None and self.dataset != "ml-100k":
            final["data_path"] = self.internal_config_dict["data_path"]
        first = {"model": self.model, "dataset": self.dataset}
        known = valid_keys(self.model) | shared.TRANSFORM_KEYS
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
    check_model(model)
    keys = valid_keys(model)
    return keys - idle(in_run({"model": model}), keys, model)


def settings_of_run(folder: Path) -> dict[str, Any]:
    """Read the settings that a run saved in its folder; former names are replaced.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    saved = read_settings_file(folder / "config.yaml")
    return as_tested_before(saved, is_sequential(saved))


def _helper(
    run: Mapping[str, Any], role: str, name: str | None, own: Mapping[str, Any]
) -> Config | None:
    """Make the configuration of an assistant or a teacher: data and evaluation are the run's.

    Args:
        run: all settings of the run.
        role: the setting that names it, a key of `layers.HELPERS`.
        name: of the model; None for none.
        own: the model's settings.

    Raises:
        ConfigError: the model cannot help, or its settings are wrong.
    """
    if name is None:
        return None
    check_helper(role, name)
    common = shared.ADDED_KEYS | shared.UNLISTED_KEYS | set(general_arguments)
    common |= {*evaluation_arguments, *dataset_arguments}
    common -= {"model", "dataset", *(key for key, acting in declared().items() if not acting.saved)}
    common -= {"candidate_lists"}  # of the run's test, which is not theirs
    foreign = sorted(common & own.keys())
    if foreign:
        raise ConfigError(
            f"{role}_settings: {', '.join(foreign)} must be those of the run. Set them for it."
        )
    given = {key: run[key] for key in sorted(common & run.keys())}
    try:
        config = Config(
            [f"--model={name}", f"--dataset={run['dataset']}"],
            {**given, **own},
        )
        if config["context"] == "conversation":
            check_conversation_model(config)
    except ConfigError as error:
        raise ConfigError(f"{role} {name}: {error}") from error
    config["log_wandb"] = False  # the curves there are the run's
    return config


def _model_class(name: str) -> type:
    if name in LANGUAGE_MODELS:
        llmrec: type = import_module("recbole_multdpo.model.llmrec").LLMRec  # takes seconds
        return llmrec
    check_model(name)
    if is_own(name):
        own = import_module(f"recbole_multdpo.classical.general_recommender.{name.lower()}")
        return cast(type, getattr(own, name))
    return get_model(name)


def _reads_labels(kind: Any) -> bool:
    """True if a model of RecBole is trained on labels: one of its methods reads their column."""
    methods = dict(inspect.getmembers(kind, inspect.isfunction))
    methods.pop("__init__")  # sets the column's name even in models that never read it
    names = {name for method in methods.values() for name in method.__code__.co_names}
    # the trainer of decision trees reads labels
    return kind.type == ModelType.DECISIONTREE or not names.isdisjoint({"LABEL", "LABEL_FIELD"})


def _is_ranked(final: Mapping[str, Any]) -> bool:
    metrics = final["metrics"]
    names = [metrics] if isinstance(metrics, str) else metrics
    return any(name.lower() in metric_names("RANKING") for name in names)


def _metric_problems(model: str, final: Mapping[str, Any]) -> list[str]:
    if _is_ranked(final):
        return []
    ranking = ", ".join(sorted(metric_names("RANKING")))
    return [f"metrics={final['metrics']}: {model} ranks items, so use ranking metrics: {ranking}."]
