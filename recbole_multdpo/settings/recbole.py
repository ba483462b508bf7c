"""RecBole's own settings and the few that this package adds for every model, with their types.

RecBole accepts any key and any value and fails later, deep in the data code. Here each shared
setting has a type and a range, and settings that contradict each other are named. Defaults are in
RecBole's property files and in ours.
"""

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import Required, TypedDict

from recbole_multdpo.errors import doc_page
from recbole_multdpo.settings.acts import Acts
from recbole_multdpo.settings.conditions import (
    CLASSICAL,
    CONVERSATIONS,
    DERIVED,
    EVALUATED,
    FEATURES,
    IN_BATCHES,
    IN_EPOCHS,
    KNOWLEDGE,
    LOGGED_TO_WANDB,
    LOW_RATINGS,
    NO_MODEL,
    OPTIMISED,
    PREFERENCE,
    PREFERENCE_LOSS,
    ROLLING,
    SEQUENCES,
    STOPPED_EARLY,
    TRAINING,
    VALIDATING,
    WITH_DRAWN_NEGATIVES,
)
from recbole_multdpo.settings.messages import nearest
from recbole_multdpo.settings.value_types import Count, CountOrZero, Positive, Text, like


def _lower(value: Any) -> Any:
    """RecBole ignores the case of these names."""
    return value.lower() if isinstance(value, str) else value


Interval = Annotated[
    str,
    like(
        r"\s*([\[(]\s*-?(inf|[\d.]+)\s*,\s*(inf|-?[\d.]+)\s*[\])]\s*;?\s*)+",
        '"[4,inf)"',
        '"(0,5];(7,9)"',
    ),
]
# RecBole takes a list of columns, or * for all of them, per atomic file.
Columns = dict[str, Annotated[list[str], Field()] | Literal["*"]]
Metric = Annotated[str, like(r".+", "NDCG@10", "AUC")]
EvalMode = Annotated[
    str,
    like(r"full|labeled|(uni|pop|total)[1-9][0-9]*", "full", "labeled", "uni100", "pop100"),
]
OptionalNumber = Annotated[float, Field(ge=0)] | Literal["none"]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@with_config(_STRICT)
class EvalModes(TypedDict):
    """Candidates of an evaluation: all items, N sampled ones per positive, or N in total."""

    valid: EvalMode
    test: EvalMode


@with_config(_STRICT)
class EvalSplit(TypedDict, total=False):
    """Exactly one of: shares of the rows (RS), leave-one-out (LS), shares of the time (TS)."""

    RS: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=3, max_length=3)]
    LS: Literal["valid_and_test", "valid_only", "test_only"]
    TS: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=3, max_length=3)]


@with_config(_STRICT)
class EvalArgs(TypedDict):
    """RecBole's evaluation protocol, complete."""

    split: EvalSplit
    order: Literal["RO", "TO"]
    group_by: Literal["user", "none"] | None
    mode: EvalModes


@with_config(_STRICT)
class NegativeSampling(TypedDict, total=False):
    """RecBole's negatives for pairwise and pointwise models."""

    distribution: Literal["uniform", "popularity", "none"] | None
    sample_num: Count | Literal["none"]
    alpha: OptionalNumber
    dynamic: bool
    candidate_num: CountOrZero


@with_config(_STRICT)
class GradientClipping(TypedDict, total=False):
    """Arguments of torch's clip_grad_norm_."""

    max_norm: Required[Positive]
    norm_type: Positive
    error_if_nonfinite: bool
    foreach: bool


# effects of most of RecBole's settings
_DATA = Acts("data")
_ROWS = Acts("data", protocol=True)  # the systems of a comparison must have the same rows
_FILTER = Acts(("data", "filter"), protocol=True)
_LOG = Acts("run", changes="log")
_KNOWLEDGE = Acts("data", KNOWLEDGE)
_PICKLES = Acts("run", changes="machine", data_folder=False)
_OF_ONE_MODEL = Acts("model")
_FILE_OF_A_MODEL = Acts("model", data_folder=False)


