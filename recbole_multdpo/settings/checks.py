"""Settings of a language model that contradict each other, or have no effect as they are."""

from collections.abc import Iterable, Mapping
from typing import Any

from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings.llmrec import (
    LIST_METRICS,
    PREFERENCE_KEYS,
    SFT_KEYS,
    WITHOUT_PREFERENCES,
    ZERO_SHOT,
    BIGRecSettings,
    LLMRecSettings,
)


def impossible_combinations(
    settings: LLMRecSettings, shared: Mapping[str, Any], asked_for: Iterable[str]
) -> list[str]:
    """What is wrong with LLMRec's settings although each of them is allowed by itself.

    Args:
        settings: LLMRec's own settings.
        shared: RecBole's settings, final and of the right types.
        asked_for: keys set on the command line. One of them without any effect is a
            mistake, whereas a settings file may well describe more than one run.

    Returns:
        One sentence per problem, with the remedy.
    """
    return [
        *_model_problems(settings),
        *_loss_problems(settings, shared),
        *_dynamic_problems(settings),
        *_data_problems(settings, shared),
        *_recbole_problems(shared),
        *_ranking_problems(settings, shared),
        *_grounding_problems(settings),
        *_settings_without_effect(settings, set(asked_for)),
        *_history_settings_without_effect(shared.get("context"), set(asked_for)),
    ]


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


def _loss_problems(settings: LLMRecSettings, shared: Mapping[str, Any]) -> list[str]:
    if settings.sft_on_prompt and settings.normalize_over == "catalogue":
        return [
            "sft_on_prompt=True trains on the prompt's words, which are no titles: use it with "
            "--normalize_over=vocabulary."
        ]
    if settings.loss_needs.needs_kl and shared["train_batch_size"] == 1:
        return [
            f"train_batch_size=1: loss={settings.loss} compares each context with another one of "
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
    if settings.reference_cache and settings.negatives == "dynamic":
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
    """What cannot be drawn by the policy."""
    loss = settings.loss_needs
    if settings.negatives == "static" or loss.negatives == "none":
        return []
    problems = []
    if settings.dynamic_weights == "ratio" and not settings.uses_reference:
        problems.append(
            f"dynamic_weights=ratio weighs by the log-ratio, and loss={settings.loss} has no "
            "reference. Add --dynamic_weights=policy."
        )
    n_negatives = settings.num_negatives if loss.negatives == "many" else 1
    if settings.negative_pool != "catalogue" and settings.negative_pool_size < n_negatives:
        problems.append(
            f"negative_pool_size={settings.negative_pool_size} is less than "
            f"num_negatives={n_negatives}, which are drawn from the pool. Raise it."
        )
    return problems


def _data_problems(settings: LLMRecSettings, shared: Mapping[str, Any]) -> list[str]:
    problems = []
    if not settings.item_text_fields:
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
    if settings.low_ratings != "ignore":
        problems += _low_rating_problems(settings, shared, loaded)
    if any(lower >= upper for upper, lower in zip(levels, levels[1:], strict=False)):
        problems.append(f"{name}={list(levels)} must fall from level to level, for example [5, 4].")
    return problems


def _low_rating_problems(
    settings: LLMRecSettings, shared: Mapping[str, Any], loaded: Any
) -> list[str]:
    """What low ratings as negatives need: ratings, of which val_interval drops the low ones."""
    rating, name = shared["RATING_FIELD"], f"low_ratings={settings.low_ratings}"
    problems = []
    if settings.loss_needs.negatives != "many":
        problems.append(
            f"{name} adds negatives, and loss={settings.loss} takes no more than one. Choose a "
            "loss with many, such as mult2_dpo or pl2_dpo."
        )
    if not _is_loaded(rating, loaded):
        problems.append(f"{name} needs ratings: add {rating} to load_col's inter list.")
    if set(shared.get("val_interval") or {}) != {rating}:
        problems.append(
            f"{name} makes negatives of the ratings that val_interval drops, so that val_interval "
            f"must limit {rating} and nothing else, for example to [4,inf)."
        )
    in_time, time_field = shared["eval_args"].get("order") == "TO", shared["TIME_FIELD"]
    if in_time and (
        shared.get("normalize_all") or time_field in (shared.get("normalize_field") or ())
    ):
        problems.append(
            f"{name} with eval_args order TO compares times as they were read. Leave {time_field} "
            "out of what is normalized: --normalize_all=False and normalize_field without it."
        )
    if in_time and not _is_loaded(time_field, loaded):
        problems.append(
            f"{name} with eval_args order TO needs times: add {shared['TIME_FIELD']} to "
            "load_col's inter list."
        )
    return problems


def _is_loaded(field: str, loaded: Any) -> bool:
    return loaded == "*" or field in loaded


def _recbole_problems(shared: Mapping[str, Any]) -> list[str]:
    """RecBole's settings that have another meaning, or none, for a language model."""
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
    """Rankings that lack what is asked of them."""
    of_lists = [name for name in shared.get("metrics") or () if name.lower() in LIST_METRICS]
    if settings.stop_at_metrics and of_lists:
        return [
            f"stop_at_metrics=True leaves lists incomplete, which {', '.join(of_lists)} would "
            "measure. Use --stop_at_metrics=False, or metrics of hits alone, such as NDCG."
        ]
    return []


def _grounding_problems(settings: LLMRecSettings) -> list[str]:
    """What BIGRec weighs its distances by must be there, and what is there must weigh them."""
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
            "--grounding_weight=assistant, or leave the assistant out (beside other models: "
            f"--LLMRec.assistant={name} reaches LLMRec alone)."
        ]
    return []


