"""LLMRec's settings, typed: one field per key of `properties/model/LLMRec.yaml` that is ours.

A field has its type, range and effects (`acts.py`). Its meaning, unit and default are only in that
file. Settings that LLMRec shares with RecBole's models (`epochs`, `learning_rate`, `topk`, ...) are
in `recbole.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticKnownError

from recbole_multdpo.losses import LOSSES, Loss
from recbole_multdpo.settings.acts import Acts, Part
from recbole_multdpo.settings.conditions import (
    ASSISTED,
    BEAM,
    BETWEEN_EPOCHS,
    BY_POPULARITY,
    CHAT,
    DECLARED_LEVELS,
    DRAWN,
    DYNAMIC,
    GROUNDED_BY_ASSISTANT,
    GROUNDED_BY_WEIGHT,
    HISTORIES,
    IN_FLOAT32,
    LEVELS,
    LORA,
    LOW_RATINGS,
    MANY_NEGATIVES,
    NO_TEMPLATE,
    NOT_BY_GROUNDING,
    POOLED,
    PREFERENCE,
    PRETRAINED,
    SEARCHING,
    SHOWN_IN_RANKING,
    STATIC,
    SUPERVISED,
    TAUGHT,
    TINY,
    TRAINED_LOSS,
    TRAINING,
    VALIDATING,
    VALIDATING_OR_TUNING,
    WARMED_UP,
    WEIGHED_BY_ASSISTANT,
    WITH_REFERENCE,
    ZERO_SHOT,
)
from recbole_multdpo.settings.value_types import (
    Count,
    CountOrZero,
    Gamma,
    Numbers,
    Positive,
    Proportion,
    Share,
    Text,
    Texts,
    Weight,
    Weights,
)

# RecBole's metrics of the recommended lists themselves, rather than of the hits in them
LIST_METRICS = frozenset(
    {"itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage"}
)


WITHOUT_PREFERENCES = (ZERO_SHOT, "sft")  # values of loss that train no preferences
FEW_NEGATIVES = 64  # of `num_negatives: auto` where they are not all
BOTH_STAGES: tuple[Part, Part] = ("sft", "preference")


def _known_loss(name: str) -> str:
    if name not in (ZERO_SHOT, *LOSSES):
        names = ", ".join(f"'{name}'" for name in (ZERO_SHOT, *LOSSES))
        raise PydanticKnownError("literal_error", {"expected": names})
    return name


# checked against the table of losses, so that a new loss needs no change here
LossName = Annotated[str, AfterValidator(_known_loss)]


class LLMRecSettings(BaseModel):
    """LLMRec's own settings; immutable, and other keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # the language model
    backbone: Annotated[Text, Acts("backbone", data_folder=False, on_card=True)]
    # a run has a type and never `auto`, see `Config`
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Acts("model", on_card=True)]
    tf32: Annotated[bool, Acts("model", IN_FLOAT32)]
    # eager attention, the padded scorer and the exhaustive ranker serve to check the others, so a
    # run with one of them counts as another run although its results are equal up to rounding
    attn_implementation: Annotated[Literal["sdpa", "eager"], Acts("model")]
    # Liger's sums are in another order, which changes results as TF32 does, if less
    use_liger_kernel: Annotated[bool, Acts("model", PRETRAINED)]
    gradient_checkpointing: Annotated[Literal["auto"] | bool, Acts(BOTH_STAGES, TRAINING, "speed")]
    trust_remote_code: Annotated[
        bool,
        Acts(
            "backbone", changes="machine", asked="lets a model's folder run code", data_folder=False
        ),
    ]
    finetune: Annotated[Literal["auto", "full", "lora"], Acts(BOTH_STAGES, TRAINING, on_card=True)]
    lora_r: Annotated[Count, Acts(BOTH_STAGES, TRAINING + LORA)]
    lora_alpha: Annotated[Positive, Acts(BOTH_STAGES, TRAINING + LORA)]
    lora_dropout: Annotated[Share, Acts(BOTH_STAGES, TRAINING + LORA)]
    lora_target_modules: Annotated[Text | Texts, Acts(BOTH_STAGES, TRAINING + LORA)]
    tiny_hidden_size: Annotated[Count, Acts("model", TINY)]
    tiny_num_layers: Annotated[Count, Acts("model", TINY)]
    tiny_num_heads: Annotated[Count, Acts("model", TINY)]
    # 256 bytes and 2 special tokens
    tiny_vocab_size: Annotated[int, Field(ge=258), Acts("model", TINY)]
    tiny_title_tokens: Annotated[bool, Acts("model", TINY)]

    # texts and prompts
    item_text_fields: Annotated[Texts, Acts(("data", "model"), NO_TEMPLATE)]
    item_text_template: Annotated[Text | None, Acts(("data", "model"))]
    item_year_field: Annotated[Text | None, Acts(("data", "model"))]
    max_item_tokens: Annotated[CountOrZero, Acts("model")]
    prompt_template: Annotated[Text, Acts("prompt", on_card=True)]
    history_format: Annotated[
        Literal["auto", "list", "titles"], Acts("prompt", HISTORIES, on_card=True)
    ]
    use_chat_template: Annotated[Literal["auto"] | bool, Acts("prompt")]
    chat_template_kwargs: Annotated[dict[str, Any], Acts("prompt", CHAT)]
    max_history: Annotated[
        Count, Acts(("sft", "preference", "ranking"), HISTORIES + SHOWN_IN_RANKING)
    ]
    rank_history: Annotated[Count | None, Acts(("validation", "ranking"), HISTORIES)]
    disliked_in_prompt: Annotated[
        CountOrZero, Acts(("sft", "preference", "ranking"), HISTORIES + LOW_RATINGS)
    ]
    max_prompt_tokens: Annotated[Count, Acts(("sft", "preference", "ranking"))]
    target_share: Annotated[float, Field(gt=0, lt=1), Acts(BOTH_STAGES, TRAINING + HISTORIES)]
    max_targets: Annotated[Count, Acts(BOTH_STAGES, TRAINING, on_card=True)]
    history_split: Annotated[
        Literal["random", "temporal"], Acts(("sft", "preference", "ranking"), HISTORIES)
    ]
    normalize_over: Annotated[
        Literal["catalogue", "vocabulary"],
        Acts(("sft", "preference", "ranking"), on_card=True),
    ]

    # preference training
    loss: Annotated[LossName, Acts("preference", on_card=True)]
    beta: Annotated[Positive, Acts("preference", PREFERENCE, on_card=True)]
    reference: Annotated[Literal["sft", "none"], Acts("preference", PREFERENCE + WITH_REFERENCE)]
    loss_average: Annotated[
        Literal["context", "positive"], Acts("preference", PREFERENCE, instead="sft_loss_average")
    ]
    num_negatives: Annotated[
        Literal["auto", "all"] | Count,
        Acts("preference", PREFERENCE + MANY_NEGATIVES, on_card=True),
    ]
    negatives: Annotated[
        Literal["static", "dynamic"], Acts("preference", PREFERENCE + DRAWN, on_card=True)
    ]
    negative_temperature: Annotated[Positive, Acts("preference", PREFERENCE + DYNAMIC)]
    dynamic_weights: Annotated[Literal["ratio", "policy"], Acts("preference", PREFERENCE + DYNAMIC)]
    negative_pool: Annotated[
        Literal["catalogue", "uniform", "ranker"], Acts("preference", PREFERENCE + DYNAMIC)
    ]
    negative_pool_size: Annotated[Count, Acts("preference", PREFERENCE + DYNAMIC + POOLED)]
    negative_distribution: Annotated[
        Literal["uniform", "popularity"], Acts("preference", PREFERENCE + STATIC)
    ]
    popularity_alpha: Annotated[
        float, Field(ge=0), Acts("preference", PREFERENCE + STATIC + BY_POPULARITY)
    ]
    level_thresholds: Annotated[Literal["auto"] | Numbers, Acts("preference", PREFERENCE + LEVELS)]
    rating_levels: Annotated[
        Numbers,
        Acts("preference", PREFERENCE + DECLARED_LEVELS, instead="level_thresholds"),
    ]
    low_ratings: Annotated[
        Literal["ignore", "below_unrated", "above_unrated"], Acts("preference", PREFERENCE)
    ]
    reference_cache: Annotated[bool, Acts("preference", PREFERENCE, "speed")]
    track_bounds: Annotated[bool, Acts("preference", PREFERENCE, "log", fixed_before=True)]

    # options of single losses: they act with the losses that have them
    dpo_label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    ipo_length_average: bool
    simpo_gamma: Annotated[float, Field(ge=0)]
    kto_desirable_weight: Annotated[float, Field(ge=0)]
    kto_undesirable_weight: Annotated[float, Field(ge=0)]
    lipo_pairs: Literal["sum", "mean"]
    list_order: Literal["policy", "sampled"]
    pro_sft_weight: Annotated[float, Field(ge=0)]
    kpo_k: CountOrZero
    pl_nodes: Annotated[int, Field(ge=8)]

    # supervised fine-tuning
    sft_epochs: Annotated[Literal["auto"] | CountOrZero, Acts("sft", TRAINED_LOSS, on_card=True)]
    sft_learning_rate: Annotated[Positive, Acts("sft", SUPERVISED, on_card=True)]
    sft_batch_size: Annotated[Count, Acts("sft", SUPERVISED)]
    sft_max_steps: Annotated[CountOrZero | None, Acts("sft", SUPERVISED)]
    sft_eval_step: Annotated[CountOrZero, Acts("sft", SUPERVISED)]
    sft_targets: Annotated[Literal["all", "held_out"], Acts("sft", SUPERVISED)]
    sft_loss_average: Annotated[Literal["context", "positive"], Acts("sft", SUPERVISED)]
    sft_on_prompt: Annotated[bool, Acts("sft", SUPERVISED)]
    sft_teacher: Annotated[Text | None, Acts("sft", SUPERVISED, data_folder=False, on_card=True)]
    sft_teacher_weight: Annotated[Proportion, Acts("sft", TAUGHT, on_card=True)]
    sft_teacher_sharpness: Annotated[Positive, Acts("sft", TAUGHT)]
    sft_teacher_popularity: Annotated[float, Field(ge=-2, le=2), Acts("sft", TAUGHT)]
    sft_teacher_items: Annotated[Count, Acts("sft", TAUGHT)]
    sft_teacher_settings: Annotated[dict[str, Any], Acts("sft", TAUGHT, data_folder=False)]
    sft_cache: Annotated[bool, Acts("sft", changes="speed")]
    sft_cache_dir: Annotated[Text | None, Acts("sft", changes="machine", data_folder=False)]

    # optimisation
    max_steps: Annotated[CountOrZero, Acts(BOTH_STAGES, TRAINING)]
    train_users: Annotated[CountOrZero, Acts(BOTH_STAGES, TRAINING)]
    gradient_accumulation_steps: Annotated[Count, Acts(BOTH_STAGES, TRAINING, "speed")]
    max_tokens_per_batch: Annotated[
        Literal["auto"] | CountOrZero, Acts(BOTH_STAGES, TRAINING, "speed")
    ]
    auto_batch: Annotated[bool, Acts(BOTH_STAGES, TRAINING, "speed")]
    save_steps: Annotated[CountOrZero, Acts(BOTH_STAGES, TRAINING, "log")]
    save_total_limit: Annotated[Count, Acts(BOTH_STAGES, TRAINING, "log")]
    # transformers' schedules that need no further argument
    lr_scheduler_type: Annotated[
        Literal[
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "constant",
            "constant_with_warmup",
            "inverse_sqrt",
        ],
        Acts(BOTH_STAGES, TRAINING),
    ]
    warmup_ratio: Annotated[Share, Acts(BOTH_STAGES, TRAINING + WARMED_UP)]
    eval_on_start: Annotated[bool, Acts("preference", PREFERENCE + BETWEEN_EPOCHS)]
    test_sft: Annotated[Literal["auto"] | bool, Acts("test", PREFERENCE, "log")]
    deepspeed: Annotated[
        Text | dict[str, Any] | None, Acts(BOTH_STAGES, TRAINING, "speed", data_folder=False)
    ]

    # scoring and ranking
    scorer: Annotated[Literal["packed", "padded"], Acts(("sft", "preference", "ranking"))]
    ranker: Annotated[Literal["best_first", "exhaustive"], Acts(("validation", "ranking"))]
    expand_per_step: Annotated[Count, Acts(("validation", "ranking"), SEARCHING, "speed")]
    stop_at_metrics: Annotated[
        bool, Acts(("validation", "ranking"), SEARCHING, "speed", fixed_before=True)
    ]
    rank_batch_users: Annotated[
        Count,
        Acts(("preference", "validation", "test"), changes="speed", instead="eval_batch_size"),
    ]
    score_batch_tokens: Annotated[Count, Acts(("validation", "ranking"), changes="speed")]
    assistant: Annotated[Text | None, Acts("ranking", data_folder=False)]
    assistant_weight: Annotated[Weight | Weights, Acts("ranking", ASSISTED)]
    assistant_settings: Annotated[dict[str, Any], Acts("ranking", ASSISTED, data_folder=False)]
    valid_users: Annotated[CountOrZero, Acts("validation", VALIDATING, limit=True)]

    @property
    def assistant_weights(self) -> tuple[float, ...]:
        """Values of `assistant_weight` to try; none without an assistant."""
        if self.assistant is None:
            return ()
        given = self.assistant_weight
        return given if isinstance(given, tuple) else (given,)

    @property
    def loss_needs(self) -> Loss:
        """The loss's entry in `LOSSES`; that of sft if nothing is trained."""
        return LOSSES["sft" if self.loss == ZERO_SHOT else self.loss]

    @property
    def has_preference_stage(self) -> bool:
        """True if `loss` is trained after the supervised stage."""
        return self.loss not in WITHOUT_PREFERENCES

    @property
    def set_of_negatives(self) -> int | Literal["all"]:
        """Negatives of an example of a loss of sets; resolves `auto`."""
        if self.num_negatives != "auto":
            return self.num_negatives
        titles_are_tokens = self.backbone == "tiny" and self.tiny_title_tokens
        is_free = titles_are_tokens and self.normalize_over == "catalogue"
        is_uniform = self.negatives == "static" and self.negative_distribution == "uniform"
        # of unrated items above low-rated ones all would count, thousands against a few
        is_one_level = self.low_ratings == "ignore"
        return "all" if is_free and is_uniform and is_one_level else FEW_NEGATIVES

    @property
    def takes_all_negatives(self) -> bool:
        """True if the loss is trained against the whole catalogue, of which nothing is drawn."""
        return self.set_of_negatives == "all" and self.loss_needs.negatives == "many"

    @property
    def draws_by_policy(self) -> bool:
        """True if the policy draws the negatives."""
        return self.negatives == "dynamic" and not self.takes_all_negatives

    @property
    def trains_all_weights(self) -> bool:
        """True if the whole model is trained, not LoRA matrices; resolves `auto`."""
        return self.finetune == "full" or (self.finetune == "auto" and self.backbone == "tiny")

    @property
    def shows_titles_alone(self) -> bool:
        """True if a history is titles and nothing else; resolves `auto`."""
        if self.history_format == "auto":
            return self.backbone == "tiny" and self.tiny_title_tokens
        return self.history_format == "titles"

    @property
    def search(self) -> str | None:
        """The search that ranks by log-probabilities; None for another ranking."""
        return self.ranker

    @property
    def ranks_by_validation(self) -> bool:
        """True if the ranking needs the validation part for a choice."""
        return self.assistant is not None

    @property
    def teacher(self) -> str | None:
        """The model whose scores supervised fine-tuning distils; None where it has none."""
        trains = self.loss != ZERO_SHOT and self.sft_epochs != 0
        return self.sft_teacher if trains else None

    @property
    def max_sft_steps(self) -> int:
        """Optimizer steps of the supervised stage, 0 for those of its epochs."""
        return self.max_steps if self.sft_max_steps is None else self.sft_max_steps

    @property
    def ranking_history(self) -> int:
        """Maximum number of items in a prompt when ranking; by default as in training."""
        return self.max_history if self.rank_history is None else self.rank_history

    @property
    def levels(self) -> tuple[float, ...]:
        """Lowest rating of each level; `auto`: the data set's if the loss has several levels."""
        if self.level_thresholds != "auto":
            return self.level_thresholds
        return self.rating_levels if self.loss_needs.one_level else ()

    @property
    def uses_reference(self) -> bool:
        """True if the preference loss uses log-ratios against a reference."""
        return self.reference == "sft" and self.loss_needs.needs_reference


