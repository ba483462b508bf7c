"""The run's configuration: precedence, validation, RecBole's traps, devices."""

import copy
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import recbole
import torch
import torch.distributed as dist
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType

from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runs.resume import changed_settings, settings_hash
from recbole_multdpo.runtime import processes
from recbole_multdpo.settings import config as config_module
from recbole_multdpo.settings import layers as layers_module
from recbole_multdpo.settings import recbole as shared
from recbole_multdpo.settings.asked_for import ASKED_FOR
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.layers import properties_folder
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.recbole_code import recbole_models
from recbole_multdpo.settings.text import dump_settings, read_settings_file

RECBOLE = Path(recbole.__file__).parent


class LLMRec(GeneralRecommender):
    """Stands for the model, which takes seconds to import; Config reads its name and types only."""

    input_type = InputType.POINTWISE


@pytest.fixture(autouse=True)
def process(monkeypatch, tmp_path):
    """The stand-in model, an empty working directory, and pytest's own arguments out of reach."""
    module = types.ModuleType("recbole_multdpo.model.llmrec")
    module.LLMRec = LLMRec
    monkeypatch.setitem(sys.modules, "recbole_multdpo.model.llmrec", module)
    monkeypatch.setattr(sys, "argv", ["pytest", "--from_pytest=1", "-x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def load(*argv, model="LLMRec", dataset="ml-100k", **config_dict):
    return load_config([f"--model={model}", f"--dataset={dataset}", *argv], config_dict=config_dict)


def error(*argv, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load(*argv, **kwargs)
    return str(caught.value)


def write(name, text):
    Path(name).write_text(text, encoding="utf-8")
    return f"--config_files={name}"


# Defaults


def test_llmrec_on_ml_100k():
    config = load()
    assert config["model"] == "LLMRec"
    assert config.model_class is LLMRec
    assert config["topk"] == [5, 10, 15, 20]
    assert config["eval_args"] == {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "order": "RO",
        "group_by": "user",
        "mode": {"valid": "full", "test": "full"},
    }
    assert config["normalize_all"] is False  # RecBole's own file for ml-100k says True
    assert config["val_interval"] == {"rating": "[4,inf)"}
    assert config["item_text_fields"] == ["movie_title"]
    assert config["train_neg_sample_args"]["distribution"] == "none"
    assert config["MODEL_TYPE"] == ModelType.GENERAL
    assert config["single_spec"] is True
    assert config["local_rank"] == 0
    assert config.settings.loss == config["loss"]
    assert config.settings.item_text_fields == ("movie_title",)
    assert config.warnings == []


def test_a_recbole_model_has_the_same_protocol_and_no_setting_of_llmrec():
    ours, theirs = load(), load(model="BPR")
    for key in ("eval_args", "topk", "metrics", "valid_metric", "val_interval", "load_col", "seed"):
        assert theirs[key] == ours[key]
    assert theirs.settings is None
    assert not set(LLMRecSettings.model_fields) & set(theirs.final_config_dict)
    assert theirs["embedding_size"] == 64
    assert theirs["train_neg_sample_args"]["sample_num"] == 1
    assert theirs.warnings == []


def test_ml_10m_ranks_the_catalogue_and_samples_where_the_papers_protocol_is_asked_for():
    config = load(dataset="ml-10m")
    assert config["eval_args"]["mode"] == {"valid": "full", "test": "full"}
    assert config["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": "none"}
    paper = load("--eval_args={'mode': {'valid': 'total100'}}", dataset="ml-10m")
    assert paper["eval_args"]["mode"] == {"valid": "total100", "test": "full"}
    assert paper["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": 100}
    assert config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}


def test_where_the_property_files_are(monkeypatch, tmp_path):
    clone = tmp_path / "clone"
    (clone / "package").mkdir(parents=True)
    monkeypatch.setattr(layers_module, "__file__", str(clone / "package/settings/layers.py"))
    with pytest.raises(ConfigError, match="property files are missing"):
        properties_folder()
    for folder in (clone / "properties", clone / "package/properties"):  # a clone, then a wheel
        folder.mkdir()
        (folder / "overall.yaml").touch()
        assert properties_folder() == folder


# Precedence


def test_precedence():
    files = ["--config_files=a.yaml b.yaml"]
    write("a.yaml", "seed: 1\nepochs: 1\nlearning_rate: 0.1\nstopping_step: 1\nbeta: 0.1\n")
    write("b.yaml", "epochs: 2\nlearning_rate: 0.2\nstopping_step: 2\n")
    config = load(*files, "--stopping_step=4", model="LLMRec", learning_rate=0.3, stopping_step=3)
    assert config["seed"] == 1  # a file before our overall.yaml
    assert config["beta"] == 0.1  # a file before our LLMRec.yaml
    assert config["epochs"] == 2  # the later file
    assert config["learning_rate"] == 0.3  # config_dict before files
    assert config["stopping_step"] == 4  # the command line before all


def test_our_files_among_themselves_and_against_recboles(monkeypatch):
    properties = Path("properties")
    for name in ("", "model", "dataset"):
        (properties / name).mkdir()
    shared_keys = "eval_args: {split: {RS: [8, 1, 1]}, order: RO, group_by: user, mode: full}\n"
    keys = "topk: [10]\nmetrics: [NDCG]\nvalid_metric: NDCG@10\ndevice: auto\n" + shared_keys
    (properties / "overall.yaml").write_text(keys + "epochs: 1\nseed: 1\nweight_decay: 0.1\n")
    (properties / "model/BPR.yaml").write_text("epochs: 2\nseed: 2\n")
    (properties / "dataset/ml-100k.yaml").write_text("seed: 3\n")
    monkeypatch.setattr(layers_module, "properties_folder", lambda: properties)
    config = load(model="BPR")
    assert (config["weight_decay"], config["epochs"], config["seed"]) == (0.1, 2, 3)
    assert config["train_batch_size"] == 2048  # RecBole's own


def test_config_files_with_spaces_in_their_names():
    write("my settings.yaml", "seed: 7\n")
    assert load('--config_files=["my settings.yaml"]')["seed"] == 7
    assert load(config_files=["my settings.yaml"])["seed"] == 7
    assert "config_files" in error("--config_files=[1]")


def test_model_and_dataset_may_stand_in_a_file():
    config = load_config([write("a.yaml", "model: BPR\ndataset: ml-100k\n")])
    assert (config["model"], config["dataset"]) == ("BPR", "ml-100k")


def test_sys_argv_is_not_read():
    load()  # sys.argv holds --from_pytest=1, which would be an unknown setting
    assert "from_pytest" in error("--from_pytest=1")  # the control


def test_config_dict_reads_text_as_the_command_line_does():
    config = load(model="NeuMF", mlp_hidden_size="[32, 16]", learning_rate="1e-3")
    assert config["mlp_hidden_size"] == [32, 16]
    assert config["learning_rate"] == 1e-3
    assert load(topk=(5, 10))["topk"] == [5, 10]
    assert "beta (config_dict): object is neither" in error(beta=object())


# eval_args


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("{'order': 'TO'}", "order", "TO"),
        ("{'group_by': None}", "group_by", None),
        ("{'split': {'LS': 'valid_and_test'}}", "split", {"LS": "valid_and_test"}),
        ("{'mode': 'uni50'}", "mode", {"valid": "uni50", "test": "uni50"}),
        ("{'mode': {'valid': 'uni50'}}", "mode", {"valid": "uni50", "test": "full"}),
        ("{'mode': {'test': 'pop50'}}", "mode", {"valid": "full", "test": "pop50"}),
    ],
)
def test_a_part_of_eval_args_keeps_the_others(change, key, value):
    assert load(f"--eval_args={change}")["eval_args"] == {**load()["eval_args"], key: value}