class AddedSettings(TypedDict, total=False):
    """Settings that this package adds for every model."""

    device: Annotated[
        str,
        like(r"auto|cpu|cuda(:\d+)?", "auto", "cpu", "cuda", "cuda:1"),
        Acts("run", changes="machine", saved_as_set=True),
    ]
    num_threads: Annotated[Count | None, Acts(("run", "test"), changes="machine")]
    run_dir: Annotated[Text | None, Acts("run", changes="machine", data_folder=False, saved=False)]
    resume: Annotated[Text | None, Acts("run", changes="machine", data_folder=False, saved=False)]
    # a name of other settings, which say what a run is
    protocol: Annotated[Text | None, Acts("run", changes="log", data_folder=False)]
    context: Annotated[Literal["history", "conversation"], _ROWS]
    mentioned_items: Annotated[
        Literal["exclude", "keep"], Acts("data", CONVERSATIONS, protocol=True)
    ]
    seen_items: Annotated[
        Literal["positives", "rated"],
        Acts(("data", "validation", "test"), LOW_RATINGS, protocol=True),
    ]
    linked_users: Annotated[Literal["refuse", "keep"], Acts("data", changes="log")]
    test_information: Annotated[
        Literal["auto", "train", "train_valid", "refit", "rolling"],
        Acts(("data", "test"), protocol=True),
    ]
    test_users: Annotated[CountOrZero, Acts(("ranking", "test"), protocol=True)]
    final_test: Annotated[bool, Acts("run", changes="log", data_folder=False)]
    candidate_lists: Annotated[Text | None, Acts("test", data_folder=False, protocol=True)]


