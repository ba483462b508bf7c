"""RecBole on the installed packages: what breaks without `compat.apply`, and what it fixes."""

import importlib
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from recbole_multdpo.compat import patches as compat
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError

# Runs every piece of RecBole that breaks, in a fresh interpreter: as published, then after apply().
PROBES = """
import json, sys, tempfile, types, warnings
from collections import Counter
from pathlib import Path
import numpy as np
import scipy.sparse as sp
from recbole_multdpo.compat import patches as compat
from recbole_multdpo.compat import import_hook

import_hook.forget()  # first as published

def numpy_aliases():
    from recbole.config import Config
    Config.compatibility_settings(object.__new__(Config))
    assert np.zeros(2, dtype=np.float).dtype == np.float64
    assert np.zeros(2, dtype=np.long).dtype.kind == "i"
    assert np.zeros(2, dtype=np.bool).dtype == bool

def scipy_dok_matrix():
    adjacency = sp.dok_matrix((2, 3), dtype=np.float32)
    adjacency._update({(0, 1): 1, (1, 2): 2})
    dense = sp.coo_matrix(adjacency).toarray()
    assert dense.dtype == np.float32 and dense.tolist() == [[0, 1, 0], [0, 0, 2]], dense

def metric_collector():
    from recbole.evaluator.collector import Collector, DataStruct
    collector = object.__new__(Collector)
    collector.data_struct = DataStruct()
    collector.data_struct.set("data.num_items", 3)
    collector.data_struct.set("data.count_items", Counter({1: 2}))
    handed = collector.get_data_struct()
    assert handed.get("data.num_items") == 3 and handed.get("data.count_items") == {1: 2}

def dataset_download():
    from recbole.data.dataset import Dataset, dataset as module
    module.decide_download = lambda url: True
    module.download_url = lambda url, path: str(Path(path) / "toy.zip")
    module.extract_zip = lambda path, folder: Path(path).touch()
    module.rename_atomic_files = lambda *args: None
    data = object.__new__(Dataset)
    data.config, data.dataset_name = {"local_rank": 0}, "toy"
    data.dataset_path = tempfile.mkdtemp()
    data.logger = types.SimpleNamespace(info=lambda text: None)
    data._get_download_url = lambda file: "nowhere"
    data._download()

def checkpoint_loading():
    from recbole.evaluator.collector import DataStruct
    from recbole.trainer import trainer
    file = str(Path(tempfile.mkdtemp()) / "model.pth")
    trainer.torch.save({"config": DataStruct(), "epoch": 3}, file)
    assert trainer.torch.load(file, map_location="cpu")["epoch"] == 3

def deprecations():
    with warnings.catch_warnings(record=True) as caught:
        for category, module in (
            (FutureWarning, "recbole.data.dataset.dataset"), (SyntaxWarning, "/lib/recbole/model/x")
        ):
            warnings.warn_explicit("will change", category, "file.py", 1, module=module)
    assert not caught, [str(warning.message) for warning in caught]

probes = (
    deprecations, numpy_aliases, scipy_dok_matrix, metric_collector, dataset_download,
    checkpoint_loading,
)

def outcomes():
    found = {}
    for probe in probes:
        try:
            probe()
            found[probe.__name__] = "works"
        except Exception as error:
            found[probe.__name__] = f"{type(error).__name__}: {error}"
    return found

before = outcomes()
records = compat.apply()
json.dump({"before": before, "after": outcomes(), "needed": {r.name: r.needed for r in records}},
          sys.stdout)
"""

# The beginning of each failure, where the installed versions have it.
FAILURES = {
    "deprecations": "AssertionError: ['will change'",
    "numpy aliases": "AttributeError: `np.float_` was removed",
    "scipy dok_matrix": "AttributeError",
    "metric collector": "AttributeError: 'int' object has no attribute 'cpu'",
    "dataset download": "ValueError: Default process group has not been initialized",
    "checkpoint loading": "UnpicklingError: Weights only load failed",
}


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds this checkout."""
    root = str(Path(compat.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    done = run_python("-c", PROBES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", FAILURES)
def test_breaks_where_needed_and_works_after_apply(outcomes, name: str) -> None:
    key = name.replace(" ", "_")
    if outcomes["needed"][name]:
        assert outcomes["before"][key].startswith(FAILURES[name])
    else:
        assert outcomes["before"][key] == "works"
    assert outcomes["after"][key] == "works"


def test_every_patch_is_probed_or_has_tests_of_its_own() -> None:
    """The others fix no exception in RecBole's functions (times: tests/data/test_times.py)."""
    names = [patch.name for patch in compat.apply()]
    others = {"tail percentage", "popularity", "times", "two files", "ray", "pickles", "our models"}
    others.add("anomaly detection")
    assert [name for name in names if name not in others] == list(FAILURES)
    assert others <= set(names)


