"""Check a language model's settings for contradictions and for settings without effect."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from recbole_multdpo.settings.acts import Given
from recbole_multdpo.settings.by_size import AUTO
from recbole_multdpo.settings.conditions import ZERO_SHOT
from recbole_multdpo.settings.effects import idle_problems
from recbole_multdpo.settings.hardware import BFLOAT16, fast_dtype
from recbole_multdpo.settings.item_template import ItemTemplate
from recbole_multdpo.settings.language_models import LLMREC
from recbole_multdpo.settings.llmrec import LIST_METRICS, BIGRecSettings, LLMRecSettings
from recbole_multdpo.settings.recbole import low_rating_problems


def check_combinations(
    settings: LLMRecSettings, shared: Mapping[str, Any], explicit: Iterable[str]
) -> list[str]:
    """Check settings against each other; each is valid on its own.

    Args:
        settings: LLMRec's own settings.
        shared: RecBole's settings, final and with checked types.
        explicit: keys set on the command line. They must have an effect, whereas a settings file
            may describe more than one run.

    Returns:
        One sentence per problem, with the remedy.
    """
    problems = [
        *_model_problems(settings),
        *_epoch_problems(settings, shared, explicit),
        *_loss_problems(settings, shared),
        *_dynamic_problems(settings),
        *_data_problems(settings, shared),
        *_recbole_problems(shared),
        *_ranking_problems(settings, shared),
        *_grounding_problems(settings),
    ]
    named = {problem.partition("=")[0] for problem in problems}
    given = Given(shared, settings)
    return problems + idle_problems(given, {*explicit} - named, shared.get("model", LLMREC))


def _model_problems(settings: LLMRecSettings) -> list[str]:
    problems = []
    if settings.tiny_hidden_size % (2 * settings.tiny_num_heads):
        problems.append(
            f"tiny_hidden_size={settings.tiny_hidden_size} must be a multiple of "
            f"2 x tiny_num_heads={settings.tiny_num_heads}: every head needs an even width."
        )
    if settings.lora_target_modules == ():
        problems.append("lora_target_modules is empty. Use all-linear or a list of module names.")
    return problems


def _epoch_problems(
    settings: LLMRecSettings, shared: Mapping[str, Any], explicit: Iterable[str]
) -> list[str]:
    """Epochs by the number of users asked for with a backbone that they were not chosen for."""
    values = {"sft_epochs": settings.sft_epochs, "epochs": shared.get("epochs")}
    # a finished run of tiny is read with its own folder as the backbone
    return [
        f"{key}={AUTO} is as many epochs as tiny takes from random weights. Set a number for "
        f"backbone={settings.backbone}, such as --{key}=1."
        for key in sorted(values.keys() & {*explicit})
        if values[key] == AUTO and settings.backbone != "tiny"
    ]


def _loss_problems(settings: LLMRecSettings, shared: Mapping[str, Any]) -> list[str]:
    if settings.sft_on_prompt and settings.normalize_over == "catalogue":
        return [
            "sft_on_prompt=True trains on the prompt's words, which are no titles: use it with "
            "--normalize_over=vocabulary."
        ]
    if settings.loss_needs.needs_kl and shared["train_batch_size"] == 1:
        return [
            f"train_batch_size=1: loss={settings.loss} compares each example with another one of "
            "its batch. Use 2 or more."
        ]
    if settings.loss_needs.needs_kl and settings.reference == "none":
        return [
            f"reference=none: loss={settings.loss} compares with the reference's KL divergence. "
            "Add --reference=sft."
        ]
    if settings.reference_cache and not settings.uses_reference:
        return [
            f"reference_cache=True keeps what a reference says, and loss={settings.loss} "
            f"with reference={settings.reference} has none. Leave it out."
        ]
    if settings.reference_cache and settings.draws_by_policy:
        return [
            "reference_cache=True finds nothing where the policy draws the negatives. Use "
            "--negatives=static or --reference_cache=False."
        ]
    if settings.track_bounds and not settings.uses_reference:
        return [
            f"track_bounds=True needs log-ratios, and loss={settings.loss} with "
            f"reference={settings.reference} has none. Choose a loss with a reference, such as "
            "mult_dpo or pl_dpo, and --reference=sft."
        ]
    return []


def _dynamic_problems(settings: LLMRecSettings) -> list[str]:
    """Contradictions with dynamic negatives, which the policy draws."""
    loss = settings.loss_needs
    if not settings.draws_by_policy or loss.negatives == "none":
        return []
    problems = []
    if settings.dynamic_weights == "ratio" and not settings.uses_reference:
        problems.append(
            f"dynamic_weights=ratio weighs by the log-ratio, and loss={settings.loss} has no "
            "reference. Add --dynamic_weights=policy."
        )
    n_negatives = settings.set_of_negatives if loss.negatives == "many" else 1
    assert n_negatives != "all"  # nothing is drawn then
    if settings.negative_pool != "catalogue" and settings.negative_pool_size < n_negatives:
        problems.append(
            f"negative_pool_size={settings.negative_pool_size} is less than "
            f"num_negatives={n_negatives}, which are drawn from the pool. Raise it."
        )
    return problems


def _data_problems(settings: LLMRecSettings, shared: Mapping[str, Any]) -> list[str]:
    problems = []
    if settings.item_text_template is not None:
        try:
            ItemTemplate(settings.item_text_template)
        except ValueError as error:
            problems.append(
                f"item_text_template={settings.item_text_template!r} cannot be read: {error}. "
                'Write columns of the .item file in braces, for example "{title} ({brand})".'
            )
    elif not settings.item_text_fields:
        problems.append(
            "item_text_fields is empty: name the columns of the .item file that make an item's "
            'text, for example --item_text_fields="[title]".'
        )
    loaded = (shared.get("load_col") or {}).get("inter", "*")
    if settings.history_split == "temporal" and not _is_loaded(shared["TIME_FIELD"], loaded):
        problems.append(
            f"history_split=temporal needs times: add {shared['TIME_FIELD']} to load_col's inter "
            "list, or use history_split=random."
        )
    if settings.history_split == "temporal" and shared["TIME_FIELD"] in (
        (shared.get("unused_col") or {}).get("inter", ())
    ):
        problems.append(
            f"history_split=temporal needs times, which unused_col drops after the split: leave "
            f"{shared['TIME_FIELD']} out of its inter list, or use history_split=random."
        )
    levels, name = settings.levels, "level_thresholds"
    if settings.level_thresholds == "auto":
        name = "rating_levels"
    if levels and not _is_loaded(shared["RATING_FIELD"], loaded):
        problems.append(
            f"{name} needs ratings: add {shared['RATING_FIELD']} to load_col's inter list, or "
            "choose a loss of one level, such as mult_dpo or pl_dpo, without level_thresholds."
        )
    one_level = settings.loss_needs.one_level
    if one_level and len(levels) < 2 and settings.low_ratings == "ignore":
        problems.append(
            f"loss={settings.loss} with one level of positives is {one_level}. Set "
            "--level_thresholds, for example [5, 4], or --low_ratings=below_unrated; or use "
            f"--loss={one_level}."
        )
    if settings.disliked_in_prompt and shared.get("val_interval"):
        name = f"disliked_in_prompt={settings.disliked_in_prompt}"
        problems += low_rating_problems(name, shared)
        if settings.history_split == "temporal":
            problems.append(
                f"{name}: with history_split=temporal a training prompt would show what the user "
                "disliked after its targets. Use --history_split=random."
            )
    if settings.low_ratings != "ignore":
        name = f"low_ratings={settings.low_ratings}"
        problems += low_rating_problems(name, shared)
        if settings.loss_needs.negatives != "many":
            problems.append(
                f"{name} adds negatives, and loss={settings.loss} takes no more than one. Choose a "
                "loss with many, such as mult2_dpo or pl2_dpo."
            )
    if any(lower >= upper for upper, lower in zip(levels, levels[1:], strict=False)):
        problems.append(f"{name}={list(levels)} must fall from level to level, for example [5, 4].")
    return problems


def _is_loaded(field: str, loaded: Any) -> bool:
    return loaded == "*" or field in loaded


def _recbole_problems(shared: Mapping[str, Any]) -> list[str]:
    """RecBole's settings that do not work with a language model."""
    problems = []
    if shared.get("train_neg_sample_args") is not None:
        problems.append(
            "train_neg_sample_args must be ~ for LLMRec: it draws sets of negatives as "
            "num_negatives, negative_distribution and popularity_alpha say."
        )
    if shared.get("repeatable"):
        problems.append("repeatable must be False for LLMRec: known items are never ranked.")
    for key in ("enable_amp", "enable_scaler"):
        if shared.get(key):
            problems.append(f"{key} must be False for LLMRec: dtype sets its precision.")
    if "labeled" in shared["eval_args"]["mode"].values():
        problems.append(
            "eval_args: mode must be full, uniN, popN or totalN for LLMRec, got labeled."
        )
    return problems