class UnlistedSettings(TypedDict, total=False):
    """Settings of every model that RecBole reads but does not list in its property files."""

    model: Annotated[Text, Acts(("run", "validation", "ranking"), data_folder=False)]
    dataset: Annotated[Text, Acts("data", data_folder=False, protocol=True)]
    config_files: Annotated[
        str | None,
        BeforeValidator(lambda files: " ".join(files) if isinstance(files, list) else files),
        Acts("run", changes="machine", data_folder=False, saved=False),
    ]
    encoding: Annotated[Text, _DATA]
    tail_ratio: Annotated[Positive, Acts("test")]


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
class RecBoleSettings(AddedSettings, UnlistedSettings, total=False):
    """Settings that every model has; checked if present."""

    # the run
    seed: Annotated[int, Field(ge=0, lt=2**32), Acts(("data", "model"), on_card=True)]
    reproducibility: Annotated[bool, Acts(("model", "ranking"))]
    state: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower), _LOG
    ]
    show_progress: Annotated[bool, Acts(("run", "test"), changes="log")]
    use_gpu: Annotated[bool, Acts("run", changes="machine", saved_as_set=True)]
    gpu_id: Annotated[str, BeforeValidator(str), Acts("run", changes="machine", saved=False)]
    worker: Annotated[CountOrZero, Acts("run", changes="machine")]
    shuffle: Annotated[bool, Acts("preference", IN_BATCHES)]
    data_path: Annotated[
        str | None, Acts("data", changes="machine", data_folder=False, protocol=True)
    ]
    checkpoint_dir: Annotated[Text, Acts("run", changes="machine", data_folder=False, saved=False)]
    save_dataset: Annotated[bool, _PICKLES]
    save_dataloaders: Annotated[bool, _PICKLES]
    dataset_save_path: Annotated[str | None, _PICKLES]
    dataloaders_save_path: Annotated[str | None, _PICKLES]
    log_wandb: Annotated[
        bool,
        Acts(
            "run",
            changes="log",
            data_folder=False,
            asked="sends figures and settings to Weights & Biases",
        ),
    ]
    wandb_project: Annotated[str, Acts("run", LOGGED_TO_WANDB, changes="log", data_folder=False)]
    # training: of a language model the preference stage, or both
    epochs: Annotated[
        Literal["auto"] | CountOrZero,
        Acts("preference", PREFERENCE_LOSS + IN_EPOCHS, instead="sft_epochs", on_card=True),
    ]
    train_batch_size: Annotated[
        Count,
        Acts("preference", PREFERENCE + IN_BATCHES, instead="sft_batch_size", on_card=True),
    ]
    learner: Annotated[
        Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"],
        BeforeValidator(_lower),
        Acts(("sft", "preference"), TRAINING + OPTIMISED),
    ]
    learning_rate: Annotated[
        Positive,
        Acts("preference", PREFERENCE + OPTIMISED, instead="sft_learning_rate", on_card=True),
    ]
    weight_decay: Annotated[float, Field(ge=0), Acts(("sft", "preference"), TRAINING + OPTIMISED)]
    train_neg_sample_args: Annotated[
        NegativeSampling | None,
        Acts(("data", "preference"), WITH_DRAWN_NEGATIVES, saved_as_set=True),
    ]
    eval_step: Annotated[
        CountOrZero, Acts("preference", PREFERENCE + EVALUATED, instead="sft_eval_step")
    ]
    stopping_step: Annotated[CountOrZero, Acts("validation", VALIDATING + STOPPED_EARLY)]
    clip_grad_norm: Annotated[
        GradientClipping | None, Acts(("sft", "preference"), TRAINING + OPTIMISED)
    ]
    loss_decimal_place: Annotated[CountOrZero, Acts("run", changes="log", fixed_before=True)]
    require_pow: Annotated[bool, _OF_ONE_MODEL]
    enable_amp: Annotated[bool, _OF_ONE_MODEL]
    enable_scaler: Annotated[bool, _OF_ONE_MODEL]
    transform: Annotated[str | None, _OF_ONE_MODEL]
    # evaluation
    eval_args: Annotated[EvalArgs, Acts(("data", "validation", "test"), protocol=True)]
    repeatable: Annotated[bool, Acts("data", ROLLING)]
    metrics: Annotated[
        Text | Annotated[list[Text], Field(min_length=1)], Acts("test", protocol=True)
    ]
    topk: Annotated[
        Count | Annotated[list[Count], Field(min_length=1)], Acts("test", protocol=True)
    ]
    valid_metric: Annotated[Metric, Acts(("validation", "ranking"), protocol=True)]
    valid_metric_bigger: Annotated[bool, Acts("validation", DERIVED, saved=False)]
    eval_batch_size: Annotated[
        Count, Acts("test", CLASSICAL, "speed", instead="rank_batch_users", fixed_before=True)
    ]
    # rounded figures decide about early stopping and the best checkpoint
    metric_decimal_place: Annotated[CountOrZero, Acts(("validation", "test"))]
    # data
    field_separator: Annotated[str, _DATA]
    seq_separator: Annotated[str, _DATA]
    USER_ID_FIELD: Annotated[Text, _DATA]
    ITEM_ID_FIELD: Annotated[Text, _DATA]
    RATING_FIELD: Annotated[Text, _DATA]
    TIME_FIELD: Annotated[Text, _DATA]
    LABEL_FIELD: Annotated[Text, Acts("data", CLASSICAL)]
    NEG_PREFIX: Annotated[Text, Acts("data", CLASSICAL)]
    seq_len: Annotated[dict[str, Count] | None, Acts("data", CLASSICAL, instead="max_item_tokens")]
    threshold: Annotated[dict[str, float] | None, _DATA]
    numerical_features: Annotated[list[str], Acts("data", FEATURES)]
    load_col: Annotated[Columns | None, _ROWS]
    unload_col: Annotated[Columns | None, _DATA]
    unused_col: Annotated[dict[str, list[str]] | None, _DATA]
    additional_feat_suffix: Annotated[str | list[str] | None, _DATA]
    rm_dup_inter: Annotated[Literal["first", "last"] | None, _FILTER]
    val_interval: Annotated[dict[str, Interval] | None, _FILTER]
    filter_inter_by_user_or_item: Annotated[bool, _ROWS]
    user_inter_num_interval: Annotated[Interval | None, _FILTER]
    item_inter_num_interval: Annotated[Interval | None, _FILTER]
    alias_of_user_id: Annotated[list[str] | None, _DATA]
    alias_of_item_id: Annotated[list[str] | None, _DATA]
    preload_weight: Annotated[dict[str, str] | None, _DATA]
    normalize_field: Annotated[list[str] | None, _DATA]
    normalize_all: Annotated[bool | None, _DATA]
    discretization: Annotated[dict[str, Any] | None, Acts("data", FEATURES)]
    benchmark_filename: Annotated[list[str] | None, _ROWS]
    # sequences
    ITEM_LIST_LENGTH_FIELD: Annotated[Text, Acts("data", SEQUENCES)]
    LIST_SUFFIX: Annotated[Text, Acts("data", SEQUENCES)]
    MAX_ITEM_LIST_LENGTH: Annotated[Count, Acts("data", SEQUENCES, instead="max_history")]
    POSITION_FIELD: Annotated[Text, Acts("data", NO_MODEL)]
    # knowledge graphs
    HEAD_ENTITY_ID_FIELD: Annotated[Text, _KNOWLEDGE]
    TAIL_ENTITY_ID_FIELD: Annotated[Text, _KNOWLEDGE]
    RELATION_ID_FIELD: Annotated[Text, _KNOWLEDGE]
    ENTITY_ID_FIELD: Annotated[Text, _KNOWLEDGE]
    kg_reverse_r: Annotated[bool, _KNOWLEDGE]
    entity_kg_num_interval: Annotated[Interval | None, _KNOWLEDGE]
    relation_kg_num_interval: Annotated[Interval | None, _KNOWLEDGE]
    alias_of_entity_id: Annotated[list[str] | None, _KNOWLEDGE]
    alias_of_relation_id: Annotated[list[str] | None, _KNOWLEDGE]


