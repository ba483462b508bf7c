"""RecBole 1.2.1 on the current numpy, pandas, scipy and torch.

RecBole 1.2.1 was released before numpy 2 and torch 2.6 and breaks with them in a handful of places.
`apply` fixes each with one small patch, only if the installed versions need it. It also imports
RecBole; importing this module does not.

`python -m recbole_multdpo.compat` prints the installed versions, the patches and their reasons.
"""

import importlib
import platform
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

from recbole_multdpo.compat import import_hook
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError, MultDPOError

RECBOLE_VERSION = "1.2.1"
INSTALL_RECBOLE = f"pip install --no-deps recbole=={RECBOLE_VERSION}"

# Packages listed by `python -m recbole_multdpo.compat`, besides Python.
_REPORTED = (
    "recbole-multdpo recbole torch numpy scipy pandas transformers peft tokenizers safetensors"
    " pydantic scikit-learn tensorboard setuptools ray"
).split()

# Aliases that RecBole's own `Config.compatibility_settings` gives numpy, and their value today.
_NUMPY_ALIASES = {
    "bool": "bool_",
    "int": "int_",
    "float": "float64",
    "complex": "complex128",
    "object": "object_",
    "str": "str_",
    "long": "int_",
    "unicode": "str_",
}


class InstallationError(MultDPOError, ImportError):
    """An installed package is missing or of a version that RecBole 1.2.1 cannot work with."""


@dataclass(frozen=True)
class Patch:
    """One incompatibility between RecBole 1.2.1 and the installed packages.

    Attributes:
        name: short name.
        why: the problem, and the effect of the patch.
        needed: False if the installed versions work without the patch, which is then not applied.
    """

    name: str
    why: str
    needed: bool = True


_applied: list[Patch] | None = None


def apply() -> list[Patch]:
    """Import RecBole and patch it for the installed versions; later calls change nothing.

    Returns:
        One record per patch, in the order of application.

    Raises:
        InstallationError: RecBole is absent or not 1.2.1, or pandas is 3 or newer.
    """
    global _applied
    import_hook.forget()
    if _applied is None:
        _check_installation()
        _applied = [
            _quiet_warnings(),
            _numpy_aliases(),
            _scipy_dok_update(),
            _anomaly_detection(),
            _collector_numbers(),
            _tail_percentage(),
            _pop_counts(),
            _exact_times(),
            _parts_of_files(),
            _download_barrier(),
            _checkpoint_loading(),
            _no_pickles(),
            _ray_import(),
            _foreign_models(),
        ]
    return list(_applied)


def _check_installation() -> None:
    """Refuse unsupported versions; the message has the command to install supported ones."""
    recbole = _version("recbole")
    if recbole is None:
        raise InstallationError(
            f"RecBole is not installed. Run: {INSTALL_RECBOLE}\n"
            "(Python 3.12 and newer need this second command, because RecBole requires ray<=2.6.3, "
            "never used here, which has no release for them. With uv: uv pip install --no-deps ...)"
        )
    if recbole != RECBOLE_VERSION:
        raise InstallationError(
            f"recbole {recbole} is installed; the patches are for {RECBOLE_VERSION} only. "
            f"Run: {INSTALL_RECBOLE}"
        )
    pandas = _version("pandas")
    if pandas is None or _major(pandas) >= 3:
        raise InstallationError(
            f"pandas {pandas or 'is missing'}: RecBole {RECBOLE_VERSION} needs pandas below 3 "
            '(its list columns and filled gaps break). Run: pip install "pandas>=2.2,<3"'
        )


def _version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _major(version: str) -> int:
    return int(version.split(".", 1)[0])


def _quiet_warnings() -> Patch:
    """Hide deprecation warnings about RecBole's code, which users cannot change."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    # Raised while Python 3.12 and newer compile a file; the "module" is then its path.
    warnings.filterwarnings("ignore", category=SyntaxWarning, module=r".*[/\\]recbole[/\\]")
    for message in (r"torch\.sparse\.SparseTensor", "Creating a tensor from a list of numpy"):
        warnings.filterwarnings("ignore", message, UserWarning, module=r"recbole\.")
    return Patch(
        "deprecations",
        "Python, pandas and torch announce changes to lines in RecBole's code, dozens of times a "
        "run; they have no effect with the versions allowed here and are not printed",
    )


def _numpy_aliases() -> Patch:
    """numpy 2 dropped np.float_, np.complex_ and np.unicode_, which every Config reads."""
    import numpy as np
    from recbole.config import Config

    needed = not all(hasattr(np, name) for name in ("float_", "complex_", "unicode_"))
    if needed:

        def compatibility_settings(self: Any) -> None:
            """Give numpy the aliases that RecBole's metrics use, where numpy has none."""
            for alias, name in _NUMPY_ALIASES.items():
                if alias not in vars(np):  # hasattr would warn about the old names
                    setattr(np, alias, getattr(np, name))

        Config.compatibility_settings = compatibility_settings
        compatibility_settings(None)  # RecBole's data classes use np.float without any Config
    return Patch(
        "numpy aliases",
        f"Config reads np.float_, np.complex_ and np.unicode_, gone in numpy 2 (found "
        f"{np.__version__}); np.float, np.int and the like are set from today's names",
        needed,
    )


