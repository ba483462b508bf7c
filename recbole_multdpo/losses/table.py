"""The table of losses with their requirements; it is read without importing torch."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

DATA_PARAMETERS = ("lengths", "kl")


@dataclass(frozen=True)
class Loss:
    """One preference loss and its requirements, which the sampler and the trainer follow.

    Attributes:
        function: `(logratios [B, C], levels [B, C], beta, **options) -> [B]`, nats; or the name of
            one in this package, `setwise.mult_dpo`, whose module, and torch, is imported when the
            loss is first computed.
        positives: 'one' or 'many' (one or more) per example.
        negatives: 'none' (any are ignored), 'one', or 'many' (one or more) per example.
        needs_reference: True if log-ratios are taken against a reference model.
        uses_levels: True if levels above 1 matter; False if they only mean "positive".
        needs_lengths: True if the loss averages over the items' tokens.
        needs_kl: True if the loss needs the batch's `kl_estimate`.
        one_level: for a multi-level loss, the name of the loss that it equals when all positives
            have one level; else None.
    """

    function: Callable[..., Tensor] | str
    positives: Literal["one", "many"]
    negatives: Literal["none", "one", "many"]
    needs_reference: bool
    uses_levels: bool = False
    needs_lengths: bool = False
    needs_kl: bool = False
    one_level: str | None = None

    def __call__(self, logratios: Tensor, levels: Tensor, beta: float, **options: Any) -> Tensor:
        """Compute the loss [B] of examples whose input is checked; see `preference_loss`."""
        function = imported(self.function) if isinstance(self.function, str) else self.function
        return function(logratios, levels, beta, **options)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the loss's own options."""
        return tuple(name for name in _keyword_only(self.function) if name not in DATA_PARAMETERS)

    @property
    def summary(self) -> str:
        """First sentence of the function's docstring; empty without one."""
        named = isinstance(self.function, str)
        text = (
            ast.get_docstring(_definition(str(self.function))) if named else self.function.__doc__
        )
        return (text or "").strip().partition("\n")[0]

    @property
    def has_reward_per_token(self) -> bool:
        """True if the loss compares β times log-probabilities per token, as SimPO does."""
        return self.needs_lengths and not self.needs_reference


@cache
def imported(path: str) -> Callable[..., Tensor]:
    """The function of this package with a name such as `setwise.mult_dpo`."""
    module, _, name = path.partition(".")
    function: Callable[..., Tensor] = getattr(import_module(f"{__package__}.{module}"), name)
    return function


@cache
def _keyword_only(function: Callable[..., Tensor] | str) -> tuple[str, ...]:
    """Keyword-only parameters of a function; the source of one given by name is read instead."""
    if isinstance(function, str):
        return tuple(argument.arg for argument in _definition(function).args.kwonlyargs)
    parameters = inspect.signature(function).parameters.values()
    return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)


@cache
def _definition(function: str) -> ast.FunctionDef:
    """A function of this package as it is written, without importing it."""
    module, _, name = function.partition(".")
    source = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"there is no function {function} in {__package__}")


LOSSES: dict[str, Loss] = {
    "sft": Loss("setwise.sft", "many", "none", needs_reference=False),
    "dpo": Loss("pairwise.dpo", "one", "one", needs_reference=True),
    "ipo": Loss("pairwise.ipo", "one", "one", needs_reference=True, needs_lengths=True),
    "simpo": Loss("pairwise.simpo", "one", "one", needs_reference=False, needs_lengths=True),
    "kto": Loss("unpaired.kto", "many", "many", needs_reference=True, needs_kl=True),
    "dmpo": Loss("pairwise.dmpo", "one", "many", needs_reference=True),
    "s_dpo": Loss("setwise.s_dpo", "one", "many", needs_reference=True),
    "lipo_bt": Loss("pairwise.lipo_bt", "many", "many", needs_reference=True, uses_levels=True),
    "lipo_lambda": Loss(
        "pairwise.lipo_lambda", "many", "many", needs_reference=True, uses_levels=True
    ),
    "pro": Loss(
        "listwise.pro", "many", "many", needs_reference=False, uses_levels=True, needs_lengths=True
    ),
    "kpo": Loss("listwise.kpo", "many", "many", needs_reference=True, uses_levels=True),
    "mult_dpo": Loss("setwise.mult_dpo", "many", "many", needs_reference=True),
    "mult2_dpo": Loss(
        "setwise.mult2_dpo",
        "many",
        "many",
        needs_reference=True,
        uses_levels=True,
        one_level="mult_dpo",
    ),
    "pl_dpo": Loss("setwise.pl_dpo", "many", "many", needs_reference=True),
    "pl2_dpo": Loss(
        "setwise.pl2_dpo",
        "many",
        "many",
        needs_reference=True,
        uses_levels=True,
        one_level="pl_dpo",
    ),
}