class RecBoleModelSettings(TypedDict, total=False):
    """Settings of some of RecBole's models that name files; models have many others."""

    pre_model_path: Annotated[Any, _FILE_OF_A_MODEL]
    pretrain_path: Annotated[Any, _FILE_OF_A_MODEL]
    mf_pretrain_path: Annotated[Any, _FILE_OF_A_MODEL]
    mlp_pretrain_path: Annotated[Any, _FILE_OF_A_MODEL]
    warm_up: Annotated[Any, _FILE_OF_A_MODEL]
    teacher: Annotated[Any, _FILE_OF_A_MODEL]
    xgb_model: Annotated[Any, _FILE_OF_A_MODEL]
    lgb_model: Annotated[Any, _FILE_OF_A_MODEL]


RECBOLE_SETTINGS: TypeAdapter[RecBoleSettings] = TypeAdapter(RecBoleSettings)

ADDED_KEYS = frozenset(AddedSettings.__annotations__)
UNLISTED_KEYS = frozenset(UnlistedSettings.__annotations__)

# Read by RecBole's models, but not listed in their property files.
UNLISTED_MODEL_KEYS: dict[str, frozenset[str]] = {
    "AutoInt": frozenset({"has_residual"}),
    "DiffRec": frozenset({"norm"}),
    "EASE": frozenset({"low_rating_weight"}),  # ours, see `classical.low_ease`
    "FEARec": frozenset({"contrast", "sim", "tau", "use_filter"}),
    "HRM": frozenset({"reg_weight"}),
    "KD_DAGFM": frozenset({"cin", "feature_num"}),
    "LDiffRec": frozenset({"norm"}),
}
# Read by RecBole's transforms of item sequences (the setting `transform`).
TRANSFORM_KEYS = frozenset({"mask_ratio", "ft_ratio", "eta", "beta"})
# Read by RecBole's code for a kind of model.
UNLISTED_TYPE_KEYS: dict[str, frozenset[str]] = {
    "CONTEXT": frozenset({"embedding_size", "double_tower"}),
    "DECISIONTREE": frozenset({"convert_token_to_onehot", "token_num_threshold"}),
}


def total_candidates(mode: str) -> int | None:
    """N of the mode `totalN`, None for any other."""
    return int(mode[len("total") :]) if mode.startswith("total") else None


