"""LLMRec's settings, typed: one field per key of `properties/model/LLMRec.yaml` that is ours.

The defaults, with their units and reasons, are in that file and nowhere else. Settings that LLMRec
shares with RecBole's models (`epochs`, `learning_rate`, `topk`, ...) are in `recbole_settings.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticKnownError

from recbole_multdpo.losses import LOSSES, Loss
from recbole_multdpo.settings.value_types import (
    Count,
    CountOrZero,
    Gamma,
    Numbers,
    Positive,
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
        names = ", ".join(f"'{name}'" for name in (ZERO_SHOT, *LOSSES))
        raise PydanticKnownError("literal_error", {"expected": names})
    return name


# The table itself rather than a list of its names, so that a loss added to it needs nothing else.
LossName = Annotated[str, AfterValidator(_known_loss)]


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
    tiny_vocab_size: Annotated[int, Field(ge=258)] = Field(description="its tokenizer's tokens")
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
    def search(self) -> str | None:
        """The search that ranks by log-probabilities; None where something else ranks."""
        return self.ranker

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
    def search(self) -> None:
        """None: transformers generates the texts that items are compared with."""
        return None

    @property
    def ranks_by_validation(self) -> bool:
        """Whether there is an assistant, or the strength of the popularity is chosen."""
        chooses = self.grounding_weight == "popularity" and self.grounding_gamma == "auto"
        return chooses or super().ranks_by_validation

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