def _grounding_without_effect(settings: BIGRecSettings, asked_for: set[str]) -> list[str]:
    problems = []
    if "assistant_weight" in asked_for:
        problems.append(
            "assistant_weight: no effect with BIGRec, whose distances an assistant's scores weigh "
            "with grounding_gamma. Use --grounding_gamma, or leave it out."
        )
    if "grounding_gamma" in asked_for and settings.grounding_weight == "none":
        problems.append(
            "grounding_gamma: no effect with grounding_weight=none. Add "
            "--grounding_weight=popularity, or --grounding_weight=assistant --assistant=EASE."
        )
    return problems


def _settings_without_effect(settings: LLMRecSettings, asked_for: set[str]) -> list[str]:
    problems = []
    lora = sorted(key for key in asked_for if key.startswith("lora_"))
    if settings.trains_all_weights and lora:
        problems.append(
            f"{', '.join(lora)}: no effect with finetune={settings.finetune}"
            f"{' and the tiny backbone' if settings.finetune == 'auto' else ''}, which trains all "
            "weights. Add --finetune=lora."
        )
    tiny = sorted(key for key in asked_for if key.startswith("tiny_"))
    if settings.backbone != "tiny" and tiny:
        problems.append(
            f"{', '.join(tiny)}: no effect with backbone={settings.backbone}. Use --backbone=tiny."
        )
    searching = sorted(asked_for & {"expand_per_step", "stop_at_metrics"})
    if settings.ranker == "exhaustive" and searching:
        problems.append(
            f"{', '.join(searching)}: no effect with ranker=exhaustive. Leave it out, or use "
            "--ranker=best_first."
        )
    if isinstance(settings, BIGRecSettings):
        problems += _grounding_without_effect(settings, asked_for)
        asked_for = asked_for - {"assistant_weight"}
    unassisted = sorted(asked_for & {"assistant_weight", "assistant_settings"})
    if settings.assistant is None and unassisted:
        problems.append(
            f"{', '.join(unassisted)}: no effect without an assistant. Add --assistant=EASE."
        )
    if "rating_levels" in asked_for and settings.levels != settings.rating_levels:
        problems.append(
            "rating_levels: no effect but with level_thresholds=auto and a loss of several levels, "
            "such as mult2_dpo. Use --level_thresholds."
        )
    problems += _negatives_without_effect(settings, asked_for)
    problems += _loss_settings_without_effect(settings, asked_for)
    return problems