def test_apply_twice_changes_nothing() -> None:
    first = compat.apply()
    from recbole.config import Config
    from recbole.data.dataset import Dataset
    from recbole.evaluator.collector import Collector
    from recbole.trainer import trainer

    def patched() -> list[object]:
        methods = [Config.compatibility_settings, Dataset._download, Collector.get_data_struct]
        return [*methods, trainer.torch]

    before = patched()
    assert compat.apply() == first
    assert patched() == before


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'recbole', 'torch', 'numpy', 'pandas', 'transformers'}"
    done = run_python(
        "-c",
        "import sys, recbole_multdpo, recbole_multdpo.compat.patches;"
        f"print({heavy} & set(sys.modules), recbole_multdpo.__version__)",
    )
    assert done.stdout.split() == ["set()", "0.2.0"], done.stderr


# --- metric collector ---------------------------------------------------------------------------


def test_popularity_metrics_of_a_small_list() -> None:
    """Two users, top 2 of items 1..4 (0 is padding): items 1, 2 and 1, 3.

    ItemCoverage: 3 distinct items of RecBole's 5, to which it counts the padding item: 0.6.
    AveragePopularity: training counts 4, 2, 1 of items 1, 2, 3, so (4+2)/2 = 3 and (4+1)/2 = 2.5,
    mean 2.75.
    """
    compat.apply()
    from recbole.evaluator import Evaluator
    from recbole.evaluator.collector import Collector, DataStruct

    config = {"metrics": ["ItemCoverage", "AveragePopularity"], "topk": [2]}
    config |= {"metric_decimal_place": 4}
    collector = object.__new__(Collector)
    collector.data_struct = DataStruct()
    collector.data_struct.set("data.num_items", 5)
    collector.data_struct.set("data.count_items", Counter({1: 4, 2: 2, 3: 1}))
    collector.data_struct.set("rec.items", torch.tensor([[1, 2], [1, 3]]))

    result = Evaluator(config).evaluate(collector.get_data_struct())

    assert result == {"itemcoverage@2": 0.6, "averagepopularity@2": 2.75}


def test_collector_keeps_counts_and_drops_recommendations() -> None:
    compat.apply()
    from recbole.evaluator.collector import Collector, DataStruct

    collector = object.__new__(Collector)
    collector.data_struct = DataStruct()
    collector.data_struct.set("data.num_items", 5)
    for _ in range(2):  # one validation after another
        collector.data_struct.set("rec.items", torch.tensor([[1]]))
        handed = collector.get_data_struct()
        assert handed.get("data.num_items") == 5
        assert handed.get("rec.items").tolist() == [[1]]
        assert "rec.items" not in collector.data_struct
        assert "data.num_items" in collector.data_struct


def test_tail_percentage_is_recboles_own_at_once() -> None:
    """Items 3 and 5, of one row each, are the tail of 40 percent; item 0 was never seen."""
    compat.apply()
    from recbole.evaluator.metrics import TailPercentage

    metric = TailPercentage({"metric_decimal_place": 4, "topk": [3], "tail_ratio": 0.4})
    counts = {1: 9, 2: 5, 3: 1, 4: 2, 5: 1}
    items = np.array([[5, 1, 3], [0, 5, 2]])
    expected = [[1, 0, 1], [0, 1, 0]]
    assert metric.get_tail(items, counts).tolist() == expected
    assert TailPercentage.get_tail.__wrapped__(metric, items, counts).tolist() == expected


# --- popularity ----------------------------------------------------------------------------------


def test_pop_counts_every_row_of_a_batch() -> None:
    """Item 2 is in three rows of two batches, item 1 in two rows of one; RecBole counts 2 and 1."""
    compat.apply()
    from recbole.model.general_recommender import Pop

    batches = [torch.tensor([2, 1, 2, 1]), torch.tensor([2])]
    for calculate_loss, expected in (
        (Pop.calculate_loss, [0, 2, 3]),
        (Pop.calculate_loss.__wrapped__, [0, 1, 2]),
    ):
        pop = SimpleNamespace(
            ITEM_ID="item_id", device="cpu", item_cnt=torch.zeros(3, 1, dtype=torch.long)
        )
        for items in batches:
            calculate_loss(pop, {"item_id": items})
        assert pop.item_cnt[:, 0].tolist() == expected
        assert pop.max_cnt.item() == expected[2]