def merged_eval_args(base: Any, change: Any) -> Any:
    """Merge a change into RecBole's `eval_args`; neither argument is modified.

    RecBole replaces the whole mapping, so that `{'order': 'TO'}` would silently reset split and
    mode. Here the other parts stay. `mode` is merged in the same way; `split` is replaced,
    because its only key is the method.

    Args:
        base: some of split, order, group_by and mode, where mode may be text for both phases.
        change: likewise.

    Returns:
        The merged mapping, its mode a mapping of phases. Anything but a mapping is returned as it
        is, for the type check to refuse.
    """
    if not isinstance(change, Mapping) or not isinstance(base, Mapping):
        return base if isinstance(change, Mapping) else change
    merged = {**base, **change}
    if isinstance(change.get("mode"), Mapping | str):
        merged["mode"] = {**_both_phases(base.get("mode")), **_both_phases(change["mode"])}
    return merged


def _both_phases(mode: Any) -> Mapping[str, Any]:
    if isinstance(mode, str):
        return {"valid": mode, "test": mode}
    return mode if isinstance(mode, Mapping) else {}


def evaluation_problems(
    settings: Mapping[str, Any], ranking_metrics: AbstractSet[str], value_metrics: AbstractSet[str]
) -> list[str]:
    """Describe contradictions in the evaluation settings, one sentence each.

    Args:
        settings: final settings of the right types.
        ranking_metrics: lower-case names of RecBole's metrics of a ranked list (NDCG, ...).
        value_metrics: those of single scores (AUC, ...).
    """
    problems = metric_problems(settings, ranking_metrics, value_metrics)
    if problems:
        return problems
    ranking = bool(_metrics_of(settings) & ranking_metrics)
    return _protocol_problems(settings, ranking)


def metric_problems(
    settings: Mapping[str, Any], ranking_metrics: AbstractSet[str], value_metrics: AbstractSet[str]
) -> list[str]:
    """Describe metrics that do not exist or do not go together; arguments as above."""
    given = settings["metrics"]
    known = ranking_metrics | value_metrics
    problems = [
        _unknown_metric(name, settings, known)
        for name in ([given] if isinstance(given, str) else given)
        if name.lower() not in known
    ]
    names = _metrics_of(settings)
    if not problems and names & ranking_metrics and names & value_metrics:
        problems.append(
            "metrics mixes metrics of a ranking "
            f"({', '.join(sorted(names & ranking_metrics))}) with metrics of single scores "
            f"({', '.join(sorted(names & value_metrics))}). Evaluate them in two runs."
        )
    return problems or _valid_metric_problems(settings, names, bool(names & ranking_metrics))


def _metrics_of(settings: Mapping[str, Any]) -> set[str]:
    """Lower-case names of the metrics."""
    given = settings["metrics"]
    return {name.lower() for name in ([given] if isinstance(given, str) else given)}


def _unknown_metric(name: str, settings: Mapping[str, Any], known: AbstractSet[str]) -> str:
    """Sentence about a metric that RecBole lacks; `ndcg10` and `NDCG@10` name a cut-off as well."""
    match = re.fullmatch(r"([a-z]+)[@_-]?(\d+)", name.lower())
    if match and match[1] in known:
        return (
            f"metrics: {name} names a metric and a cut-off, which are two settings. Use "
            f"--metrics={match[1]} --topk={match[2]} --valid_metric={match[1]}@{match[2]}."
        )
    return (
        f"metrics: RecBole has no metric {name!r}{nearest(name, known) or '.'} "
        f"It has {', '.join(sorted(known))}."
    )


def _valid_metric_problems(
    settings: Mapping[str, Any], names: set[str], ranking: bool
) -> list[str]:
    topk = settings["topk"]
    cutoffs = [topk] if isinstance(topk, int) else topk
    name, at, cutoff = settings["valid_metric"].partition("@")
    allowed = (
        [f"{metric}@{k}" for metric in sorted(names) for k in cutoffs] if ranking else sorted(names)
    )
    right = name.lower() in names and (cutoff in map(str, cutoffs) if ranking else not at)
    if right:
        return []
    if ranking and name.lower() in names and cutoff.isdigit():  # topk was changed alone
        near = min(cutoffs, key=lambda k: abs(k - int(cutoff)))
        return [
            f"topk={topk} is without the {cutoff} of valid_metric={settings['valid_metric']}, "
            f"which chooses the best checkpoint. Add --valid_metric={name}@{near}, or add "
            f"{cutoff} to topk."
        ]
    if ranking and at and cutoff in map(str, cutoffs):  # the list of metrics was
        return [
            f"metrics={settings['metrics']} is without the {name} of "
            f"valid_metric={settings['valid_metric']}, which chooses the best checkpoint. Add "
            f"--valid_metric={min(names)}@{cutoff}, or add {name} to metrics."
        ]
    return [
        f"valid_metric={settings['valid_metric']} is not computed with metrics and topk as they "
        f"are: use one of {', '.join(allowed)}, or add to metrics or topk."
    ]


