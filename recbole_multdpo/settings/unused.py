"""Refuse settings of RecBole that a run would accept but not use, and name the right one.

RecBole's property files have every setting for every kind of model, without telling which of them a
run reads. A setting with a documented effect that a run would not have is refused wherever it was
set. (`effects.idle_problems` refuses settings without effect on the command line.)
`tests/settings/test_unused.py` lists the treatment of every setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils import ModelType

from recbole_multdpo.settings.conditions import READ_PRELOADED
from recbole_multdpo.settings.effects import declared

# filters of rows, which are not applied to ready parts
_FILTERS = tuple(key for key, acting in declared().items() if acting.acts_in("filter"))
_EVERYTHING = "[0,inf)"  # RecBole's default of intervals of counts
_READ_POW = frozenset({"LightGCN", "SimpleX"})


def unused_problems(
    final: Mapping[str, Any],
    explicit: Mapping[str, Any],
    *,
    is_language_model: bool,
    is_ranked: bool,
    reads_labels: bool,
) -> list[str]:
    """Describe settings that would not be used, one sentence each.

    Args:
        final: all settings of the run, with checked types.
        explicit: settings of the command line.
        is_language_model: True for a model of this package.
        is_ranked: True if the metrics measure rankings, not single scores.
        reads_labels: True if the model is trained on labels of rows.
    """
    return [
        *_lost_labels(final, is_ranked, reads_labels),
        *_lost_filters(final),
        *_lost_split(final, explicit.get("eval_args")),
        *_lost_by_kind(final, final["MODEL_TYPE"], is_language_model),
    ]


def _lost_labels(final: Mapping[str, Any], is_ranked: bool, reads_labels: bool) -> list[str]:
    """Labels by `threshold` are used only if training and test are on labelled rows."""
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
    found = [key for key in _FILTERS if final.get(key) not in (None, {}, _EVERYTHING)]
    return [
        f"{key}={final[key]}: RecBole takes the parts of benchmark_filename as they are and "
        f"filters nothing. Filter the files and set --{key}=~, or give one .inter file and "
        "--benchmark_filename=~."
        for key in found
    ]


def _lost_split(final: Mapping[str, Any], explicit: Any) -> list[str]:
    args, problems = final["eval_args"], []
    by_user = {"LS", "TS"} & args["split"].keys()
    if by_user and args["group_by"] in (None, "none") and not final.get("benchmark_filename"):
        problems.append(
            f"eval_args: group_by {args['group_by']} has no effect with split "
            f"{min(by_user)}, which is of each user's rows. Use group_by user, or split RS."
        )
    named = {"split", "group_by"} & explicit.keys() if isinstance(explicit, Mapping) else set()
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
    """Settings with a documented effect that this kind of model would not have."""
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
            f"require_pow=True is read only by {' and '.join(sorted(_READ_POW))}, not by {model}. "
            "Leave it out; --weight_decay penalises weights."
        )
    if model not in READ_PRELOADED:
        problems += [
            f"{key}={final[key]} is read only by {' and '.join(sorted(READ_PRELOADED))}, not by "
            f"{model}. Leave it out."
            for key in ("preload_weight", "additional_feat_suffix")
            if final.get(key)
        ]
    return problems