def test_parts_of_eval_args_from_several_places_add_up():
    file = write("a.yaml", "eval_args: {order: TO, mode: {valid: uni50}}\n")
    config = load(file, "--eval_args={'mode': {'test': 'uni60'}}", eval_args={"group_by": "none"})
    assert config["eval_args"] == {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "order": "TO",
        "group_by": "none",
        "mode": {"valid": "uni50", "test": "uni60"},
    }
    base = {"mode": "full", "order": "RO"}
    shared.merged_eval_args(base, {"mode": {"valid": "uni9"}})
    assert base == {"mode": "full", "order": "RO"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("5", "must be a mapping, got 5"),
        ("{'order': 'XO'}", "order must be 'RO' or 'TO', got 'XO'"),
        ("{'ordr': 'TO'}", "ordr is no key that exists; did you mean order?"),
        ("{'mode': 5}", "mode must be a mapping, got 5"),
        ("{'mode': {'train': 'full'}}", "mode.train is no key that exists"),
        ("{'mode': 'labeled'}", "mode labeled compares scores with the labels of rows"),
        ("{'mode': 'unix'}", "mode.valid must be text such as full or labeled or uni100"),
        ("{'mode': 'uni0'}", "mode.valid must be text"),
        ("{'split': {'RS': [8, 2]}}", "split.RS must have at least 3 items, not 2"),
        ("{'split': {'RS': [8, 1, -1]}}", "split.RS.2 must be greater than or equal to 0, got -1"),
        ("{'split': {'LS': 'all'}}", "split.LS must be 'valid_and_test', "),
        ("{'split': {}}", "split needs exactly one of RS, LS and TS, got none"),
        ("{'split': {'RS': [8, 1, 1], 'LS': 'valid_only'}}", "exactly one of RS, LS and TS"),
        ("{'split': {'RS': [0, 0, 0]}}", "the shares of split RS are all 0"),
    ],
)
def test_wrong_eval_args(change, message):
    text = error(f"--eval_args={change}")
    assert "eval_args" in text
    assert message in text