def _scipy_dok_update() -> Patch:
    """scipy dropped dok_matrix._update, with which seven graph models fill their adjacency."""
    import scipy
    from scipy.sparse import dok_matrix

    needed = not hasattr(dok_matrix, "_update")
    if needed:

        def _update(self: Any, data: dict[tuple[int, int], float]) -> None:
            """Set entries {(row, column): value} without checks, as scipy's method did."""
            self._dict.update(data)

        dok_matrix._update = _update
    return Patch(
        "scipy dok_matrix",
        "LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK call dok_matrix._update, which "
        f"{'is gone from' if needed else 'still exists in'} scipy {scipy.__version__}",
        needed,
    )


def _collector_numbers() -> Patch:
    """`Collector.get_data_struct` calls .cpu() on plain numbers and counters."""
    from recbole.evaluator.collector import Collector

    original = Collector.get_data_struct

    @wraps(original)
    def get_data_struct(self: Any) -> Any:
        """Hide values without .cpu() from RecBole's loop, and put them back."""
        collected = self.data_struct._data_dict
        others = {key: value for key, value in collected.items() if not hasattr(value, "cpu")}
        for key in others:
            del collected[key]
        try:
            result = original(self)
        finally:
            collected.update(others)
        result._data_dict.update(others)
        return result

    Collector.get_data_struct = get_data_struct
    return Patch(
        "metric collector",
        "ItemCoverage, GiniIndex, AveragePopularity, ShannonEntropy and TailPercentage need item "
        "counts, on which RecBole's Collector calls .cpu(): \"'int' has no attribute 'cpu'\"",
    )


def _tail_percentage() -> Patch:
    """`TailPercentage` searches a list of thousands of items once per recommended item."""
    import numpy as np
    from recbole.evaluator.metrics import TailPercentage

    original = TailPercentage.get_tail

    @wraps(original)
    def get_tail(self: Any, item_matrix: Any, count_items: Any) -> Any:
        """Ask RecBole once per distinct item."""
        items, places = np.unique(item_matrix, return_inverse=True)
        return original(self, items[None], count_items)[0][places].reshape(item_matrix.shape)

    TailPercentage.get_tail = get_tail
    return Patch(
        "tail percentage",
        "RecBole's TailPercentage searches a list of items for every recommended item, in minutes "
        "for a large catalogue; now once per distinct item, with the same result",
    )


def _pop_counts() -> Patch:
    """`Pop` adds 1 to `item_cnt[items]`, which counts an item once per batch however often."""
    from recbole.model.general_recommender import Pop

    original = Pop.calculate_loss

    @wraps(original)
    def calculate_loss(self: Any, interaction: Any) -> Any:
        """Add the repetitions within the batch before RecBole counts each item once."""
        items, counts = interaction[self.ITEM_ID].unique(return_counts=True)
        self.item_cnt[items, 0] += counts - 1
        return original(self, interaction)

    Pop.calculate_loss = calculate_loss
    return Patch(
        "popularity",
        "RecBole's Pop counts an item once per training batch, so that with the default batches "
        "of 2,048 rows a small data set has hardly any popularity; now it counts rows",
    )


def _exact_times() -> Patch:
    """Times become float32 before sorting, which rounds Unix times to 128 seconds."""
    import numpy as np
    import torch
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    original = Dataset._dataframe_to_interaction

    @wraps(original)
    def _dataframe_to_interaction(self: Any, data: Any) -> Any:
        """Keep the times of interactions in float64; no model reads them unless embedded."""
        interaction, field = original(self, data), self.time_field
        if (
            data is self.inter_feat
            and field in data
            and self.field2type[field] == FeatureType.FLOAT
            and field not in self.config["numerical_features"]
        ):
            interaction[field] = torch.from_numpy(data[field].to_numpy(np.float64, copy=True))
        return interaction

    def _remove_duplication(self: Any) -> None:
        """RecBole's method with a stable sort: rows of equal time stay in the file's order."""
        keep = self.config["rm_dup_inter"]
        if keep is None:
            return
        if self.time_field in self.inter_feat:
            self.inter_feat.sort_values(by=self.time_field, kind="stable", inplace=True)
        pair = [self.uid_field, self.iid_field]
        self.inter_feat.drop_duplicates(subset=pair, keep=keep, inplace=True)

    Dataset._dataframe_to_interaction = _dataframe_to_interaction
    Dataset._remove_duplication = _remove_duplication
    return Patch(
        "times",
        "RecBole rounds times to float32, 128 seconds in Unix times, before it sorts by them; they "
        "stay float64, and rows of one time stay in the file's order",
    )