# --- dataset download ---------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_download_does_not_wait(monkeypatch, several) -> None:
    """Of several processes one downloads while the others wait before it."""
    compat.apply()
    from recbole.data.dataset import Dataset

    barrier = Mock()
    monkeypatch.setattr(torch.distributed, "barrier", barrier)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: several)
    Dataset._download(SimpleNamespace(config={"local_rank": 1}))  # this rank downloads nothing
    assert barrier.call_count == 0
    assert torch.distributed.barrier is barrier


def test_barrier_is_back_after_a_failed_download() -> None:
    compat.apply()
    from recbole.data.dataset import Dataset

    barrier = torch.distributed.barrier
    with pytest.raises(AttributeError, match="_get_download_url"):
        Dataset._download(SimpleNamespace(config={"local_rank": 0}))
    assert torch.distributed.barrier is barrier


# --- checkpoint loading -------------------------------------------------------------------------


class Trap:
    """Unpickling it creates a file: what a hostile checkpoint could do."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def trainer_torch():
    compat.apply()
    from recbole.trainer import trainer

    return trainer.torch


def test_own_checkpoint_loads_relative_or_absolute(trainer_torch, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = SimpleNamespace(seed=3)  # a class that torch does not load by default
    trainer_torch.save({"config": config}, "model.pth")
    assert trainer_torch.load(tmp_path / "model.pth")["config"].seed == 3
    assert trainer_torch.load("model.pth")["config"].seed == 3


def test_foreign_checkpoint_is_refused_and_runs_nothing(trainer_torch, tmp_path) -> None:
    touched = tmp_path / "touched"
    foreign = tmp_path / "foreign.pth"
    torch.save({"config": Trap(touched)}, foreign)  # not through RecBole's trainer

    with pytest.raises(CheckpointError, match=r"foreign\.pth: not written by this run"):
        trainer_torch.load(str(foreign))
    assert not touched.exists()

    torch.load(foreign, weights_only=False)  # control: the trap works
    assert touched.exists()


def test_replaced_checkpoint_is_refused(trainer_torch, tmp_path) -> None:
    file = tmp_path / "model.pth"
    trainer_torch.save({"epoch": 1}, file)
    torch.save({"config": Trap(tmp_path / "touched")}, file)
    with pytest.raises(CheckpointError, match="changed since"):
        trainer_torch.load(file)
    assert not (tmp_path / "touched").exists()


def test_missing_checkpoint_is_named(trainer_torch, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such checkpoint"):
        trainer_torch.load(tmp_path / "absent.pth")


# --- pickles ------------------------------------------------------------------------------------


def planted(file: Path, touched: Path) -> Path:
    """A pickle that touches a file when it is loaded."""
    file.write_bytes(pickle.dumps(Trap(touched)))
    return file


def test_the_planted_pickle_works(tmp_path) -> None:
    """Control: python's own pickle, which is untouched, runs it."""
    compat.apply()
    pickle.loads(planted(tmp_path / "x.pth", tmp_path / "touched").read_bytes())
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["toy-Dataset.pth", "named.pth"])
def test_recboles_saved_data_sets_are_refused(tmp_path, name) -> None:
    compat.apply()
    import recbole.data

    named = planted(tmp_path / name, tmp_path / "touched")
    config = {"dataset_save_path": str(named) if name == "named.pth" else None}
    config |= {"checkpoint_dir": str(tmp_path), "dataset": "toy", "model": "BPR"}
    config["MODEL_TYPE"] = recbole.utils.ModelType.GENERAL
    with pytest.raises(CheckpointError, match=r"pickles.*remove the \.pth file"):
        recbole.data.create_dataset(config)
    assert not (tmp_path / "touched").exists()


def test_recboles_saved_loaders_are_not_looked_for(tmp_path) -> None:
    compat.apply()
    import recbole.data
    import recbole.data.utils

    planted(tmp_path / "toy-for-BPR-dataloader.pth", tmp_path / "touched")
    config = {"checkpoint_dir": str(tmp_path), "dataset": "toy", "model": "BPR"}
    config["dataloaders_save_path"] = None
    assert recbole.data.utils.load_split_dataloaders(config) is None
    with pytest.raises(CheckpointError, match="pickles"):
        recbole.data.load_split_dataloaders(config)  # RecBole's own, under another name
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "module",
    [
        "general_recommender.convncf",
        "general_recommender.nais",
        "general_recommender.neumf",
        "general_recommender.ract",
        "sequential_recommender.s3rec",
        "context_aware_recommender.kd_dagfm",
    ],
)
def test_pretrained_models_of_others_are_refused(tmp_path, module) -> None:
    compat.apply()
    model = importlib.import_module(f"recbole.model.{module}")
    torch.save(Trap(tmp_path / "touched"), tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="not written by this run"):
        model.torch.load(str(tmp_path / "foreign.pth"))
    assert not (tmp_path / "touched").exists()