# Unknown and foreign keys


@pytest.mark.parametrize(
    ("argument", "model", "message"),
    [
        ("--bata=1", "LLMRec", "bata (command line): there is no such setting; did you mean beta"),
        ("--learning-rate=1", "EASE", "did you mean learning_rate"),
        ("--Topk=[5]", "EASE", "did you mean topk"),
        ("--zzz=1", "EASE", "there is no such setting and none with a similar name"),
        ("--beta=1", "EASE", "beta (command line): is a setting of LLMRec, not of EASE"),
        ("--loss=dpo", "BPR", "loss (command line): is a setting of LLMRec, not of BPR"),
        ("--reg_weight=1", "LLMRec", "more, not of LLMRec. Leave it out."),
        ("--n_layers=2", "BPR", "not of BPR. Leave it out."),
        ("--shrink=1", "BPR", "is a setting of ItemKNN"),
        ("--mask_ratio=0.1", "BPR", "mask_ratio (command line)"),
    ],
)
def test_unknown_keys(argument, model, message):
    assert message in error(argument, model=model)


def test_unknown_keys_in_files_and_dictionaries():
    text = error(write("a.yaml", "bata: 1\ntpok: [5]\n"), epocs=3)
    assert text.startswith("3 settings are wrong:")
    assert "bata (a.yaml): there is no such setting; did you mean beta" in text
    assert "tpok (a.yaml): there is no such setting; did you mean topk" in text
    assert "epocs (config_dict): there is no such setting; did you mean epochs" in text


def test_one_file_serves_a_comparison():
    file = write("a.yaml", "beta: 0.5\nloss: dpo\nseed: 3\n")
    config = load(file, model="EASE")
    assert config["seed"] == 3
    assert config["beta"] is None and config["loss"] is None
    assert config.warnings == ["a.yaml: beta, loss are LLMRec's settings and do not apply to EASE."]
    assert load(file)["beta"] == 0.5
    assert "beta" in error(model="EASE", beta=0.5)  # a dictionary is written for one run


def test_a_key_that_both_have_is_the_models_own():
    file = write("a.yaml", "beta: 0.25\n")
    assert load(model="RecVAE")["beta"] == 0.2  # RecBole's default
    assert load(file, model="RecVAE")["beta"] == 0.25
    assert load("--beta=0.5", model="RecVAE")["beta"] == 0.5


def test_a_transforms_settings_come_with_it():
    argv = ["--eval_args={'order': 'TO'}", "--mask_ratio=0.2"]
    assert load(*argv, "--transform=mask_itemseq", model="SASRec")["mask_ratio"] == 0.2
    assert "mask_ratio" in error(*argv, model="GRU4Rec")


