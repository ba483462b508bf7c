"""Settings of RecBole that a run would take and not use: refused, naming the one that does it.

RecBole's property files hold every setting for every kind of model, and nothing says which of them
a run reads. A setting whose effect RecBole documents and a run would lose is refused wherever it
was set; one that has no effect on a kind of model, where the command line asks for it.
`tests/settings/test_unused.py` has the list of all settings with what becomes of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils import ModelType

# settings by what they are about
KNOWLEDGE_KEYS = frozenset(
    "ENTITY_ID_FIELD HEAD_ENTITY_ID_FIELD TAIL_ENTITY_ID_FIELD RELATION_ID_FIELD kg_reverse_r"
    " entity_kg_num_interval relation_kg_num_interval alias_of_entity_id"
    " alias_of_relation_id".split()
)
SEQUENCE_KEYS = frozenset("ITEM_LIST_LENGTH_FIELD LIST_SUFFIX MAX_ITEM_LIST_LENGTH".split())
FEATURE_KEYS = frozenset("numerical_features discretization".split())
FILTER_KEYS = ("val_interval", "rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval")

_EVERYTHING = "[0,inf)"  # RecBole's default of intervals of counts
_READ_POW = frozenset({"LightGCN", "SimpleX"})
_READ_PRELOADED = frozenset({"GRU4RecKG", "KSR"})


def without_effect(model: str, model_type: ModelType, is_language_model: bool) -> frozenset[str]:
    """Settings that do nothing for a model, whatever the others are.

    Args:
        model: its name.
        model_type: RecBole's kind of model; that of a language model does not matter.
        is_language_model: whether it is one of this package.
    """
    keys = {"POSITION_FIELD", "valid_metric_bigger"}
    reads_knowledge = model_type == ModelType.KNOWLEDGE or model in _READ_PRELOADED
    if is_language_model or not reads_knowledge:
        keys |= KNOWLEDGE_KEYS
    if is_language_model or model_type != ModelType.SEQUENTIAL:
        keys |= SEQUENCE_KEYS
    if is_language_model or model_type in (ModelType.GENERAL, ModelType.TRADITIONAL):
        keys |= FEATURE_KEYS
    if is_language_model:
        keys |= {"NEG_PREFIX", "LABEL_FIELD", "seq_len"}
    return frozenset(keys)


def unused_problems(
    final: Mapping[str, Any],
    asked_for: Mapping[str, Any],
    *,
    is_language_model: bool,
    is_ranked: bool,
    reads_labels: bool,
) -> list[str]:
    """What is set and would not be used, one sentence each.

    Args:
        final: all settings of the run, of the right types.
        asked_for: those of the command line.
        is_language_model: whether the model is one of this package.
        is_ranked: whether the metrics are of rankings, not of single scores.
        reads_labels: whether the model is trained on labels of rows.
    """
    model, model_type = final["model"], final["MODEL_TYPE"]
    idle = without_effect(model, model_type, is_language_model) & asked_for.keys()
    return [
        *_lost_labels(final, is_ranked, reads_labels),
        *_lost_filters(final),
        *_lost_split(final, asked_for.get("eval_args")),
        *_lost_by_kind(final, model_type, is_language_model),
        *(
            f"{key}: no effect with model={model}. {_instead(key, is_language_model)}"
            for key in sorted(idle)
        ),
        *_idle_for_now(final, asked_for, is_language_model),
    ]


def _instead(key: str, is_language_model: bool) -> str:
    if key == "valid_metric_bigger":
        return "It follows from valid_metric. Leave it out."
    if key == "MAX_ITEM_LIST_LENGTH" and is_language_model:
        return "Use --max_history and --rank_history."
    if key == "seq_len":
        return "Use --max_item_tokens."
    return "Leave it out."


def _lost_labels(final: Mapping[str, Any], is_ranked: bool, reads_labels: bool) -> list[str]:
    """Labels by `threshold` are read where labelled rows are trained on and tested."""
    threshold = final.get("threshold")
    sampled = final.get("train_neg_sample_args") or {"distribution": "none"}
    labelled = set(final["eval_args"]["mode"].values()) == {"labeled"}
    drawn = sampled.get("distribution") != "none"
    if not threshold or (reads_labels and not is_ranked and labelled and not drawn):
        return []
    field, value = next(iter(threshold.items()))
    why, which = "as a ranking has no labels", "a model of RecBole"
    if not reads_labels:
        why, which = f"as {final['model']} is not trained on labels", "one such as NeuMF or DeepFM"
    return [
        f"threshold={threshold}: rows below it would still be positives, {why}. "
        f"Keep the others only, by --val_interval=\"{{'{field}': '[{value},inf)'}}\"; "
        f"labels count where {which} is trained and tested on labelled rows, with "
        "--metrics=[AUC] --valid_metric=AUC --train_neg_sample_args=~ and "
        "--eval_args=\"{'mode': 'labeled'}\"."
    ]


def _lost_filters(final: Mapping[str, Any]) -> list[str]:
    if not final.get("benchmark_filename"):
        return []
    found = [key for key in FILTER_KEYS if final.get(key) not in (None, {}, _EVERYTHING)]
    return [
        f"{key}={final[key]}: RecBole takes the parts of benchmark_filename as they are and "
        f"filters nothing. Filter the files and set --{key}=~, or give one .inter file and "
        "--benchmark_filename=~."
        for key in found
    ]


def _lost_split(final: Mapping[str, Any], asked_for: Any) -> list[str]:
    args, problems = final["eval_args"], []
    by_user = {"LS", "TS"} & args["split"].keys()
    if by_user and args["group_by"] in (None, "none") and not final.get("benchmark_filename"):
        problems.append(
            f"eval_args: group_by {args['group_by']} has no effect with split "
            f"{min(by_user)}, which is of each user's rows. Use group_by user, or split RS."
        )
    named = {"split", "group_by"} & asked_for.keys() if isinstance(asked_for, Mapping) else set()
    if final.get("benchmark_filename") and named:
        problems.append(
            f"eval_args: {' and '.join(sorted(named))}: no effect with benchmark_filename, whose "
            "files are the parts. Leave it out, or give one .inter file and "
            "--benchmark_filename=~."
        )
    return problems


def _lost_by_kind(
    final: Mapping[str, Any], model_type: ModelType, is_language_model: bool
) -> list[str]:
    """What RecBole documents and this kind of model would not do."""
    model, problems = final["model"], []
    if not final.get("shuffle", True) and (is_language_model or model_type == ModelType.KNOWLEDGE):
        problems.append(
            f"shuffle=False: {model} always trains in a new random order in each epoch. Leave it "
            "out; --seed fixes the order."
        )
    if final.get("transform") and (is_language_model or model_type != ModelType.SEQUENTIAL):
        problems.append(
            f"transform={final['transform']} changes the item sequences of RecBole's sequential "
            f"models, and {model} has none. Leave it out, or use --model=SASRec or another one."
        )
    if final.get("require_pow") and model not in _READ_POW:
        problems.append(
            f"require_pow=True is read by {' and '.join(sorted(_READ_POW))} alone, not by {model}. "
            "Leave it out; --weight_decay penalises weights."
        )
    if model not in _READ_PRELOADED:
        problems += [
            f"{key}={final[key]} is read by {' and '.join(sorted(_READ_PRELOADED))} alone, not by "
            f"{model}. Leave it out."
            for key in ("preload_weight", "additional_feat_suffix")
            if final.get(key)
        ]
    return problems


def _idle_for_now(
    final: Mapping[str, Any], asked_for: Mapping[str, Any], is_language_model: bool
) -> list[str]:
    """What the command line asks for and the other settings leave without effect."""
    problems = []
    rolls = final.get("test_information") == "rolling"
    if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and asked_for.get("repeatable") and not rolls:
        problems.append(
            "repeatable=True: a sequential model ranks items that a user knows in RecBole's "
            "rolling test only. Use --test_information=rolling, or leave it out."
        )
    modes = set(final["eval_args"]["mode"].values())
    if is_language_model and "eval_batch_size" in asked_for and modes == {"full"}:
        problems.append(
            "eval_batch_size: no effect with eval_args mode full, which ranks users together. Use "
            "--rank_batch_users and --score_batch_tokens."
        )
    if "wandb_project" in asked_for and not final.get("log_wandb"):
        problems.append("wandb_project: no effect without --log_wandb=True. Add it.")
    if "mentioned_items" in asked_for and final.get("context") == "history":
        problems.append("mentioned_items: no effect with context=history. Leave it out.")
    return problems