def _parts_of_files() -> Patch:
    """`Dataset.build` returns as many parts as there are files; its callers expect three."""
    from recbole.data.dataset import Dataset

    original = Dataset.build

    @wraps(original)
    def build(self: Any) -> list[Any]:
        """Insert an empty validation part if there are only a training and a test file."""
        parts = original(self)
        if len(parts) == 2:
            parts.insert(1, self.copy(self.inter_feat[:0]))
        return parts

    Dataset.build = build
    return Patch(
        "two files",
        "benchmark_filename=[train, test] ends in an IndexError; it is a run without validation",
    )


def _download_barrier() -> Patch:
    """`Dataset._download` ends with torch.distributed.barrier(), even in a single process."""
    import torch.distributed as dist
    from recbole.data.dataset import Dataset

    original = Dataset._download

    @wraps(original)
    def _download(self: Any) -> None:
        """Download as RecBole does, without its barrier; the other processes wait elsewhere."""
        with patch.object(dist, "barrier", lambda: None, create=True):
            return original(self)

    Dataset._download = _download
    return Patch(
        "dataset download",
        "the first download of a data set waits at a barrier of a process group that a single "
        "process does not have, and raises after extracting; the barrier is skipped",
    )


def _checkpoint_loading() -> Patch:
    """torch 2.6 loads only tensors; RecBole's checkpoints of its own models pickle the Config."""
    import torch
    from recbole.trainer import trainer

    trainer.torch = _TrainerTorch(torch)
    return Patch(
        "checkpoint loading",
        f"torch {torch.__version__} refuses the pickled Config in the checkpoints of RecBole's own "
        "models; RecBole's trainer may load those that this process wrote, any other is refused",
    )


