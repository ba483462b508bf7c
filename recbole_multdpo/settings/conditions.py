"""Conditions under which settings act, each with a message and a remedy if it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings.acts import Given, Unknown, When

ZERO_SHOT = "zero_shot"  # instead of a loss: ranks with the untrained backbone
_FULL = {"eval_args": {"mode": "full"}}


def _equals(key: str, *values: Any, use: bool = False) -> When:
    """Condition that a setting has one of the values; the first is the remedy."""
    return When(
        holds=lambda given: getattr(given, key) in values,
        found=lambda given: f"with {key}={getattr(given, key)}",
        remedy=lambda given: {key: values[0]},
        words=f"{key}={' or '.join(map(str, values))}",
        verb="Use" if use else "Add",
    )


def _always(text: str, **remedy: Any) -> tuple[Callable[[Any], str], Callable[[Any], Any]]:
    """Make `found` and `remedy` that are the same for every run."""
    return lambda given: text, lambda given: remedy


NO_TEMPLATE = (
    When(
        lambda given: given.item_text_template is None,
        *_always("with item_text_template, which names the columns", item_text_template=None),
        words="item_text_template=~",
        verb="Use it with",
    ),
)


# ---- the stages of a language model ----


def _with_loss(given: Given, loss: str) -> dict[str, str]:
    """Changes to another loss and its requirements: baselines have only supervised fine-tuning.

    Args:
        given: the run.
        loss: a name, or several with equal requirements, joined by `or`.
    """
    changes = {"loss": loss}
    try:
        if not LOSSES[loss.split()[0]].needs_reference and given.negatives == "dynamic":
            changes["dynamic_weights"] = "policy"
        if given.model != "LLMRec":
            changes["model"] = "LLMRec"
    except Unknown:
        pass
    return changes


def _trains_supervised(given: Given) -> bool:
    return given.loss != ZERO_SHOT and given.sft_epochs != 0


def _trains_preferences(given: Given) -> bool:
    return given.has_preference_stage and given.epochs != 0


def _why_untrained(given: Given) -> str:
    if given.loss == ZERO_SHOT:
        return f"with loss={ZERO_SHOT}, which trains nothing"
    return "with sft_epochs=0, after which nothing is trained"


def _training_remedy(given: Given) -> Mapping[str, Any]:
    return {"loss": "sft"} if given.loss == ZERO_SHOT else {"sft_epochs": 1}


_HAS_PREFERENCES = When(
    holds=lambda given: given.has_preference_stage,
    found=lambda given: (
        f"with loss={given.loss}, which trains "
        f"{'nothing' if given.loss == ZERO_SHOT else 'no preferences'}"
    ),
    remedy=lambda given: _with_loss(given, "mult_dpo"),
    words="a preference loss",
    verb="Use",
)
_HAS_EPOCHS = When(
    lambda given: given.epochs != 0, *_always("with epochs=0", epochs=1), words="epochs > 0"
)
_LOSS_TRAINS = When(
    lambda given: given.loss != ZERO_SHOT,
    *_always(f"with loss={ZERO_SHOT}, which trains nothing", loss="sft"),
    words="training",
    verb="Use",
)
_HAS_SFT_EPOCHS = When(
    lambda given: given.sft_epochs != 0,
    *_always("with sft_epochs=0, which skips the stage", sft_epochs=1),
    words="sft_epochs > 0",
)
PREFERENCE_LOSS = (_HAS_PREFERENCES,)
EPOCHS = (_HAS_EPOCHS,)
PREFERENCE = (_HAS_PREFERENCES, _HAS_EPOCHS)
TRAINED_LOSS = (_LOSS_TRAINS,)
SUPERVISED = (_LOSS_TRAINS, _HAS_SFT_EPOCHS)
TAUGHT = (
    *SUPERVISED,
    When(
        lambda given: given.sft_teacher is not None,
        *_always("without a teacher", sft_teacher="EASE"),
        words="a teacher",
    ),
)
TRAINING = (
    When(
        lambda given: _trains_supervised(given) or _trains_preferences(given),
        _why_untrained,
        _training_remedy,
        words="training",
        verb="Use",
    ),
)


def _validates(given: Given) -> bool:
    return (_trains_supervised(given) and given.sft_eval_step > 0) or (
        _trains_preferences(given) and given.eval_step > 0
    )


def _validation_remedy(given: Given) -> Mapping[str, Any]:
    if _trains_preferences(given):
        return {"eval_step": 1}
    return {**(_training_remedy(given) if given.loss == ZERO_SHOT else {}), "sft_eval_step": 1}


VALIDATING = (
    *TRAINING,
    When(
        _validates,
        lambda given: "without validation while training",
        _validation_remedy,
        words="validation while training",
    ),
)
BETWEEN_EPOCHS = (
    When(
        lambda given: given.eval_step > 0,
        *_always("with eval_step=0", eval_step=1),
        words="eval_step other than 0",
    ),
)
VALIDATING_OR_TUNING = (
    When(
        lambda given: given.ranks_by_validation or _validates(given),
        lambda given: "without validation while training",
        _validation_remedy,
        words="validation while training, or grounding_gamma=auto",
    ),
)
WARMED_UP = (
    When(
        lambda given: given.lr_scheduler_type != "constant",
        *_always("with lr_scheduler_type=constant", lr_scheduler_type="constant_with_warmup"),
        words="lr_scheduler_type other than constant",
    ),
)


# ---- losses, negatives and levels ----


def of_losses(option: str) -> When:
    """Condition that the loss has the option."""
    users = [name for name, loss in LOSSES.items() if option in loss.options]
    return When(
        lambda given: given.loss in users,
        lambda given: f"with loss={given.loss}",
        lambda given: _with_loss(given, " or ".join(users)),
        words=f"loss={' or '.join(users)}",
        verb="Use it with",
    )


MANY_NEGATIVES = (
    When(
        lambda given: not given.has_preference_stage or given.loss_needs.negatives == "many",
        lambda given: f"with loss={given.loss}, which has one negative",
        lambda given: {"loss": "s_dpo"},
        words="a loss of sets",
        verb="Use",
    ),
)
WITH_REFERENCE = (
    When(
        lambda given: not given.has_preference_stage or given.loss_needs.needs_reference,
        lambda given: f"with loss={given.loss}, which has no reference",
        lambda given: {"loss": "mult_dpo"},
        words="a loss with a reference",
        verb="Use",
    ),
)
DRAWN = (
    When(
        # `auto` draws where one of the settings with this condition asks for it
        lambda given: given.num_negatives != "all" or given.loss_needs.negatives != "many",
        lambda given: "with num_negatives=all, which draws none",
        lambda given: {"num_negatives": 64},
        words="a number of num_negatives",
    ),
)
STATIC = (*DRAWN, _equals("negatives", "static"))
DYNAMIC = (*DRAWN, _equals("negatives", "dynamic"))
BY_POPULARITY = (_equals("negative_distribution", "popularity"),)
POOLED = (_equals("negative_pool", "uniform", "ranker"),)
LEVELS = (
    When(
        lambda given: (
            not given.has_preference_stage or given.loss_needs.uses_levels or given.track_bounds
        ),
        lambda given: f"with loss={given.loss}, to which all positives are one level",
        lambda given: {"loss": "mult2_dpo" if len(given.levels) > 1 else "lipo_bt"},
        words="a loss of levels, or track_bounds=True",
        verb="Use",
    ),
)
DECLARED_LEVELS = (
    When(
        lambda given: given.level_thresholds == "auto" and bool(given.loss_needs.one_level),
        lambda given: (
            f"with loss={given.loss}, which is not made for levels"
            if given.level_thresholds == "auto"
            else "with level_thresholds, which are set"
        ),
        lambda given: {
            "level_thresholds": "auto",
            **({} if given.loss_needs.one_level else {"loss": "mult2_dpo"}),
        },
        words="level_thresholds=auto and a loss made for levels",
        verb="Use",
    ),
)


# ---- the model and its prompts ----

TINY = (_equals("backbone", "tiny", use=True),)
PRETRAINED = (
    When(
        lambda given: given.backbone != "tiny",
        *_always("with the tiny backbone", backbone="smollm2"),
        words="a pretrained backbone",
        verb="Use",
    ),
)
IN_FLOAT32 = (_equals("dtype", "float32", use=True),)
CHAT = (
    When(
        lambda given: given.backbone != "tiny" and given.use_chat_template is not False,
        lambda given: (
            "with the tiny backbone, which has no chat template"
            if given.backbone == "tiny"
            else "with use_chat_template=False"
        ),
        lambda given: {} if given.backbone == "tiny" else {"use_chat_template": True},
        words="a backbone with a chat template",
    ),
)
LORA = (
    When(
        lambda given: not given.trains_all_weights,
        lambda given: (
            f"with finetune={given.finetune}"
            f"{' and the tiny backbone' if given.finetune == 'auto' else ''}, which trains all "
            "weights"
        ),
        lambda given: {"finetune": "lora"},
        words="LoRA",
    ),
)
HISTORIES = (
    When(
        lambda given: given.context != "conversation",
        *_always(
            "with context=conversation, which shows a conversation and takes all its answers as "
            "targets",
            context="history",
        ),
        words="context=history",
        verb="Use",
    ),
)
CONVERSATIONS = (_equals("context", "conversation", use=True),)
LOW_RATINGS = (
    When(
        lambda given: given.RATING_FIELD in (given.val_interval or {}),
        lambda given: (
            f"where val_interval does not limit {given.RATING_FIELD}, so that no rating is low"
        ),
        lambda given: {"val_interval": {given.RATING_FIELD: "[4,inf)"}},
        words="val_interval of ratings",
    ),
)
SHOWN_IN_RANKING = (
    When(
        lambda given: (
            given.rank_history is None or _trains_supervised(given) or _trains_preferences(given)
        ),
        lambda given: f"with rank_history={given.rank_history}, where nothing is trained",
        lambda given: {"rank_history": None},
        words="training, or rank_history=~",
        verb="Use",
    ),
)


# ---- ranking ----


def _sampled(given: Given) -> str:
    return f"with eval_args mode {min(given.modes)}, which ranks a few candidates"


_ALL_ITEMS = When(
    lambda given: "full" in given.modes, _sampled, lambda given: _FULL, words="eval_args mode full"
)
_SEARCH = _equals("ranker", "best_first", use=True)
SEARCHING = (_SEARCH,)
BEAM = (_ALL_ITEMS, _equals("ranker", "beam", use=True))
NOT_BY_GROUNDING = (
    When(
        lambda given: False,
        *_always("with BIGRec, which ranks by distances from what it writes", model="LLMRec"),
        words="LLMRec or D3",
        verb="Use",
    ),
)
ASSISTED = (
    When(
        lambda given: given.assistant is not None,
        *_always("without an assistant", assistant="EASE"),
        words="an assistant",
    ),
)
WEIGHED_BY_ASSISTANT = (_equals("grounding_weight", "assistant"),)
GROUNDED_BY_ASSISTANT = (
    When(
        lambda given: given.assistant is not None,
        *_always("without an assistant", grounding_weight="assistant", assistant="EASE"),
        words="an assistant",
    ),
)
GROUNDED_BY_WEIGHT = (
    When(
        lambda given: given.grounding_weight != "none",
        *_always("with grounding_weight=none", grounding_weight="popularity"),
        words="grounding_weight other than none",
    ),
)


# ---- RecBole's models ----

READ_PRELOADED = ("GRU4RecKG", "KSR")  # besides those of the kind KNOWLEDGE


def _of_kind(holds: Callable[[Any], bool], words: str) -> tuple[When, ...]:
    """Condition that the model is of a kind; the only remedy is another model."""
    return (When(holds, lambda given: f"with model={given.model}", lambda given: {}, words),)


def _for_some(given: Given) -> bool:
    return given.model_type == "KNOWLEDGE" or given.model in READ_PRELOADED


OPTIMISED = _of_kind(
    lambda given: given.model_type not in ("TRADITIONAL", "DECISIONTREE"),
    "a model trained by gradients",
)
# a model fitted at once is validated once, unless one of the numbers is 0
IN_EPOCHS = _of_kind(
    lambda given: given.model_type != "TRADITIONAL" or given.epochs == 0,
    "a model trained in epochs",
)
EVALUATED = _of_kind(
    lambda given: given.model_type != "TRADITIONAL" or given.eval_step == 0,
    "a model trained in epochs",
)
STOPPED_EARLY = _of_kind(
    lambda given: given.model_type != "TRADITIONAL", "a model trained in epochs"
)
WITH_DRAWN_NEGATIVES = _of_kind(
    lambda given: given.model_type != "TRADITIONAL" or given.model == "Pop",  # counts them
    "a model trained on pairs",
)
IN_BATCHES = _of_kind(
    lambda given: (
        given.model_type not in ("TRADITIONAL", "DECISIONTREE")
        or given.model == "Pop"  # counts batch by batch
    ),
    "a model trained in batches",
)
KNOWLEDGE = _of_kind(_for_some, "a model of knowledge graphs")
SEQUENCES = _of_kind(lambda given: given.model_type == "SEQUENTIAL", "a sequential model")
FEATURES = _of_kind(
    lambda given: given.model_type not in ("LLM", "GENERAL", "TRADITIONAL"), "a model of features"
)
CLASSICAL = _of_kind(lambda given: not given.is_language_model, "a model of RecBole")
NO_MODEL = _of_kind(lambda given: False, "no model")
DERIVED = (
    When(
        lambda given: False,
        *_always("as it follows from valid_metric"),
        words="never",
    ),
)
ROLLING = (
    When(
        lambda given: (
            given.model_type != "SEQUENTIAL"
            or not given.repeatable
            or given.test_information == "rolling"
        ),
        *_always(
            "with a sequential model, which ranks items that a user knows in RecBole's rolling "
            "test only",
            test_information="rolling",
        ),
        words="test_information=rolling, for sequential models",
        verb="Use",
    ),
)
LOGGED_TO_WANDB = (
    When(
        lambda given: bool(given.log_wandb),
        *_always("without log_wandb", log_wandb=True),
        words="log_wandb=True",
    ),
)