def _ranking_problems(settings: LLMRecSettings, shared: Mapping[str, Any]) -> list[str]:
    """Metrics that need complete rankings, with settings that leave them incomplete."""
    of_lists = [name for name in shared.get("metrics") or () if name.lower() in LIST_METRICS]
    if settings.stop_at_metrics and of_lists:
        return [
            f"stop_at_metrics=True leaves lists incomplete, which {', '.join(of_lists)} would "
            "measure. Use --stop_at_metrics=False, or metrics of hits alone, such as NDCG."
        ]
    return []


def _grounding_problems(settings: LLMRecSettings) -> list[str]:
    """Check that BIGRec's weights of distances and its assistant agree."""
    if not isinstance(settings, BIGRecSettings):
        return []
    weighs, name = settings.grounding_weight == "assistant", settings.assistant
    if weighs and name is None:
        return [
            "grounding_weight=assistant needs an assistant. Add --assistant=EASE, or use "
            "--grounding_weight=popularity."
        ]
    if name is not None and not weighs:
        return [
            f"assistant={name} has no part in grounding_weight={settings.grounding_weight}. Add "
            "--grounding_weight=assistant, or leave the assistant out (in a comparison, "
            f"--LLMRec.assistant={name} reaches only LLMRec)."
        ]
    return []