def test_no_module_of_recbole_is_left_that_loads_pickles() -> None:
    """A search of RecBole's sources; what it finds is patched, or not used by any run here."""
    import recbole

    folder = Path(recbole.__file__).parent
    loads = re.compile(
        r"(?<![\w.])(?:torch|pickle|np|joblib|dill)\.loads?\(|(?<![\w.])eval\(|exec\("
    )
    found = {
        str(file.relative_to(folder).with_suffix("")).replace("/", ".")
        for file in folder.rglob("*.py")
        if loads.search(file.read_text(encoding="utf-8"))
    }
    patched = {
        "data.utils",
        "trainer.trainer",
        "model.general_recommender.convncf",
        "model.general_recommender.ldiffrec",
        "model.general_recommender.nais",
        "model.general_recommender.neumf",
        "model.general_recommender.ract",
        "model.sequential_recommender.s3rec",
        "model.context_aware_recommender.kd_dagfm",
    }
    # our Config replaces the methods that evaluate; the other two serve RecBole's own commands
    unused = {"config.configurator", "trainer.hyper_tuning", "quick_start.quick_start"}
    assert found == patched | unused


def test_a_planted_item_embedding_is_refused(tmp_path) -> None:
    compat.apply()
    from recbole.model.general_recommender import ldiffrec

    np.save(tmp_path / "item_emb.npy", np.ones((2, 3)))
    loaded = ldiffrec.np.load(str(tmp_path / "item_emb.npy"), allow_pickle=True)
    assert loaded.shape == (2, 3)
    trap = np.array([Trap(tmp_path / "touched")], dtype=object)
    np.save(tmp_path / "item_emb.npy", trap, allow_pickle=True)
    with pytest.raises(DataError, match=r"item_emb\.npy: not a plain array"):
        ldiffrec.np.load(str(tmp_path / "item_emb.npy"), allow_pickle=True)
    assert not (tmp_path / "touched").exists()


def test_a_teacher_is_a_name_and_not_evaluated(tmp_path) -> None:
    compat.apply()
    from recbole.model.context_aware_recommender import kd_dagfm

    assert kd_dagfm.eval("CrossNet") is kd_dagfm.CrossNet
    with pytest.raises(ConfigError, match="teacher=.*must be one of CrossNet, CIN"):
        kd_dagfm.eval(f"open({str(tmp_path / 'touched')!r}, 'w')")
    assert not (tmp_path / "touched").exists()


