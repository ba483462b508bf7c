"""Recommendations on the command line: `python -m recbole_multdpo.recommend RUN_FOLDER ...`.

    python -m recbole_multdpo.recommend saved/my-run --users=1,2 --k=5
    python -m recbole_multdpo.recommend saved/my-run --liked "Toy Story" "Fargo"
    python -m recbole_multdpo.recommend saved/my-run --users_file=ids.txt --json > lists.jsonl
    python -m recbole_multdpo.recommend saved/my-talk --conversation "I loved Alien." "assistant: \\
        Old films too?" "user: yes"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime.reading import readable
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
    from recbole_multdpo.trained.recommender import Answer, Item, Recommender

HISTORY_SHOWN = 12


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see `run_command`."""
    command = run_parser(
        "recommend", "The best items of the whole catalogue by the model of a finished run."
    )
    who = command.add_mutually_exclusive_group(required=True)
    who.add_argument("--users", "--user", metavar="ID,ID", help="users of the data set")
    who.add_argument("--users_file", type=Path, metavar="FILE", help="one user id per line")
    add_input_arguments(who)
    add_disliked_argument(command)
    command.add_argument("--k", type=int, default=10, help="length of the lists (default 10)")
    command.add_argument(
        "--seen_items",
        choices=("rated", "positives"),
        default="rated",
        help="what users of the data set have seen: all that they have rated (default), or what "
        "they liked in training and validation",
    )
    command.add_argument("--json", action="store_true", help="one JSON object per line")
    return run_command(_recommend, command.parse_args(argv))


def _recommend(options: argparse.Namespace) -> None:
    check_disliked(options)
    users = read_users(options.users_file) if options.users_file else None
    if options.users is not None:
        users = [name.strip() for name in options.users.split(",") if name.strip()]
    options.messages = parse_turns(options.conversation) if options.conversation else None

    from recbole_multdpo.trained.recommender import Recommender  # after what needs no model
    from recbole_multdpo.trained.run import set_threads

    recommender = Recommender.load(
        options.run_folder, seen_items=options.seen_items, **run_options(options)
    )
    set_threads(recommender.run.config)
    heading = f"{recommender.run.name} on {recommender.run.config['dataset']}; score: "
    for number, answer in enumerate(_answers(recommender, options, users)):
        if options.json:
            show_json(answer.as_dict(), flush=True)
            continue
        if number == 0:
            show(heading + recommender.score_name)
        show(f"\n{as_text(answer)}")


def _answers(
    recommender: Recommender, options: argparse.Namespace, users: list[str] | None
) -> Iterator[Answer]:
    if users is not None:
        progress = options.users_file is not None
        yield from recommender.for_users(users, options.k, show_progress=progress)
    elif options.messages is not None:
        yield recommender.for_conversation(options.messages, options.k)
    else:
        yield recommender.for_titles(options.liked, options.k, options.disliked)


def read_users(file: Path) -> list[str]:
    """User ids from a text file, one per line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read or has no id.
    """
    with readable(file, "Set --users_file to a text file in UTF-8."):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    users = [line.strip() for line in lines if line.strip()]
    if not users:
        raise DataError(f"--users_file={file} holds no user id; write one per line.")
    return users


def _some(items: Sequence[Item]) -> str:
    """The first titles of a list, and the number of the others."""
    titles = [terminal(item.title) for item in items]
    more = f" and {len(titles) - HISTORY_SHOWN} more" if len(titles) > HISTORY_SHOWN else ""
    return ("; ".join(titles[:HISTORY_SHOWN]) or "nothing") + more


def as_text(answer: Answer) -> str:
    """An answer as lines for a terminal; items of one title share a line."""
    from recbole_multdpo.trained.recommender import one_per_text

    user = terminal(answer.user)
    who = "liked" if answer.user is None else f"user {user} liked"
    if answer.conversation is not None:
        who = "mentioned" if answer.user is None else f"conversation {user} mentioned"
    lines = [f"{who}: {_some(answer.history)}"]
    if answer.disliked:
        lines.append(f"disliked: {_some(answer.disliked)}")
    said = answer.conversation or ()
    lines += [terminal(f"  {turn['role']}: {turn['content']}") for turn in said]
    rows = one_per_text(answer.recommendations)
    width = max((len(terminal(item.title)) for item, _ in rows), default=0)
    for item, n_items in rows:
        marks = "  * in the test part" if item.in_test else ""
        marks += f"  ({n_items} items of this title)" if n_items > 1 else ""
        lines.append(f"{item.rank:>4}  {terminal(item.title):<{width}}  {item.score:>9.3f}{marks}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
