"""LLMRec's settings, typed: one field per key of `properties/model/LLMRec.yaml` that is ours.

The defaults, with their units and reasons, are in that file and nowhere else. Settings that LLMRec
shares with RecBole's models (`epochs`, `learning_rate`, `topk`, ...) are in `recbole_settings.py`.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from recbole_multdpo.losses import LOSSES, Loss

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
# 2^-gamma, the least factor of a distance, must stay within float32
Gamma = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]
# A settings file holds lists; the frozen model holds tuples.
Texts = Annotated[
    tuple[Text, ...],
    Field(strict=False),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
# RecBole's metrics of the recommended lists themselves, rather than of the hits in them
LIST_METRICS = frozenset(
    {"itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage"}
)
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Weight = Annotated[float, Field(ge=0)]
Weights = Annotated[tuple[Weight, ...], Field(strict=False, min_length=1)]


ZERO_SHOT = "zero_shot"  # in place of a loss: the backbone is ranked with as it is
WITHOUT_PREFERENCES = (ZERO_SHOT, "sft")  # values of loss that train no preferences
# settings of one stage alone
PREFERENCE_KEYS = frozenset(
    "beta reference loss_average num_negatives negatives low_ratings"
    " epochs learning_rate train_batch_size".split()
)
SFT_KEYS = frozenset("sft_epochs sft_learning_rate sft_batch_size".split())


def _known_loss(name: str) -> str:
    if name not in (ZERO_SHOT, *LOSSES):
        raise ValueError("neither zero_shot nor an entry of LOSSES")
    return name


# The table itself rather than a list of its names, so that a loss added to it needs nothing else.
LossName = Annotated[
    str,
    AfterValidator(_known_loss),
    Field(json_schema_extra=lambda schema: schema.update(enum=[ZERO_SHOT, *LOSSES])),
]


class LLMRecSettings(BaseModel):
    """The settings that only LLMRec has; immutable, and without a key that is not listed here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # the language model
    backbone: Text = Field(description="tiny, a Hugging Face model folder, or a hub id")
    dtype: Literal["float32", "bfloat16"] = Field(description="type of the weights")
    attn_implementation: Literal["sdpa", "eager"] = Field(description="attention code used")
    gradient_checkpointing: bool = Field(description="recompute activations to save memory")
    trust_remote_code: bool = Field(description="run Python code that comes with a hub model")
    finetune: Literal["auto", "full", "lora"] = Field(description="which weights are trained")
    lora_r: Count = Field(description="rank of the LoRA matrices")
    lora_alpha: Positive = Field(description="LoRA scale; updates are multiplied by alpha/r")
    lora_dropout: Share = Field(description="dropout before the LoRA matrices, a probability")
    lora_target_modules: Text | Texts = Field(description="modules that get LoRA matrices")
    tiny_hidden_size: Count = Field(description="width of the tiny backbone")
    tiny_num_layers: Count = Field(description="transformer blocks of the tiny backbone")
    tiny_num_heads: Count = Field(description="attention heads of the tiny backbone")
    tiny_vocab_size: Annotated[int, Field(ge=257)] = Field(description="its tokenizer's tokens")
    tiny_title_tokens: bool = Field(description="every item text is one token of the tiny backbone")

    # texts and prompts
    item_text_fields: Texts = Field(description="columns of the .item file that make the text")
    item_year_field: Text | None = Field(description="column added where texts would collide")
    max_item_tokens: CountOrZero = Field(description="tokens per item text, 0 for no limit")
    prompt_template: Text = Field(description="name of the prompt's wording")
    use_chat_template: Literal["auto"] | bool = Field(description="wrap the prompt as a chat")
    chat_template_kwargs: dict[str, Any] = Field(description="variables of the chat template")
    max_history: Count = Field(description="items listed in a training prompt, at most")
    rank_history: Count | None = Field(description="items listed in a prompt when ranking")
    max_prompt_tokens: Count = Field(description="tokens of a prompt, at most")
    target_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="share of a user's training items held out as targets"
    )
    max_targets: Count = Field(description="targets per context, at most")
    history_split: Literal["random", "temporal"] = Field(description="how targets are chosen")

    normalize_over: Literal["catalogue", "vocabulary"] = Field(
        description="texts that an item's probability is a share of"
    )

    # preference training
    loss: LossName = Field(description="preference loss, or where training ends before it")
    beta: Positive = Field(description="strength of the pull towards the reference model")
    reference: Literal["sft", "none"] = Field(
        description="what the log-ratios of the preference losses are taken against"
    )
    loss_average: Literal["context", "positive"] = Field(
        description="what the losses of a batch are averaged over"
    )
    num_negatives: Count = Field(description="negatives per context")
    negatives: Literal["static", "dynamic"] = Field(
        description="whether the policy takes part in the draw of negatives"
    )
    negative_temperature: Positive = Field(description="temperature of the dynamic draw")
    dynamic_weights: Literal["ratio", "policy"] = Field(
        description="weights of the items in the dynamic draw"
    )
    negative_pool: Literal["catalogue", "uniform", "ranker"] = Field(
        description="items from which dynamic negatives are drawn"
    )
    negative_pool_size: Count = Field(description="items of the pool per context")
    negative_distribution: Literal["uniform", "popularity"] = Field(
        description="how negatives are drawn"
    )
    popularity_alpha: Annotated[float, Field(ge=0)] = Field(
        description="exponent of an item's popularity in the draw"
    )
    level_thresholds: Literal["auto"] | Numbers = Field(
        description="ratings that start a level, descending"
    )
    rating_levels: Numbers = Field(description="the data set's own levels, for auto")
    low_ratings: Literal["ignore", "below_unrated", "above_unrated"] = Field(
        description="what becomes of ratings below val_interval"
    )
    reference_cache: bool = Field(description="keep reference log-probabilities for later runs")
    track_bounds: bool = Field(description="log exact and surrogate losses with their bounds")

    # options of single losses
    ipo_length_average: bool = Field(description="IPO's log-ratios are means over tokens")
    simpo_gamma: Annotated[float, Field(ge=0)] = Field(description="margin of the rewards in SimPO")
    kto_desirable_weight: Annotated[float, Field(ge=0)] = Field(
        description="weight of a context's positives in KTO"
    )
    kto_undesirable_weight: Annotated[float, Field(ge=0)] = Field(
        description="weight of a context's negatives in KTO"
    )
    lipo_pairs: Literal["sum", "mean"] = Field(description="how LiPO adds up its pairs")
    list_order: Literal["policy", "sampled"] = Field(
        description="order of equal positives in PRO and KPO"
    )
    pro_sft_weight: Annotated[float, Field(ge=0)] = Field(
        description="weight of PRO's supervised term"
    )
    kpo_k: CountOrZero = Field(description="ranked places in KPO, 0 for all positives")
    pl_nodes: Annotated[int, Field(ge=8)] = Field(
        description="nodes of the exact Plackett-Luce integral"
    )

    # supervised fine-tuning
    sft_epochs: CountOrZero = Field(description="passes over the users before preferences")
    sft_learning_rate: Positive = Field(description="peak step size of that stage")
    sft_batch_size: Count = Field(description="contexts per optimizer step of that stage")
    sft_eval_step: CountOrZero = Field(description="SFT epochs between validations, 0 for none")
    sft_targets: Literal["all", "held_out"] = Field(description="items that stage trains on")
    sft_loss_average: Literal["context", "positive"] = Field(
        description="what the losses of its batches are averaged over"
    )
    sft_on_prompt: bool = Field(description="also train on the titles in the prompt")
    sft_cache: bool = Field(description="reuse a finished first stage with equal settings")
    sft_cache_dir: Text | None = Field(description="folder of that cache")

    # optimisation
    gradient_accumulation_steps: Count = Field(description="parts of a batch, at least")
    max_tokens_per_batch: CountOrZero = Field(description="tokens of a part, 0 for no limit")
    auto_batch: bool = Field(description="smaller parts after one that ran out of memory")
    save_steps: CountOrZero = Field(description="steps between checkpoints, 0 for none")
    save_total_limit: Count = Field(description="checkpoints of a stage that are kept")
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = Field(description="transformers' schedules that need no further argument")
    warmup_ratio: Share = Field(description="share of the steps with a rising step size")

    deepspeed: Text | dict[str, Any] | None = Field(
        description="DeepSpeed's configuration: a name, a file or a mapping"
    )

    # scoring and ranking
    scorer: Literal["packed", "padded"] = Field(description="how candidates are scored")
    ranker: Literal["best_first", "exhaustive"] = Field(description="how the catalogue is ranked")
    expand_per_step: Count = Field(description="trie nodes that best-first expands per forward")
    stop_at_metrics: bool = Field(description="rank a user no further than the metrics need")
    rank_batch_users: Count = Field(description="users ranked together")
    score_batch_tokens: Count = Field(description="tokens per forward when scoring")
    assistant: Text | None = Field(description="RecBole model whose scores join in the ranking")
    assistant_weight: Weight | Weights = Field(
        description="factor of its scores, or factors of which validation chooses"
    )
    assistant_settings: dict[str, Any] = Field(description="the assistant's own settings")
    valid_users: CountOrZero = Field(description="users of a validation in training, 0 for all")

    @property
    def assistant_weights(self) -> tuple[float, ...]:
        """The values of `assistant_weight` to be tried; none without an assistant."""
        if self.assistant is None:
            return ()
        given = self.assistant_weight
        return given if isinstance(given, tuple) else (given,)

    @property
    def loss_needs(self) -> Loss:
        """The loss's entry in `LOSSES`; without training there is as little to need as for sft."""
        return LOSSES["sft" if self.loss == ZERO_SHOT else self.loss]

    @property
    def has_preference_stage(self) -> bool:
        """Whether `loss` is trained after the supervised stage."""
        return self.loss not in WITHOUT_PREFERENCES

    @property
    def trains_all_weights(self) -> bool:
        """Whether the whole model is trained rather than LoRA matrices; `auto` is resolved here."""
        return self.finetune == "full" or (self.finetune == "auto" and self.backbone == "tiny")

    @property
    def ranks_by_validation(self) -> bool:
        """Whether the ranking has something that only the validation part can decide."""
        return self.assistant is not None

    @property
    def ranking_history(self) -> int:
        """Items that a prompt shows when ranking, at most: as in training unless asked for."""
        return self.max_history if self.rank_history is None else self.rank_history

    @property
    def levels(self) -> tuple[float, ...]:
        """Ratings that start a level; `auto` is resolved here: a multi-level loss's are those of
        the data set, and any other loss has none."""
        if self.level_thresholds != "auto":
            return self.level_thresholds
        return self.rating_levels if self.loss_needs.one_level else ()

    @property
    def uses_reference(self) -> bool:
        """Whether the preference loss takes log-ratios against a reference."""
        return self.reference == "sft" and self.loss_needs.needs_reference