def test_keys_that_recboles_code_reads_and_its_files_do_not_list():
    """Each setting that a model's code reads is valid for it, so that nothing needed is refused."""
    pattern = re.compile(r"config\[\s*[\"'](\w+)[\"']\s*\]")
    made_by_recbole = {
        "device",
        "ITEM_SEQ",
        "MASK_INDEX",
        "MASK_ITEM_SEQ",
        "POS_ITEMS",
        "NEG_ITEMS",
    }
    made_by_recbole |= {"INVERSE_ITEM_SEQ"}
    unlisted = {}
    for file in RECBOLE.glob("model/*_recommender/*.py"):
        source = file.read_text(encoding="utf-8")
        for model in recbole_models():
            if model.lower() != file.stem or file.parent.stem == "exlib_recommender":
                continue
            shared_keys = layers_module.valid_keys(model) - shared.UNLISTED_MODEL_KEYS.get(
                model, frozenset()
            )
            missing = set(pattern.findall(source)) - shared_keys - made_by_recbole
            if missing:
                unlisted[model] = missing
    # LDiffRec inherits from DiffRec and reads norm there; low_rating_weight is read by our EASE.
    elsewhere = ("LDiffRec", "EASE")
    wanted = {m: set(k) for m, k in shared.UNLISTED_MODEL_KEYS.items() if m not in elsewhere}
    assert unlisted == wanted


# Types and values


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--epochs=-1", "must be 'auto' or must be greater than or equal to 0, got -1"),
        ("--epochs=1.5", "epochs (command line): must be 'auto' or must be an integer, got 1.5"),
        ("--epochs=many", "must be 'auto' or must be an integer, got 'many'"),
        ("--seed=~", "seed (command line): must be an integer"),
        ("--learning_rate=0", "must be greater than 0, got 0"),
        ("--topk=[]", "must be an integer or must have at least 1 item"),
        ("--topk=[5, 0]", "topk (command line): 1 must be greater than or equal to 1, got 0"),
        ("--topk=[5", "got '[5'"),
        ("--show_progress=perhaps", "must be True or False, got 'perhaps'"),
        ("--learner=adm", "did you mean adam"),
        ("--device=gpu", "must be text such as auto or cpu or cuda or cuda:1, got 'gpu'"),
        ("--clip_grad_norm=1.0", "must be a mapping, got 1.0"),
        ("--clip_grad_norm={norm_type: 2}", "needs the key 'max_norm'"),
        ("--val_interval={rating: 4}", "rating must be text, got 4"),
        ("--val_interval={rating: '4'}", 'text such as "[4,inf)"'),
        ("--val_interval={'rating': '4 and up'}", 'text such as "[4,inf)"'),
        ("--user_inter_num_interval=5", 'text such as "[4,inf)"'),
        ("--load_col=[rating]", "must be a mapping"),
        ("--metrics=[NDGC]", "RecBole has no metric 'NDGC'; did you mean ndcg?"),
        ("--metrics=[]", "metrics (command line): must be text or must have at least 1 item"),
        ("--metrics=[NDCG, AUC]", "mixes metrics of a ranking (ndcg) with metrics of single"),
        ("--valid_metric=NDCG@7", "without the 7 of valid_metric=NDCG@7"),
        ("--valid_metric=GAUC", "use one of hit@5"),
        ("--valid_metric=NDCG", "use one of hit@5"),
        ("--eval_args={'mode': 'uni15'}", "topk=20 is more than the 15 sampled candidates"),
        ("--num_threads=0", "num_threads (command line): must be greater than or equal to 1"),
        ("--betta=1", "did you mean beta?"),
        ("--beta=0", "beta (command line): must be greater than 0, got 0"),
        ("--item_text_fields=[]", "item_text_fields is empty"),
        ("--lora_r=4", "no effect"),
        ("--train_neg_sample_args={'sample_num': 2}", "train_neg_sample_args must be ~ for LLMRec"),
    ],
)  # fmt: skip
def test_wrong_values(argument, message):
    assert message in error(argument)


@pytest.mark.parametrize("model", ["LLMRec", "BPR", "SASRec", "FM"])
@pytest.mark.parametrize(
    "key", ["eval_args", "metrics", "topk", "load_col", "train_neg_sample_args"]
)
@pytest.mark.parametrize("value", ["5", "[[1]]", "{a: {b: 1}}", "text"])
def test_no_value_of_a_wrong_type_gets_past_the_check(model, key, value):
    if (key, value) == ("topk", "5"):
        value = "-5"
    assert f"{key} (command line)" in error(f"--{key}={value}", model=model) or key == "metrics"


def test_wrong_values_in_a_file_name_the_file():
    assert "epochs (a.yaml): must be" in error(write("a.yaml", "epochs: soon\n"))