def _negatives_without_effect(settings: LLMRecSettings, asked_for: set[str]) -> list[str]:
    dynamic = {"negative_temperature", "dynamic_weights", "negative_pool", "negative_pool_size"}
    static = {"negative_distribution", "popularity_alpha"}
    other = {"static": "dynamic", "dynamic": "static"}[settings.negatives]
    unused = sorted(asked_for & (dynamic if settings.negatives == "static" else static))
    if unused:
        return [
            f"{', '.join(unused)}: no effect with negatives={settings.negatives}. "
            f"Add --negatives={other}, or leave it out."
        ]
    problems = []
    if "negative_pool_size" in asked_for and settings.negative_pool == "catalogue":
        problems.append(
            "negative_pool_size: no effect with negative_pool=catalogue. "
            "Add --negative_pool=uniform or --negative_pool=ranker."
        )
    if "popularity_alpha" in asked_for and settings.negative_distribution == "uniform":
        problems.append(
            "popularity_alpha: no effect with negative_distribution=uniform. "
            "Add --negative_distribution=popularity."
        )
    return problems


def _history_settings_without_effect(context: str | None, asked_for: set[str]) -> list[str]:
    found = asked_for & {
        "max_history",
        "rank_history",
        "target_share",
        "history_split",
    }
    if context != "conversation" or not found:
        return []
    return [
        f"{', '.join(sorted(found))}: no effect with context=conversation, which shows a "
        "conversation and takes all its answers as targets. Leave it out, or use --context=history."
    ]


def unused_by(loss: str) -> frozenset[str]:
    """Settings without effect under a loss: of stages that it does not have, of other losses.

    Args:
        loss: `zero_shot` or a key of `LOSSES`.
    """
    if loss == ZERO_SHOT:
        return _loss_options() | PREFERENCE_KEYS | SFT_KEYS
    options = _loss_options() - {*LOSSES[loss].options}
    if loss in WITHOUT_PREFERENCES:
        return options | PREFERENCE_KEYS
    return options | ({"num_negatives"} if LOSSES[loss].negatives == "one" else set())


def _loss_options() -> frozenset[str]:
    return frozenset(option for entry in LOSSES.values() for option in entry.options)


def _loss_settings_without_effect(settings: LLMRecSettings, asked_for: set[str]) -> list[str]:
    unused = unused_by(settings.loss) & asked_for
    problems = []
    for option in sorted(unused & _loss_options()):
        users = [name for name, entry in LOSSES.items() if option in entry.options]
        problems.append(
            f"{option}: no effect with loss={settings.loss}. Use it with "
            f"--loss={' or '.join(users)}, or leave it out."
        )
    stages = sorted(unused - _loss_options())
    if stages:
        problems.append(
            f"{', '.join(stages)}: no effect with loss={settings.loss}, "
            f"{_why_unused(settings)}, or leave it out."
        )
    return problems


def _why_unused(settings: LLMRecSettings) -> str:
    """Why a loss ignores settings of a stage or of sets, and what to use instead."""
    if settings.has_preference_stage:
        return "which has one negative. Use a loss of sets such as --loss=s_dpo"
    if settings.loss == ZERO_SHOT:
        return "which trains nothing. Use another loss"
    return "which trains no preferences. Use sft_epochs, sft_learning_rate or sft_batch_size"


def cautions(settings: LLMRecSettings, device_type: str) -> list[str]:
    """Settings that work and are seldom wanted, one sentence each.

    Args:
        settings: LLMRec's own settings.
        device_type: `cpu` or `cuda`.
    """
    return [
        *_dtype_cautions(settings, device_type),
        *_zero_shot_cautions(settings),
    ]


def _zero_shot_cautions(settings: LLMRecSettings) -> list[str]:
    if settings.loss == ZERO_SHOT and settings.backbone == "tiny":
        return [
            "loss=zero_shot with backbone=tiny ranks with random weights, which is chance. "
            "Use it with a language model that has been trained."
        ]
    return []


def _dtype_cautions(settings: LLMRecSettings, device_type: str) -> list[str]:
    if device_type == "cpu" and settings.dtype != "float32":
        return [
            f"dtype={settings.dtype} on a CPU is many times slower than float32. "
            "Use --dtype=float32 unless memory does not suffice."
        ]
    return []
