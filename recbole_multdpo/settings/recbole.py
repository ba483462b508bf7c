"""RecBole's own settings and the few that this package adds for every model, with their types.

RecBole accepts any key and any value and fails later, deep in the data code. Here each shared
setting has a type and a range, and settings that contradict each other are named. Defaults are in
RecBole's property files and in ours.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import Required, TypedDict

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
    """The candidates of an evaluation: all items, N sampled ones per positive, or N in total."""

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


@with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
class RecBoleSettings(TypedDict, total=False):
    """Settings that every model has. Checked where present."""

    # the run
    model: Text
    dataset: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    reproducibility: bool
    state: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
    ]
    show_progress: bool
    use_gpu: bool
    worker: CountOrZero
    shuffle: bool
    data_path: str | None
    checkpoint_dir: Text
    encoding: Text
    save_dataset: bool
    save_dataloaders: bool
    dataset_save_path: str | None
    dataloaders_save_path: str | None
    log_wandb: bool
    wandb_project: str
    # added by this package
    device: Annotated[str, like(r"auto|cpu|cuda(:\d+)?", "auto", "cpu", "cuda", "cuda:1")]
    num_threads: Count | None
    run_dir: Text | None
    resume: Text | None
    context: Literal["history", "conversation"]
    mentioned_items: Literal["exclude", "keep"]
    linked_users: Literal["refuse", "keep"]
    test_information: Literal["auto", "train", "train_valid", "refit", "rolling"]
    # training
    epochs: CountOrZero
    train_batch_size: Count
    learner: Annotated[
        Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"],
        BeforeValidator(_lower),
    ]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    train_neg_sample_args: NegativeSampling | None
    eval_step: CountOrZero
    stopping_step: CountOrZero
    clip_grad_norm: GradientClipping | None
    loss_decimal_place: CountOrZero
    require_pow: bool
    enable_amp: bool
    enable_scaler: bool
    transform: str | None
    # evaluation
    eval_args: EvalArgs
    repeatable: bool
    metrics: Text | Annotated[list[Text], Field(min_length=1)]
    topk: Count | Annotated[list[Count], Field(min_length=1)]
    valid_metric: Metric
    eval_batch_size: Count
    metric_decimal_place: CountOrZero
    tail_ratio: Positive
    # data
    field_separator: str
    seq_separator: str
    USER_ID_FIELD: Text
    ITEM_ID_FIELD: Text
    RATING_FIELD: Text
    TIME_FIELD: Text
    LABEL_FIELD: Text
    seq_len: dict[str, Count] | None
    threshold: dict[str, float] | None
    numerical_features: list[str]
    load_col: Columns | None
    unload_col: Columns | None
    unused_col: dict[str, list[str]] | None
    additional_feat_suffix: str | list[str] | None
    rm_dup_inter: Literal["first", "last"] | None
    val_interval: dict[str, Interval] | None
    filter_inter_by_user_or_item: bool
    user_inter_num_interval: Interval | None
    item_inter_num_interval: Interval | None
    alias_of_user_id: list[str] | None
    alias_of_item_id: list[str] | None
    preload_weight: dict[str, str] | None
    normalize_field: list[str] | None
    normalize_all: bool | None
    discretization: dict[str, Any] | None
    benchmark_filename: list[str] | None
    MAX_ITEM_LIST_LENGTH: Count


RECBOLE_SETTINGS: TypeAdapter[RecBoleSettings] = TypeAdapter(RecBoleSettings)

# Every model has these; they are in no property file of RecBole.
ADDED_KEYS = frozenset(
    "device num_threads run_dir resume context mentioned_items linked_users"
    " test_information".split()
)
UNLISTED_KEYS = frozenset({"model", "dataset", "config_files", "encoding", "tail_ratio"})

# Read by RecBole's models although their property files do not list them.
UNLISTED_MODEL_KEYS: dict[str, frozenset[str]] = {
    "AutoInt": frozenset({"has_residual"}),
    "DiffRec": frozenset({"norm"}),
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
    """A change to RecBole's `eval_args` on top of what there is, neither being altered.

    RecBole replaces the whole mapping, so that `{'order': 'TO'}` would silently bring back its own
    split and mode. Here the parts that are not named stay. `mode` is merged in turn; `split` is
    replaced, because its one key is the method.

    Args:
        base: some of split, order, group_by and mode, where mode may be text for both phases.
        change: likewise.

    Returns:
        The merged mapping, its mode a mapping of phases. What is no mapping is returned as it is,
        for the check of types to complain about.
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
    settings: Mapping[str, Any], ranking_metrics: set[str], value_metrics: set[str]
) -> list[str]:
    """Contradictions among the evaluation settings, one sentence each.

    Args:
        settings: final settings of the right types.
        ranking_metrics: lower-case names of RecBole's metrics of a ranked list (NDCG, ...).
        value_metrics: those of single scores (AUC, ...).
    """
    metrics = settings["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    known = ranking_metrics | value_metrics
    unknown = [name for name in metrics if name.lower() not in known]
    if unknown:
        return [
            f"metrics: RecBole has no metric {name!r}{nearest(name, known) or '.'} "
            f"It has {', '.join(sorted(known))}."
            for name in unknown
        ]
    names = {name.lower() for name in metrics}
    if names & ranking_metrics and names & value_metrics:
        return [
            "metrics mixes metrics of a ranking "
            f"({', '.join(sorted(names & ranking_metrics))}) with metrics of single scores "
            f"({', '.join(sorted(names & value_metrics))}). Evaluate them in two runs."
        ]
    ranking = bool(names & ranking_metrics)
    return [
        *_valid_metric_problems(settings, names, ranking),
        *_protocol_problems(settings, ranking),
    ]


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
    if (
        settings.get("context") == "conversation"
        and not settings.get("benchmark_filename")
        and args["group_by"] == "user"
    ):
        problems.append(
            "context=conversation: a split by user would put the answers of one conversation into "
            "all parts. Name the parts' files in benchmark_filename (docs/datasets.md)."
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
    return problems + (_cutoff_problems(settings) if ranking else [])


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
    """What a sequential model needs of ready parts, whose rows hold the items before each.

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
