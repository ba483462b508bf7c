"""An assistant's weight in the ranking, chosen on the validation part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import getLogger
from typing import Any

from recbole_multdpo.ranking.ranker import Ranker

CURVE_FILE = "assistant_weights.csv"  # one row per weight


def choose_weight(
    weights: Sequence[float],
    evaluate: Callable[[Sequence[float]], Sequence[Mapping[str, float]]],
    metric: str,
    larger_is_better: bool,
) -> tuple[float, list[dict[str, float]]]:
    """The weight with the best validation metric, the smallest one of equals.

    Args:
        weights: to be tried.
        evaluate: validation metrics of each of several weights.
        metric: name of the metric that decides, such as `ndcg@10`.
        larger_is_better: whether larger values of it are.

    Returns:
        The weight, and the curve: `weight` and the metrics of each, by rising weight.
    """
    tried = sorted(set(weights))
    curve = []
    for weight, metrics in zip(tried, evaluate(tried), strict=True):
        curve.append({"weight": weight, **metrics})
        getLogger().info(f"assistant_weight={weight:g}: {metric} {metrics[metric]:.4f}")
    sign = 1 if larger_is_better else -1
    best = max(curve, key=lambda point: sign * point[metric])  # the first of equal ones
    return best["weight"], curve


def validate(
    ranker: Ranker,
    evaluate: Callable[[Ranker, Sequence[float]], Sequence[Mapping[str, float]]],
    metric: str,
    larger_is_better: bool,
) -> tuple[Ranker, dict[str, float], dict[str, Any]]:
    """Validate a ranker; one whose assistant has weights with each of them.

    Args:
        ranker: with its assistant, but for the weight.
        evaluate: validation metrics of a ranker with each of several weights of its assistant.
        metric: as for `choose_weight`, and so is `larger_is_better`.

    Returns:
        The ranker with the best weight, its metrics, and what `result.json` says about its
        assistant; {} without one.
    """
    assistant, settings = ranker.assistant, ranker.settings
    if assistant is None:
        return ranker, dict(*evaluate(ranker, [ranker.weight])), {}
    described: dict[str, Any] = {
        "model": assistant.name,
        "settings": settings.assistant_settings,
        "valid_result": assistant.valid_result,
    }
    if not settings.assistant_weights:
        return ranker, dict(*evaluate(ranker, [ranker.weight])), described
    weight, curve = choose_weight(
        settings.assistant_weights,
        partial(evaluate, ranker),
        metric,
        larger_is_better,
    )
    (found,) = [dict(point) for point in curve if point["weight"] == weight]
    del found["weight"]
    return replace(ranker, weight=weight), found, {**described, "weight": weight, "curve": curve}