class BIGRecSettings(LLMRecSettings):
    """BIGRec's settings: LLMRec's, some of them with a fixed value, and those of grounding."""

    loss: Annotated[Literal["sft", "zero_shot"], Acts("preference")]
    # freely generated text must learn to end
    normalize_over: Annotated[Literal["vocabulary"], Acts(("sft", "ranking"))]
    generation_beams: Annotated[Count, Acts(("validation", "ranking"))]
    generation_tokens: Annotated[Count, Acts(("validation", "ranking"))]
    grounding_model: Annotated[Literal["auto", "base", "tuned"], Acts(("validation", "ranking"))]
    grounding_layer: Annotated[int, Acts(("validation", "ranking"))]
    grounding_weight: Annotated[
        Literal["none", "popularity", "assistant"], Acts(("validation", "ranking"))
    ]
    grounding_gamma: Annotated[
        Literal["auto"] | Gamma, Acts(("validation", "ranking"), GROUNDED_BY_WEIGHT)
    ]
    # settings of LLMRec's ranking, without effect on grounding
    ranker: Annotated[Literal["best_first", "exhaustive"], Acts("ranking", NOT_BY_GROUNDING)]
    expand_per_step: Annotated[Count, Acts("ranking", NOT_BY_GROUNDING, "speed")]
    stop_at_metrics: Annotated[bool, Acts("ranking", NOT_BY_GROUNDING, "speed", fixed_before=True)]
    assistant_weight: Annotated[
        Weight | Weights, Acts("ranking", NOT_BY_GROUNDING, instead="grounding_gamma")
    ]
    assistant: Annotated[Text | None, Acts("ranking", WEIGHED_BY_ASSISTANT, data_folder=False)]
    assistant_settings: Annotated[
        dict[str, Any], Acts("ranking", GROUNDED_BY_ASSISTANT, data_folder=False)
    ]
    valid_users: Annotated[CountOrZero, Acts("validation", VALIDATING_OR_TUNING, limit=True)]

    @property
    def has_preference_stage(self) -> bool:
        """False: the model is trained by supervised fine-tuning alone."""
        return False

    @property
    def assistant_weights(self) -> tuple[float, ...]:
        """No values: the scores weight the distances, by the exponent `grounding_gamma`."""
        return ()

    @property
    def search(self) -> None:
        """None: items are compared with texts that transformers generates."""
        return None

    @property
    def ranks_by_validation(self) -> bool:
        """True if there is an assistant, or the strength of the popularity is chosen."""
        chooses = self.grounding_weight == "popularity" and self.grounding_gamma == "auto"
        return chooses or super().ranks_by_validation

    @property
    def grounds_by_base(self) -> bool:
        """True if hidden states come from the model before fine-tuning; resolves `auto`."""
        if self.grounding_model == "auto":
            return self.backbone != "tiny"
        return self.grounding_model == "base"


class D3Settings(LLMRecSettings):
    """Settings of D3: LLMRec's, with its own ranking."""

    loss: Annotated[Literal["sft"], Acts("preference")]
    ranker: Annotated[  # type: ignore[assignment]
        Literal["beam", "best_first", "exhaustive"], Acts(("validation", "ranking"))
    ]
    beam_size: Annotated[Count, Acts(("validation", "ranking"), BEAM)]
    assistant_temperature: Annotated[Positive, Acts("ranking", ASSISTED)]
    assistant_weight: Annotated[
        Share | Annotated[tuple[Share, ...], Field(strict=False, min_length=1)],
        Acts("ranking", ASSISTED),
    ]

    @property
    def has_preference_stage(self) -> bool:
        """False: the model is trained by supervised fine-tuning alone."""
        return False
