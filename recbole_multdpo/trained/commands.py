"""What the commands on finished runs have in common: arguments, errors, what people type."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.data.conversation_text import ROLES, Message, decode
from recbole_multdpo.errors import MultDPOError, system_error
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.settings.text import parse_literal

# what an evaluation may change: how a run is tested, and how much is computed at once
EVALUATION_SETTINGS = (
    "eval_args metrics topk test_information tail_ratio metric_decimal_place eval_batch_size"
    " rank_batch_users num_threads show_progress"
).split()
SPEAKERS = {**{role: role for role in ROLES}, "recommender": "assistant"}


def add_run_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments that replace settings of a run, or are not taken from its folder."""
    command.add_argument("--data_path", help="folder of the data set's folder, if it has moved")
    command.add_argument("--device", help="auto, cpu, cuda or cuda:N instead of the run's")
    for name, what in (
        (
            "trust_remote_code",
            "run the Python code that comes with the run's model: only where you "
            "trust who made the folder",
        ),
        ("log_wandb", "log to Weights & Biases, for commands that log"),
    ):
        command.add_argument(
            f"--{name}", nargs="?", const=True, type=_true_or_false, metavar="True", help=what
        )


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_run_arguments` has read, as arguments of `trained.run.load_run`."""
    names = ("data_path", "device", "trust_remote_code", "log_wandb")
    return {name: getattr(options, name) for name in names}


def _true_or_false(text: str) -> bool:
    value = parse_literal(text)
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError(f"must be True or False, got {text!r}")
    return value


def add_run_folder(command: argparse.ArgumentParser) -> None:
    """The run's folder, as the first argument."""
    command.add_argument("run_folder", type=Path, help="what a run wrote, e.g. saved/LLMRec-...")


def add_typed_arguments(who: argparse._MutuallyExclusiveGroup) -> None:
    """Titles and conversations, which anybody can type."""
    who.add_argument(
        "--liked", nargs="+", metavar="TITLE", help="titles of the catalogue, or id:ITEM_ID"
    )
    who.add_argument(
        "--conversation",
        nargs="+",
        metavar="TURN",
        help='"user: ..." or "assistant: ..."; without a speaker, the user. Or one JSON list of '
        "chat messages",
    )


def run_command(action: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command.

    Returns:
        Exit status: 0 done, 2 a mistake that the user can mend (printed without a traceback), 130
        interrupted.
    """
    try:
        from recbole_multdpo import compat

        compat.apply()  # before RecBole is imported
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading weights: stderr is for errors and our own bars
        action(options)
    except MultDPOError as error:
        show(f"error: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        show(f"error: {system_error(error)}", sys.stderr)
        return 2
    return 0


def parse_turns(turns: Sequence[str]) -> list[Message]:
    """Chat messages of what was typed: one turn each, or all of them as one JSON list.

    Raises:
        DataError: the JSON is not a list of messages.
    """
    if len(turns) == 1 and turns[0].lstrip().startswith("["):
        return decode(turns[0])
    messages = []
    for turn in turns:
        speaker, colon, text = turn.partition(":")
        role = speaker.strip().lower()
        if colon and role in SPEAKERS:
            messages.append(Message(role=SPEAKERS[role], content=text.strip()))
        else:
            messages.append(Message(role="user", content=turn.strip()))
    return messages