def test_all_wrong_values_are_reported_together():
    text = error("--epochs=-1", "--beta=0", "--loss=x")
    assert [line.split()[1] for line in text.splitlines()[1:]] == ["epochs", "loss", "beta"]


def test_llmrec_needs_ranking_metrics():
    argv = ["--metrics=[AUC]", "--valid_metric=AUC", "--eval_args={'mode': 'uni100'}"]
    assert "LLMRec ranks items, so use ranking metrics" in error(*argv)
    assert load(*argv, model="BPR")["metrics"] == ["AUC"]


def test_single_scores_do_not_go_with_full_ranking():
    text = error("--metrics=AUC", "--valid_metric=AUC", model="BPR")
    assert "mode full ranks items" in text


def test_order_by_time_needs_times():
    argv = ["--eval_args={'order': 'TO'}", "--load_col={'inter': ['user_id', 'item_id']}"]
    assert "order TO needs times: add timestamp" in error(*argv, model="BPR")
    assert load(argv[0], "--load_col=~", model="BPR")["load_col"] is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--mf_embedding_size=big", "must be a number like RecBole's default 64, got 'big'"),
        ("--mlp_hidden_size=64", "must be a list like RecBole's default [128, 64], got 64"),
        ("--use_pretrain=1", "must be True or False, got 1"),
        ("--dropout_prob=True", "must be a number like RecBole's default 0.1, got True"),
    ],
)
def test_a_recbole_models_own_settings_keep_their_kind(argument, message):
    text = error(argument, model="NeuMF")
    assert text == f"{argument[2:].split('=')[0]} (command line): {message}"


def test_integers_and_numbers_are_one_kind():
    assert load("--reg_weight=3", model="EASE")["reg_weight"] == 3
    assert load("--embedding_size=32", model="BPR")["embedding_size"] == 32


# Models and data sets


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ease", "there is no model 'ease'; did you mean EASE"),
        ("LLMrec", "did you mean LLMRec"),
        ("LightGNC", "did you mean LightGCN"),
        ("Zzzzzzzzz", "there is no model 'Zzzzzzzzz'; there are LLMRec, BIGRec, "),
        ("abstract_recommender", "there is no model"),
    ],
)
def test_unknown_models(model, message):
    assert message in error(model=model)


def test_model_and_dataset_are_required():
    with pytest.raises(ConfigError, match="no model is given.*--model=LLMRec"):
        load_config(["--dataset=ml-100k"])
    with pytest.raises(ConfigError, match="no dataset is given.*--dataset=ml-100k"):
        load_config(["--model=BPR"])
    with pytest.raises(ConfigError, match="dataset: must be text, got 100"):
        load_config([write("a.yaml", "model: BPR\ndataset: 100\n")])


@pytest.mark.parametrize("dataset", ["../ml-100k", "a/b", "..", "a\\b"])
def test_a_data_set_is_a_name(dataset):
    assert "not a path" in error(dataset=dataset)


def test_all_of_recboles_models_are_known():
    listed = {file.stem for file in (RECBOLE / "properties/model").glob("*.yaml")}
    names = {name.lower() for name in recbole_models()}
    assert len(names) == len(recbole_models()) > 80
    assert {name.lower() for name in listed} <= names
    assert {"EASE", "BPR", "LightGCN", "SASRec", "Random"} <= recbole_models()


@pytest.mark.parametrize(
    "model",
    "Pop ItemKNN BPR NeuMF LightGCN NGCF EASE SLIMElastic MultiVAE DMF FM CKE SASRec".split(),
)
def test_each_kind_of_recbole_model(model):
    config = load("--eval_args={'order': 'TO'}", model=model)
    assert config.model_class.__name__ == model
    assert config["topk"] == [5, 10, 15, 20]
    assert config["metrics"][0] == "NDCG"


def test_sequential_models_need_order_by_time():
    text = error(model="SASRec")
    assert "SASRec learns from the order of events" in text
    assert "--eval_args=\"{'order': 'TO'}\"" in text
    config = load("--eval_args={'order': 'TO'}", model="SASRec")
    assert config["repeatable"] is True
    # RecBole refuses its own default negatives with SASRec's loss.
    assert config["train_neg_sample_args"]["distribution"] == "none"
    argv = ["--eval_args={'order': 'TO'}", "--loss_type=BPR"]
    assert load(*argv, model="SASRec")["train_neg_sample_args"]["sample_num"] == 1