def warnings_for(settings: LLMRecSettings, device: torch.device) -> list[str]:
    """Warn of settings that work but are rarely wanted, one sentence each.

    Args:
        settings: LLMRec's own settings.
        device: of the run.
    """
    return [
        *_precision_warnings(settings, device),
        *_kernel_warnings(settings, device),
        *_zero_shot_warnings(settings),
    ]


def _zero_shot_warnings(settings: LLMRecSettings) -> list[str]:
    if settings.loss == ZERO_SHOT and settings.backbone == "tiny":
        return [
            "loss=zero_shot with backbone=tiny ranks with random weights, which is chance. "
            "Use it with a language model that has been trained."
        ]
    return []


def _kernel_warnings(settings: LLMRecSettings, device: torch.device) -> list[str]:
    if settings.use_liger_kernel and device.type != "cuda":
        return [f"use_liger_kernel=True has no effect on a {device.type.upper()}."]
    return []


def _precision_warnings(settings: LLMRecSettings, device: torch.device) -> list[str]:
    if settings.dtype == BFLOAT16:
        fast, reason = fast_dtype(device)
        if fast != BFLOAT16:
            return [
                f"dtype=bfloat16 is many times slower than float32 here: {reason}. "
                "Use --dtype=float32 unless memory does not suffice."
            ]
    elif settings.tf32 and device.type != "cuda":
        return [f"tf32=True has no effect on a {device.type.upper()}."]
    return []