class BIGRecSettings(LLMRecSettings):
    """LLMRec's settings, of which some have one value only, and those of grounding."""

    loss: Literal["sft", "zero_shot"] = Field(description="there is no preference stage")
    normalize_over: Literal["vocabulary"] = Field(
        description="a text that is written freely must learn to end"
    )
    generation_beams: Count = Field(description="width of the beam search")
    generation_tokens: Count = Field(description="tokens of a generated text, at most")
    grounding_model: Literal["auto", "base", "tuned"] = Field(
        description="model whose hidden states are compared"
    )
    grounding_layer: int = Field(description="layer of those hidden states")
    grounding_weight: Literal["none", "popularity", "assistant"] = Field(
        description="what weighs the distances"
    )
    grounding_gamma: Literal["auto"] | Gamma = Field(description="strength of that weight")

    @property
    def assistant_weights(self) -> tuple[float, ...]:
        """No values: the scores weigh the distances, and `grounding_gamma` says how strongly."""
        return ()

    @property
    def ranks_by_validation(self) -> bool:
        """Whether the strength of the popularity is chosen."""
        return self.grounding_weight == "popularity" and self.grounding_gamma == "auto"

    @property
    def grounds_by_base(self) -> bool:
        """Whether hidden states are those before fine-tuning; `auto` is resolved here."""
        if self.grounding_model == "auto":
            return self.backbone != "tiny"
        return self.grounding_model == "base"