def test_what_recbole_rejects_is_a_config_error():
    argv = ["--eval_args={'order': 'TO'}", "--train_neg_sample_args={'sample_num': 1}"]
    text = error(*argv, model="SASRec")
    assert text.startswith("RecBole rejects these settings: train_neg_sample_args")


def test_context_models_rank_with_sampled_negatives():
    config = load(model="FM")
    assert config["train_neg_sample_args"]["sample_num"] == 1
    labeled = ["--metrics=[AUC]", "--valid_metric=AUC", "--eval_args={'mode': 'labeled'}"]
    assert load(*labeled, model="FM")["train_neg_sample_args"]["distribution"] == "none"


def test_where_the_data_is():
    assert Path(load()["data_path"]) == RECBOLE / "dataset_example/ml-100k"
    assert load("--data_path=mine")["data_path"] == os.path.join("mine", "ml-100k")
    assert load(write("a.yaml", "data_path: mine\n"))["data_path"].startswith("mine")
    config = load(model="BPR", dataset="tiny")
    assert config["data_path"] == os.path.join("dataset", "tiny")


# Saving and continuing


@pytest.mark.parametrize("model", ["LLMRec", "BPR", "SASRec"])
def test_saved_settings_are_read_back(model):
    argv = ["--eval_args={'order': 'TO'}", "--seed=5", "--run_dir=x", "--device=cpu"]
    config = load(*argv, "--learning_rate=1e-5", model=model)
    saved = config.to_dict()
    assert not {"run_dir", "resume", "MODEL_TYPE", "eval_type", "gpu_id"} & set(saved)
    assert saved["device"] == "cpu"
    again = load_config([write("config.yaml", dump_settings(saved))])
    assert again.to_dict() == saved
    assert list(again.to_dict())[:2] == ["model", "dataset"]
    derived = {"gpu_id", "run_dir", "config_files"}
    for key in set(config.final_config_dict) - derived:
        assert again[key] == config[key], key


def test_saved_settings_do_not_change_afterwards():
    config = load()
    saved = config.to_dict()
    config["epochs"] = 99
    config.to_dict()["topk"].append(1)
    assert config.to_dict() == saved


def test_settings_of_the_built_in_data_set_hold_no_path():
    assert load().to_dict()["data_path"] is None
    assert load("--data_path=mine").to_dict()["data_path"] == "mine"
    assert load(model="BPR", dataset="tiny").to_dict()["data_path"] == "dataset/"


def test_a_resumed_run_starts_from_its_own_settings():
    Path("run").mkdir()
    settings = load("--epochs=3", "--seed=9").to_dict()
    Path("run/config.yaml").write_text(dump_settings(settings))
    config = load_config(["--resume=run", "--epochs=5"])
    assert (config["model"], config["seed"], config["epochs"]) == ("LLMRec", 9, 5)
    assert load_config([write("a.yaml", "resume: run\n")])["seed"] == 9
    with pytest.raises(ConfigError, match="resume=absent: there is no absent"):
        load_config(["--resume=absent"])


def test_a_configuration_can_be_copied_and_stored():
    for config in (load(), load(model="BPR")):
        for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
            assert other.to_dict() == config.to_dict()
            assert other["device"] == config["device"]
            assert other.settings == config.settings
    assert "tiny_hidden_size" in str(load())  # RecBole logs a configuration as text


def test_recboles_lists_of_settings_stay_as_they_were():
    from recbole.utils.argument_list import dataset_arguments

    before = list(dataset_arguments)
    load()
    assert dataset_arguments == before


# Devices


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_devices_without_a_gpu(no_gpu):
    assert load()["device"] == torch.device("cpu")
    assert load("--device=cpu")["use_gpu"] is False
    assert "torch finds no GPU" in error("--device=cuda")
    assert "torch finds no GPU" in error("--device=cuda:0")


def test_devices_with_gpus(two_gpus):
    assert load()["device"] == load("--device=cuda")["device"] == torch.device("cuda:0")
    assert load()["use_gpu"] is True
    assert load("--device=cuda:1")["device"] == torch.device("cuda:1")
    assert load("--device=cpu")["device"] == torch.device("cpu")
    assert load("--device=cpu")["use_gpu"] is False  # RecBole would ask the CPU for GPU memory
    assert load("--use_gpu=False")["device"] == torch.device("cpu")
    assert load("--gpu_id=")["device"] == torch.device("cpu")
    assert "GPU 2 does not exist, torch finds 2" in error("--device=cuda:2")


