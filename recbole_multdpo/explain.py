"""Explanation of one ranking: `python -m recbole_multdpo.explain RUN_FOLDER --user=1`.

Shows each item's log-probability under the trained policy and under the reference, its reward, its
rank before and after alignment, and the contribution of each token:

    python -m recbole_multdpo.explain saved/my-run --user=1 --k=5 --also "Fargo" "Alien"
    python -m recbole_multdpo.explain saved/my-run --liked "Toy Story" "Fargo" --json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_multdpo.runtime.console import counted
from recbole_multdpo.runtime.shown_text import show, show_json, terminal
from recbole_multdpo.trained.commands import (
    add_disliked_argument,
    add_input_arguments,
    check_disliked,
    parse_turns,
    run_command,
    run_options,
    run_parser,
)

if TYPE_CHECKING:
    from recbole_multdpo.trained.explanation import Explanation, ItemExplanation

LEGEND = (
    "ranks: after and before alignment; log π, log π_ref: log-probability under policy and "
    "reference, nats; reward = {beta:g} x (log π - log π_ref)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see `run_command`."""
    command = run_parser(
        "explain", "What preference training did to one user's ranking, item by item."
    )
    who = command.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="ID", help="a user of the data set")
    add_input_arguments(who)
    add_disliked_argument(command)
    command.add_argument("--k", type=int, default=10, help="length of both rankings (default 10)")
    command.add_argument(
        "--also", nargs="+", default=[], metavar="TITLE", help="further items to explain"
    )
    command.add_argument("--json", action="store_true", help="one JSON object")
    return run_command(_explain, command.parse_args(argv))


def _explain(options: argparse.Namespace) -> None:
    check_disliked(options)
    messages = parse_turns(options.conversation) if options.conversation else None

    from recbole_multdpo.trained.explanation import Explainer  # after what needs no model
    from recbole_multdpo.trained.run import set_threads

    explainer = Explainer.load(options.run_folder, **run_options(options))
    set_threads(explainer.run.config)
    if options.user is not None:
        found = explainer.for_user(options.user, options.k, options.also)
    elif messages is not None:
        found = explainer.for_conversation(messages, options.k, options.also)
    else:
        found = explainer.for_titles(options.liked, options.k, options.also, options.disliked)
    if options.json:
        show_json(found.as_dict())
    else:
        show(as_text(found))


def as_text(found: Explanation) -> str:
    """An explanation as lines for a terminal."""
    who = f"user {terminal(found.user)}" if found.user is not None else "typed input"
    width = max(len(terminal(item.title)) for item in found.items)
    lines = [
        f"{who}, {counted(len(found.history), 'item')} known. {LEGEND.format(beta=found.beta)}",
        "",
        f"{'after':>6}{'before':>8}  {'':<{width}}{'log π':>9}{'log π_ref':>11}{'reward':>9}",
    ]
    for item in found.items:
        lines.append(_row(item, width))
        if len(item.tokens) > 1:
            lines.append(f"{'':>16}{_tokens(item)}")
    return "\n".join(lines)


def _row(item: ItemExplanation, width: int) -> str:
    ranks = f"{item.rank or 'known':>6}{item.reference_rank or 'known':>8}"
    figures = f"{item.logp:>9.3f}{item.reference_logp:>11.3f}{item.reward:>+9.3f}"
    mark = "  * in the test part" if item.in_test else ""
    return f"{ranks}  {terminal(item.title):<{width}}{figures}{mark}"


def _tokens(item: ItemExplanation) -> str:
    """Every token with its log π and the change from log π_ref."""
    return " | ".join(
        f"{terminal(token.text.strip()) or repr(token.text)} {token.logp:.2f} "
        f"({token.logp - token.reference_logp:+.2f})"
        for token in item.tokens
    )


if __name__ == "__main__":
    sys.exit(main())