def _protocol_problems(settings: Mapping[str, Any], ranking: bool) -> list[str]:
    args, problems = settings["eval_args"], []
    if len(args["split"]) != 1:
        problems.append(
            "eval_args: split needs exactly one of RS, LS and TS, "
            f"got {', '.join(args['split']) or 'none'}."
        )
    for method in ("RS", "TS"):
        if method in args["split"] and sum(args["split"][method]) == 0:
            problems.append(f"eval_args: the shares of split {method} are all 0.")
    problems += [*_time_problems(settings), *_part_problems(settings.get("benchmark_filename"))]
    if settings.get("seen_items") == "rated" and settings.get("val_interval"):
        problems += _seen_problems(settings)
    if (
        settings.get("context") == "conversation"
        and not settings.get("benchmark_filename")
        and args["group_by"] == "user"
    ):
        problems.append(
            "context=conversation: a split by user would put the answers of one conversation into "
            f"all parts. Name the parts' files in benchmark_filename ({doc_page('datasets')})."
        )
    unused = set((settings.get("unused_col") or {}).get("inter", ()))
    problems += [
        f"unused_col: {field} is what a split consists of. Leave it out of the inter list."
        for field in (settings.get("USER_ID_FIELD"), settings.get("ITEM_ID_FIELD"))
        if field in unused
    ]
    if not ranking and "full" in args["mode"].values():
        problems.append(
            "eval_args: mode full ranks items, which the chosen metrics do not measure. "
            "Use mode labeled or uniN, or metrics such as NDCG."
        )
    if ranking and "labeled" in args["mode"].values():
        problems.append(
            "eval_args: mode labeled compares scores with the labels of rows and ranks nothing. "
            "Use mode full, or --metrics=[AUC] --valid_metric=AUC."
        )
    if settings.get("candidate_lists") is not None:
        problems += _list_problems(settings, ranking)
    return problems + (_cutoff_problems(settings) if ranking else [])


def _list_problems(settings: Mapping[str, Any], ranking: bool) -> list[str]:
    """Requirements of candidates from a file."""
    name, problems = f"candidate_lists={settings['candidate_lists']}", []
    if not ranking:
        problems.append(
            f"{name} are ranked at test. Use metrics of rankings, such as NDCG and Hit."
        )
    if settings.get("test_information") == "rolling":
        problems.append(
            f"{name} has one list for each user, and RecBole's rolling test ranks once for each "
            "event. Use --test_information=train or train_valid."
        )
    return problems


def _time_problems(settings: Mapping[str, Any]) -> list[str]:
    args, problems = settings["eval_args"], []
    loaded = (settings.get("load_col") or {}).get("inter", "*")
    time_field = settings.get("TIME_FIELD", "timestamp")
    if "TS" in args["split"] and args["order"] != "TO":
        problems.append(
            "eval_args: split TS cuts at a time and needs order TO: RecBole mixes up the rows of a "
            "user that are not in order of time. Add 'order': 'TO'."
        )
    if args["order"] != "TO" or settings.get("benchmark_filename"):
        return problems
    if loaded != "*" and time_field not in loaded:
        problems.append(
            f"eval_args: order TO needs times: add {time_field} to load_col's inter list."
        )
    if time_field in (settings.get("numerical_features") or []):
        problems.append(
            f"numerical_features: {time_field} would be sorted by after it was rounded for its "
            "embedding. Embed a copy of the column under another name."
        )
    return problems