def test_one_gpu_without_a_launcher_makes_a_process_group(monkeypatch, two_gpus):
    """torch takes a device without an index nowhere that it must choose one."""
    chosen, backends = [], []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with processes.process_group(load()["device"], single=True):
        assert (chosen, backends) == ([0], ["nccl"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert load("--device=cuda")["device"] == torch.device("cuda:1")
    with (
        pytest.raises(ValueError, match="specified index"),
        processes.process_group(torch.device("cuda"), single=True),
    ):
        pass


def test_the_settings_saved_are_those_asked_for(two_gpus):
    saved = load("--device=cpu").to_dict()
    assert (saved["device"], saved["use_gpu"]) == ("cpu", True)
    assert load().to_dict()["device"] == "auto"


def test_visible_devices_are_set_only_when_asked_for(monkeypatch, two_gpus):
    load()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    load()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    load("--gpu_id=0,1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_under_a_launcher(monkeypatch, two_gpus):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    config = load("--local_rank=1", "--gpu_id=0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert config["device"] == torch.device("cuda:1")
    assert config["local_rank"] == 1
    assert config["single_spec"] is True
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "GPU 2 does not exist" in error()
    monkeypatch.setenv("LOCAL_RANK", "first")
    assert "LOCAL_RANK must be a number" in error()


def test_config_is_recboles():
    assert isinstance(load(), config_module.RecBoleConfig)
    assert issubclass(ConfigError, MultDPOError)
    assert Config(["--model=BPR", "--dataset=ml-100k"])["model"] == "BPR"


def test_settings_are_read_without_the_language_model():
    """A classical model must not wait for transformers."""
    code = (
        "from recbole_multdpo.settings.config import load_config\n"
        "load_config(['--model=EASE', '--dataset=ml-100k'])\n"
        "import sys\n"
        "assert 'transformers' not in sys.modules and 'recbole_multdpo.model' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_pretrained_backbone_has_milder_defaults(tmp_path: Path) -> None:
    base = ["--model=LLMRec", "--dataset=ml-100k"]
    tiny, pretrained = (load_config([*base, f"--backbone={name}"]) for name in ("tiny", "org/lm"))
    assert pretrained["sft_learning_rate"] < tiny["sft_learning_rate"]
    assert pretrained["sft_on_prompt"] is False
    assert load_config([*base, "--backbone=org/lm", "--sft_epochs=7"])["sft_epochs"] == 7
    # resumed or file settings are stronger than the defaults
    file = tmp_path / "mine.yaml"
    file.write_text("backbone: org/lm\nlearning_rate: 0.5\n")
    assert load_config([*base, f"--config_files={file}"])["learning_rate"] == 0.5


@pytest.mark.parametrize("backbone", ["tiny", "org/lm"])
def test_prompts_of_a_ranking_are_no_longer_than_in_training_unless_asked_for(backbone) -> None:
    asked = [f"--backbone={backbone}", "--load_col=~"]
    for given in ([], ["--max_history=7"]):
        settings = load(*asked, *given).settings
        assert settings.ranking_history == settings.max_history
    assert load(*asked, "--rank_history=500").settings.ranking_history == 500


# -------------------------------------------------------------------------------------------------
# the property file in a data set's own folder


def _data_folder(tmp_path, name, text):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.yaml").write_text(text)
    return [f"--dataset={name}", f"--data_path={tmp_path}"]


def test_a_data_sets_own_file_wins_over_ours_and_loses_to_the_user(tmp_path):
    own = _data_folder(
        tmp_path, "ml-10m", "item_text_fields: [name]\neval_args: {order: TO}\ntopk: [3, 10]\n"
    )
    config = load_config(["--model=LLMRec", *own, "--topk=[10]"])
    assert config["item_text_fields"] == ["name"]
    assert config["topk"] == [10]
    assert config["eval_args"]["order"] == "TO"  # its part of eval_args; the rest is ours
    assert config["val_interval"] == {"rating": "[4,inf)"}
    other = load_config(["--model=Pop", *own])  # LLMRec's keys in it do not disturb other models
    assert other["topk"] == [3, 10] and not other.warnings


def test_a_data_sets_own_file_is_found_in_the_default_data_path(tmp_path, monkeypatch):
    (tmp_path / "dataset").mkdir()
    _data_folder(tmp_path / "dataset", "mine", "topk: [7, 10]\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(["--model=Pop", "--dataset=mine"])["topk"] == [7, 10]
    _data_folder(tmp_path / "dataset", "ml-100k", "topk: [7, 10]\n")  # not the ml-100k that is used
    assert load_config(["--model=Pop", "--dataset=ml-100k"])["topk"] == [5, 10, 15, 20]


def test_a_data_sets_own_file_is_checked(tmp_path):
    own = _data_folder(tmp_path, "mine", "tokp: [3]\n")
    with pytest.raises(ConfigError, match=r"tokp \(.*mine\.yaml\).*did you mean topk"):
        load_config(["--model=Pop", *own])


@pytest.mark.parametrize(
    "line",
    [
        "backbone: org/model",
        "trust_remote_code: True",
        "log_wandb: True",
        "wandb_project: theirs",
        "run_dir: /",
        "save_dataset: True",
        "dataset_save_path: x.pth",
        "warm_up: x.pth",
        "EASE.pre_model_path: x.pth",
        "assistant_settings: {warm_up: x.pth}",
    ],
)
def test_a_data_sets_own_file_chooses_no_code_and_no_place(tmp_path, line):
    own = _data_folder(tmp_path, "mine", f"{line}\ntopk: [3]\n")
    with pytest.raises(
        ConfigError, match=rf"mine\.yaml: .* may not set {line.split(':')[0]}\."
    ) as refused:
        load_config(["--model=LLMRec", *own])
    # whose files may not set these either
    asked_for = line.split(":")[0] in ASKED_FOR
    assert ("--config_files" in str(refused.value)) != asked_for


@pytest.mark.parametrize(
    ("dataset", "levels"), [("ml-10m", (5, 4.5, 4)), ("ml-100k", (5, 4)), ("ml-1m", (5, 4))]
)
def test_losses_made_for_levels_take_those_of_the_data_set(dataset: str, levels: tuple) -> None:
    def settings(loss: str, *extra: str):
        argv = ["--model=LLMRec", f"--dataset={dataset}", f"--loss={loss}", "--device=cpu", *extra]
        return load_config(argv).settings

    for loss in ("mult2_dpo", "pl2_dpo"):
        assert settings(loss).levels == levels
        assert settings(loss, "--level_thresholds=[5, 3]").levels == (5, 3)
    for loss in ("mult_dpo", "lipo_bt", "lipo_lambda", "pro", "kpo", "sft"):
        assert settings(loss).levels == ()
    assert settings("lipo_bt", "--level_thresholds=[5, 4]").levels == (5, 4)


def test_every_data_set_of_ours_says_what_its_items_are() -> None:
    """The default speaks of items, for data that we do not know."""
    words = {
        path.stem: read_settings_file(path).get("prompt_template")
        for path in (properties_folder() / "dataset").glob("*.yaml")
    }
    assert {"ml-100k", "ml-1m", "ml-10m"} <= words.keys() and None not in words.values()
    assert load_config(["--model=LLMRec", "--dataset=ml-100k"]).settings.prompt_template == "movies"
    own = ["--model=LLMRec", "--dataset=mine", "--item_text_fields=[title]"]
    assert load_config(own).settings.prompt_template == "items"


def test_whole_numbers_of_settings_of_floats_are_floats():
    llm = ["--model=LLMRec", "--dataset=ml-100k", "--loss=mult_dpo"]
    ease = ["--model=EASE", "--dataset=ml-100k"]
    for argv, key, whole, same, other in (
        (llm, "weight_decay", "1", "1.0", "2"),
        (llm, "beta", "3", "3.0", "4"),
        (ease, "reg_weight", "250", "250.0", "251"),
    ):
        found = [
            load_config([*argv, f"--{key}={value}"]).to_dict() for value in (whole, same, other)
        ]
        assert type(found[0][key]) is float
        assert settings_hash(found[0]) == settings_hash(found[1]) != settings_hash(found[2])
        # a run of before has the whole number in its file
        saved = {**found[1], key: int(float(same))}
        assert changed_settings(saved, found[1]) == []
        assert changed_settings(saved, found[2]) == [key]
    assert type(load_config([*llm, "--epochs=1"]).to_dict()["epochs"]) is int  # the control