class _TrainerTorch(types.ModuleType):
    """The name `torch` inside recbole.trainer.trainer: torch, with its own `save` and `load`.

    A pickle runs code when it is loaded, so only files that this process wrote through the same
    object are loaded as pickles: same path, size and modification time.
    """

    def __init__(self, torch: types.ModuleType) -> None:
        super().__init__("torch")
        self._torch = torch
        self._written: dict[Path, tuple[int, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def save(self, obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        """Call torch.save and remember the file."""
        self._torch.save(obj, f, *args, **kwargs)
        self._written[Path(f).resolve()] = _size_and_time(Path(f))

    def load(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        """Call torch.load on a file that `save` wrote.

        Raises:
            CheckpointError: the file is missing, was changed, or was not written by this process.
        """
        path = Path(f)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such checkpoint file.")
        if self._written.get(path.resolve()) != _size_and_time(path):
            raise CheckpointError(
                f"{path}: not written by this run, or changed since. Checkpoints of RecBole's own "
                "models are pickles, and loading a pickle can run any code, so only those of the "
                "running process are loaded. Train the model again in this run."
            )
        return self._torch.load(f, *args, weights_only=False, **kwargs)


def _anomaly_detection() -> Patch:
    """Importing RecBole's SINE turns on torch's anomaly detection for the whole process."""
    import torch

    sine = "recbole.model.sequential_recommender.sine"
    asked_for = torch.is_anomaly_enabled() and sine not in sys.modules
    importlib.import_module(sine)
    torch.autograd.set_detect_anomaly(asked_for)
    return Patch(
        "anomaly detection",
        "recbole.model.sequential_recommender.sine calls torch.autograd.set_detect_anomaly(True), "
        "which slows down every backward pass of every model, and hides which loss is not finite",
    )


def _no_pickles() -> Patch:
    """RecBole unpickles data sets, loaders and pretrained models, found or named by settings."""
    import recbole.data.utils
    from recbole.model.context_aware_recommender import kd_dagfm
    from recbole.model.general_recommender import convncf, ldiffrec, nais, neumf, ract
    from recbole.model.sequential_recommender import s3rec
    from recbole.trainer import trainer

    # only in this module: torch's workers and collectives need pickle
    recbole.data.utils.pickle = _NoPickle("pickle")
    recbole.data.utils.load_split_dataloaders = lambda config: None
    for module in (convncf, kd_dagfm, nais, neumf, ract, s3rec):
        module.torch = trainer.torch
    ldiffrec.np = _PlainNumpy(ldiffrec.np)
    # KD_DAGFM passes the setting `teacher` to eval
    teachers = {"CrossNet": kd_dagfm.CrossNet, "CIN": kd_dagfm.CIN, "CINComp": kd_dagfm.CINComp}
    kd_dagfm.eval = partial(_teacher, teachers)
    return Patch(
        "pickles",
        "RecBole loads <dataset>-<class>.pth, <dataset>-for-<model>-dataloader.pth, item_emb.npy "
        "and pretrained models as pickles, and evaluates the setting teacher; a pickle and an "
        "expression can run any code, so only files that this process wrote are loaded",
    )


class _NoPickle(types.ModuleType):
    """The name `pickle` inside recbole.data.utils, where data sets and loaders are loaded."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse

    @staticmethod
    def _refuse(*args: Any, **kwargs: Any) -> Any:
        raise CheckpointError(
            "saved data sets and loaders of RecBole are pickles, and loading a pickle can run any "
            "code: they are neither written nor read. Leave out save_dataset, save_dataloaders, "
            "dataset_save_path and dataloaders_save_path, and remove the .pth file next to "
            "the checkpoints; the data set is built from its atomic files."
        )


class _PlainNumpy(types.ModuleType):
    """The name `np` inside recbole.model.general_recommender.ldiffrec: loads only plain arrays."""

    def __init__(self, numpy: types.ModuleType) -> None:
        super().__init__("numpy")
        self._numpy = numpy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numpy, name)

    def load(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """Call numpy.load without pickles.

        Raises:
            DataError: the file does not hold a plain array.
        """
        try:
            return self._numpy.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{file}: not a plain array of numbers ({error}). Write it with numpy.save."
            ) from error


def _teacher(teachers: dict[str, Any], name: str) -> Any:
    """Replacement of `eval` in KD_DAGFM: returns the class of this name."""
    if name not in teachers:
        raise ConfigError(f"teacher={name}: must be one of {', '.join(teachers)}.")
    return teachers[name]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _ray_import() -> Patch:
    """`recbole.quick_start` imports ray.tune in its first lines, for one call in one function."""
    stand_in: Any = types.ModuleType("ray")
    stand_in.tune = types.ModuleType("ray.tune")
    stand_in.tune.report = _report
    before = sys.modules.get("ray")
    sys.modules["ray"] = stand_in  # left there, it would make find_spec("ray") fail
    try:
        importlib.import_module("recbole.quick_start")
    finally:
        if before is None:
            del sys.modules["ray"]
        else:
            sys.modules["ray"] = before
    return Patch(
        "ray",
        "recbole.quick_start imports ray, which has no release for Python 3.12 and newer and does "
        "not start with numpy 2; its one use, a report to ray's parameter search, is passed on to "
        "a ray that the program has imported, and is nothing otherwise",
    )


def _report(*args: Any, **metrics: Any) -> None:
    """Forward to `ray.tune.report` if ray is imported."""
    tune = sys.modules.get("ray.tune")
    if tune is not None:
        tune.report(*args, **metrics)


def _foreign_models() -> Patch:
    """RecBole looks for LLMRec in its own package and fails at an optional dependency."""
    from recbole.config import Config

    original = Config._get_model_and_dataset

    @wraps(original)
    def _get_model_and_dataset(self: Any, model: Any, dataset: Any) -> Any:
        """Raise an error for our models that names the command to run them."""
        given = self.external_config_dict.get("model") if model is None else model
        name = given if isinstance(given, str) else getattr(given, "__name__", "")
        if type(self) is not Config:
            return original(self, model, dataset)
        from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

        if name in LANGUAGE_MODELS:
            raise ConfigError(
                f"model={name} is a model of recbole_multdpo, with settings, data and training of "
                f"its own, and RecBole's run_recbole and Config cannot run it. Use the command "
                f"recbole-multdpo --model={name} --dataset=ml-100k, or in Python "
                f'recbole_multdpo.run(model="{name}", dataset="ml-100k").'
            )
        try:
            return original(self, model, dataset)
        except ModuleNotFoundError:
            from recbole_multdpo.settings.config import settings_of

            settings_of(name)  # reports an unknown model or a missing package
            raise

    Config._get_model_and_dataset = _get_model_and_dataset
    return Patch(
        "our models",
        "RecBole's run_recbole and Config look for LLMRec among RecBole's models and end in \"No "
        "module named 'lightgbm'\"; now the error names the command",
    )


def main(write: Callable[[str], Any] = print) -> int:
    """Print installed versions and every patch; returns 0, or 1 if RecBole cannot work."""
    write(f"Python {platform.python_version()} on {platform.platform()}")
    width = max(map(len, _REPORTED))
    for name in _REPORTED:
        write(f"  {name:<{width}}  {_version(name) or '-'}")
    try:
        patches = apply()
    except InstallationError as error:
        write(f"error: {error}")
        return 1
    write(f"\n{'patch':<18}  {'needed':<6}  why")
    for record in patches:
        write(f"{record.name:<18}  {'yes' if record.needed else 'no':<6}  {record.why}")
    return 0