def _seen_problems(settings: Mapping[str, Any]) -> list[str]:
    """Requirements of items that never rank because their user rated them low."""
    problems = low_rating_problems("seen_items=rated", settings)
    if "labeled" in settings["eval_args"]["mode"].values():
        problems.append(
            "seen_items=rated leaves items out of rankings, and eval_args mode labeled ranks none. "
            "Leave it out, or use mode full."
        )
    if settings.get("test_information") == "rolling":
        problems.append(
            "seen_items=rated: RecBole's rolling test ranks items again that a user knows. Use "
            "--test_information=train, train_valid or refit, or leave it out."
        )
    return problems


def low_rating_problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Requirements of the ratings that `val_interval` drops: ratings, and times in order of time.

    Args:
        name: the setting that needs them, with its value.
        settings: final settings of the right types.
    """
    rating, time = settings["RATING_FIELD"], settings["TIME_FIELD"]
    loaded, problems = (settings.get("load_col") or {}).get("inter", "*"), []
    if loaded != "*" and rating not in loaded:
        problems.append(f"{name} needs ratings: add {rating} to load_col's inter list.")
    if set(settings.get("val_interval") or {}) != {rating}:
        problems.append(
            f"{name} is about the ratings that val_interval drops, so that val_interval must limit "
            f"{rating} and nothing else, for example to [4,inf)."
        )
    if settings["eval_args"].get("order") != "TO":
        return problems
    if settings.get("normalize_all") or time in (settings.get("normalize_field") or ()):
        problems.append(
            f"{name} with eval_args order TO compares times as they were read. Leave {time} out of "
            "what is normalized: --normalize_all=False and normalize_field without it."
        )
    if loaded != "*" and time not in loaded:
        problems.append(
            f"{name} with eval_args order TO needs times: add {time} to load_col's inter list."
        )
    return problems


def _part_problems(parts: list[str] | None) -> list[str]:
    if parts is None:
        return []
    if len(parts) not in (2, 3):
        return [
            f"benchmark_filename={parts} must name the files of training, validation and test, "
            "such as [train, valid, test], or of training and test, for a run without validation."
        ]
    if len(set(parts)) < len(parts):
        return [f"benchmark_filename={parts} names a file twice: it would be two parts at once."]
    return []


def sequence_file_problems(settings: Mapping[str, Any]) -> list[str]:
    """Requirements of sequential models on ready parts, whose rows hold the previous items.

    Args:
        settings: final settings of the right types.
    """
    if not settings.get("benchmark_filename"):
        return []
    field = settings["ITEM_ID_FIELD"] + settings["LIST_SUFFIX"]
    loaded, problems = (settings.get("load_col") or {}).get("inter", "*"), []
    if loaded != "*" and field not in loaded:
        problems.append(
            "benchmark_filename: RecBole's sequential models read the items before a row from a "
            f"column {field}:token_seq. Write it into the files and add it to load_col's inter "
            "list, or give one .inter file with times."
        )
    if field not in (settings.get("alias_of_item_id") or []):
        problems.append(
            f"benchmark_filename: {field} must have the numbers of the items. Add "
            f"--alias_of_item_id=[{field}]."
        )
    return problems


def _cutoff_problems(settings: Mapping[str, Any]) -> list[str]:
    topk = settings["topk"]
    largest = topk if isinstance(topk, int) else max(topk)
    problems = []
    for phase, mode in settings["eval_args"]["mode"].items():
        if phase == "test" and settings.get("candidate_lists") is not None:
            continue
        total = total_candidates(mode)
        if total is not None and largest >= total:
            problems.append(
                f"topk={largest} is no less than the {total} candidates in total of eval_args mode "
                f"{mode} ({phase}): every item would be a hit. Lower --topk, or use "
                f"total{10 * largest}."
            )
        sampled = int(mode[3:]) if mode[:3] in ("uni", "pop") else None
        if sampled is not None and largest > sampled:
            problems.append(
                f"topk={largest} is more than the {sampled} sampled candidates of "
                f"eval_args mode {mode} ({phase}): every item would be a hit."
            )
    return problems