class D3Settings(LLMRecSettings):
    """Settings of D3: LLMRec's, with its own ranking."""

    loss: Literal["sft"] = Field(description="the loss that it is trained with")
    ranker: Literal["beam", "best_first", "exhaustive"] = Field(  # type: ignore[assignment]
        description="beam search, or all items exactly by its score"
    )
    beam_size: Count = Field(description="prefixes per step of the beam search")
    assistant_temperature: Positive = Field(
        description="the softmax is of the assistant's scores divided by it"
    )
    assistant_weight: Share | Annotated[tuple[Share, ...], Field(strict=False, min_length=1)] = (
        Field(description="the assistant's share, or shares of which validation chooses")
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


def type_problems(
    adapter: TypeAdapter[Any], values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    """What is wrong with the values when compared with a type.

    Args:
        adapter: of a pydantic model or TypedDict, one field per setting.
        values: the settings; keys are those of the type.
        origins: where a setting was set, for the message; may lack keys.

    Returns:
        One sentence per problem: the setting, where it was set, what is allowed, what was given.
    """
    try:
        adapter.validate_python(dict(values))
    except ValidationError as error:
        schema = adapter.json_schema()
        problems: dict[str, None] = {}  # a dict keeps the order and drops repeated messages
        for detail in error.errors():
            key = str(detail["loc"][0])
            origin = f" ({origins[key]})" if key in origins else ""
            problems[f"{key}{origin}: {_problem(detail, values, schema)}"] = None
        return list(problems)
    return []


def listed(problems: Iterable[str]) -> str:
    """One problem as it is; several as a list under a heading."""
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} settings are wrong:\n" + "\n".join(f"- {text}" for text in problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean a or b?` for a mistyped name, empty text where nothing is similar."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = get_close_matches(name.lower().replace("-", "_"), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""


def _problem(detail: Any, value: Any, schema: dict[str, Any]) -> str:
    """What is wrong at the innermost named place that the error's path leads to."""
    root, path = schema, []
    for name in detail["loc"]:
        branch = _object_branch(schema, root)
        if not isinstance(value, Mapping) or name not in branch.get("properties", {}):
            break
        path.append(str(name))
        if name not in value:  # a required key is missing
            return f"needs the key {name!r}, {describe(branch['properties'][name], root)}"
        schema, value = branch["properties"][name], value[name]
    if detail["type"] == "extra_forbidden":
        unknown = str(detail["loc"][-1])
        keys = _object_branch(schema, root).get("properties", {})
        return (
            f"has no key {unknown!r}{nearest(unknown, keys) or '; its keys are ' + ', '.join(keys)}"
        )
    where = f"{'.'.join(path[1:])} " if len(path) > 1 else ""
    hint = nearest(value, schema.get("enum", [])) if isinstance(value, str) else ""
    return f"{where}must be {describe(schema, root)}, got {value!r}{hint}"


def _object_branch(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The mapping among a schema's alternatives, references followed; else the schema itself."""
    if "$ref" in schema:
        return _object_branch(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for branch in schema.get("anyOf", []):
        found = _object_branch(branch, root)
        if "properties" in found:
            return found
    return schema


def describe(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """A JSON schema in words: `an integer of at least 0`, `one of sft, dpo`, `a list of text`."""
    if "$ref" in schema:
        schema = _object_branch(schema, root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe(branch, root) for branch in schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return f"{'an integer' if kind == 'integer' else 'a number'}{_range(schema)}"
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        size = f" of {least} entries" if least == most else " that is not empty" if least else ""
        return f"a list{size}, each {describe(schema['items'], root)}"
    if kind == "object" and "properties" in schema:
        return f"a mapping with the keys {', '.join(schema['properties'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"a mapping from a name to {describe(schema['additionalProperties'], root)}"
    if kind == "string" and "examples" in schema:
        return "text such as " + " or ".join(map(str, schema["examples"]))
    names = {"boolean": "True or False", "string": "text", "object": "a mapping", "null": "~"}
    return names.get(str(kind), "a value")


def _range(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "greater than",
        "maximum": "of at most",
        "exclusiveMaximum": "less than",
    }
    bounds = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""
