"""Shared parts of the commands on finished runs: arguments, errors, typed conversations."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.data.conversation_text import ROLES, Message, decode
from recbole_multdpo.errors import ConfigError, MultDPOError, system_error
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.settings.effects import declared
from recbole_multdpo.settings.text import parse_command_line, parse_literal

# the settings that an evaluation may change: of the test, and of speed
EVALUATION_SETTINGS = tuple(key for key, acting in declared().items() if acting.acts_in("test"))
SPEAKERS = {**{role: role for role in ROLES}, "recommender": "assistant"}


def run_parser(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of `python -m recbole_multdpo.NAME RUN_FOLDER`, with `add_run_arguments`.

    Args:
        name: the command.
        description: one sentence.
        options: of `ArgumentParser`.
    """
    prog = f"python -m recbole_multdpo.{name}"
    command = argparse.ArgumentParser(prog=prog, description=description, **options)
    command.add_argument("run_folder", type=Path, help="what a run wrote, e.g. saved/LLMRec-...")
    add_run_arguments(command)
    return command


def add_run_arguments(command: argparse.ArgumentParser) -> None:
    """Add arguments that replace a run's settings, or are never taken from its folder."""
    command.add_argument("--data_path", help="folder of the data set's folder, if it has moved")
    command.add_argument("--device", help="auto, cpu, cuda or cuda:N instead of the run's")
    for name, text in (
        (
            "trust_remote_code",
            "run the Python code that comes with the run's model: only if you trust its author",
        ),
        ("log_wandb", "log to Weights & Biases, for commands that log"),
    ):
        command.add_argument(
            f"--{name}", nargs="?", const=True, type=_boolean, metavar="True", help=text
        )


def evaluation_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that an evaluation changes, from its options and the `others`, unknown ones."""
    given = {key: getattr(options, key) for key in EVALUATION_SETTINGS}
    arguments = [f"--{key}={text}" for key, text in given.items() if text is not None]
    return parse_command_line([*arguments, *options.others])


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The parsed `add_run_arguments`, as arguments of `trained.run.load_run`."""
    names = ("data_path", "device", "trust_remote_code", "log_wandb")
    return {name: getattr(options, name) for name in names}


def _boolean(text: str) -> bool:
    value = parse_literal(text)
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError(f"must be True or False, got {text!r}")
    return value


def add_input_arguments(group: argparse._MutuallyExclusiveGroup) -> None:
    """Add `--liked` and `--conversation`: input that is not from the data set."""
    group.add_argument(
        "--liked", nargs="+", metavar="TITLE", help="titles of the catalogue, or id:ITEM_ID"
    )
    group.add_argument(
        "--conversation",
        nargs="+",
        metavar="TURN",
        help='"user: ..." or "assistant: ..."; without a speaker, the user. Or one JSON list of '
        "chat messages",
    )


def add_disliked_argument(command: argparse.ArgumentParser) -> None:
    """Add `--disliked`, beside `--liked`."""
    command.add_argument(
        "--disliked",
        nargs="+",
        default=(),
        metavar="TITLE",
        help="with --liked: titles that are not liked, for a model trained with disliked_in_prompt",
    )


def check_disliked(options: argparse.Namespace) -> None:
    """Refuse `--disliked` without `--liked`.

    Raises:
        ConfigError: of a user of the data set it is known.
    """
    if options.disliked and not options.liked:
        raise ConfigError("--disliked goes with --liked. Add liked titles, or leave it out.")


def run_command(action: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command.

    Returns:
        Exit status: 0 done, 2 a user error (printed without a traceback), 130 interrupted.
    """
    try:
        from recbole_multdpo import compat

        compat.apply()  # before RecBole is imported
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading weights
        action(options)
    except MultDPOError as error:
        show(f"error: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        show(f"error: {system_error(error)}", sys.stderr)
        return 2
    return 0


def parse_turns(turns: Sequence[str]) -> list[Message]:
    """Chat messages from the command line: one turn per text, or one JSON list of messages.

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