def test_torch_itself_is_untouched(trainer_torch, tmp_path) -> None:
    trainer_torch.save({"config": SimpleNamespace()}, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.pth")
    assert trainer_torch.Tensor is torch.Tensor
    assert trainer_torch.cuda is torch.cuda


# --- deprecations -------------------------------------------------------------------------------


def test_only_warnings_from_recbole_are_hidden(monkeypatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        compat._quiet_warnings()
        with warnings.catch_warnings(record=True) as caught:
            for module in ("recbole.trainer.trainer", "recbole_multdpo.model.llmrec"):
                warnings.warn_explicit("changes", FutureWarning, "x.py", 1, module=module)
            warnings.warn_explicit("odd", UserWarning, "x.py", 2, module="recbole.data.utils")
    assert [str(warning.message) for warning in caught] == ["changes", "odd"]


# --- torch's anomaly detection ------------------------------------------------------------------


def test_anomaly_detection_is_off_unless_enabled() -> None:
    code = (
        "import torch; {before}from recbole_multdpo import quick_start; "
        "import recbole.model.sequential_recommender; print(torch.is_anomaly_enabled())"
    )
    for before, expected in (("", "False"), ("torch.autograd.set_detect_anomaly(True); ", "True")):
        command = [sys.executable, "-c", code.format(before=before)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


# --- recbole.quick_start without ray ------------------------------------------------------------


def test_quick_start_imports_without_ray_and_leaves_no_stand_in(monkeypatch) -> None:
    before = sys.modules.get("ray")
    compat.apply()
    quick_start = importlib.import_module("recbole.quick_start")
    assert callable(quick_start.run_recbole)
    assert sys.modules.get("ray") is before
    importlib.util.find_spec("ray")  # raises ValueError where a stand-in was left
    tune = quick_start.quick_start.tune
    assert tune.report(loss=0.0) is None  # as RecBole's objective_function reports its result
    reported: list[dict[str, float]] = []
    search = SimpleNamespace(report=lambda **metrics: reported.append(metrics))
    monkeypatch.setitem(sys.modules, "ray.tune", search)
    tune.report(loss=1.0)
    assert reported == [{"loss": 1.0}]


@pytest.mark.parametrize("imported", ["recbole_multdpo", "recbole_multdpo.settings.config"])
def test_recbole_imported_after_this_package_is_patched(imported: str) -> None:
    """Its quick start too, without ray; looking for it first changes nothing."""
    done = run_python(
        "-c",
        f"import importlib.util, {imported}; importlib.util.find_spec('recbole');"
        "from recbole.quick_start import run_recbole, objective_function; import recbole.data;"
        "from recbole.config import Config; import recbole;"
        "print(recbole.config.Config is Config, type(recbole.__spec__.loader).__name__,"
        "recbole.data.__name__);"
        "from recbole_multdpo.compat import patches; print(patches._applied is not None)",
    )
    assert done.stdout.split() == ["True", "SourceFileLoader", "recbole.data", "True"], done.stderr


# --- our models in RecBole's own configuration --------------------------------------------------


@pytest.mark.parametrize("model", ["LLMRec", "BIGRec", "D3"])
def test_recbole_names_the_command_for_our_models(monkeypatch, model: str) -> None:
    """By name or by class, in its Config and its run_recbole; its own models run as before."""
    compat.apply()
    from recbole.config import Config
    from recbole.quick_start import run_recbole

    monkeypatch.setattr(sys, "argv", ["program"])
    message = rf"model={model} is a model of recbole_multdpo.*recbole-multdpo --model={model} "
    for given in ({"model": model}, {"model": type(model, (), {})}):
        with pytest.raises(ConfigError, match=message):
            Config(dataset="ml-100k", **given)
    with pytest.raises(ConfigError, match=message):
        Config(config_dict={"model": model, "dataset": "ml-100k"})
    with pytest.raises(ConfigError, match=message):
        run_recbole(model=model, dataset="ml-100k")
    assert Config(model="BPR", dataset="ml-100k")["model"] == "BPR"


def test_recbole_names_an_unknown_model_and_not_a_package(monkeypatch) -> None:
    from recbole.config import Config

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ConfigError, match="there is no model 'LightGBN'; did you mean.*LightGBM"):
        Config(model="LightGBN", dataset="ml-100k")


# --- versions that no patch fixes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"recbole": None}, ["RecBole is not installed", "pip install --no-deps recbole==1.2.1"]),
        ({"recbole": "1.1.0"}, ["recbole 1.1.0", "pip install --no-deps recbole==1.2.1"]),
        ({"pandas": "3.0.1"}, ["pandas 3.0.1", "below 3", 'pip install "pandas>=2.2,<3"']),
        ({"pandas": None}, ["pandas is missing", 'pip install "pandas>=2.2,<3"']),
    ],
)
def test_unusable_versions_are_refused_with_the_command_that_helps(
    monkeypatch, versions: dict[str, str | None], words: list[str]
) -> None:
    installed = {"recbole": "1.2.1", "pandas": "2.3.3"} | versions
    monkeypatch.setattr(compat, "_version", installed.get)
    monkeypatch.setattr(compat, "_applied", None)
    lines: list[str] = []

    with pytest.raises(compat.InstallationError) as raised:
        compat.apply()
    assert all(word in str(raised.value) for word in words)
    assert compat.main(lines.append) == 1
    assert lines[-1] == f"error: {raised.value}"


def test_accepted_versions_pass_the_same_check(monkeypatch) -> None:
    monkeypatch.setattr(compat, "_version", {"recbole": "1.2.1", "pandas": "2.3.3"}.get)
    compat._check_installation()


def test_table_names_versions_and_reasons() -> None:
    lines: list[str] = []
    assert compat.main(lines.append) == 0
    text = "\n".join(lines)
    assert f"Python {sys.version.split()[0]}" in lines[0]
    for patch in compat.apply():
        row = next(line for line in lines if line.startswith(f"{patch.name} "))
        assert row.split(patch.name)[1].split()[0] == ("yes" if patch.needed else "no")
        assert row.endswith(patch.why)
    assert torch.__version__ in text and "recbole " in text
