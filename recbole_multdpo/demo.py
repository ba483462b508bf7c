"""Web page that compares the recommendations of several runs.

`python -m recbole_multdpo.demo RUN_FOLDER ...` takes liked titles, a conversation, or a user of the
data set, and shows each run's recommendations side by side, for example after supervised
fine-tuning, after Mult-DPO, and by EASE:

    python -m recbole_multdpo.demo saved/LLMRec-ml-100k-sft saved/LLMRec-ml-100k-mult_dpo saved/EASE

The page is served to this machine only and loads nothing from elsewhere. Needs Gradio
(the extra `demo`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_multdpo.errors import DataError, MultDPOError, install_extra
from recbole_multdpo.runtime.shown_text import html, show
from recbole_multdpo.trained.commands import (
    add_run_arguments,
    parse_turns,
    run_command,
    run_options,
)

if TYPE_CHECKING:
    from recbole_multdpo.trained.recommender import Answer, Recommender

HOST = "127.0.0.1"
TITLE = "Recommendations side by side"
INTRODUCTION = (
    "Each column is one finished run: its model, data set and score on the test part, then what "
    "it would recommend, best first. What it knows already is left out."
)
HISTORY_SHOWN = 8
MOST_CHOICES = 20_000  # titles in the list of suggestions; others can be typed
N_EXAMPLES, EXAMPLE_TITLES = 3, 3
# text has a contrast of 4.5 at least in both modes; Gradio's dark mode is a class
STYLE = """
.runs { --text: #18181b; --faint: #52525b; --behind: #ffffff; --frame: #d4d4d8;
  --mark: #2563eb; --hit: #15803d; --trouble: #b91c1c; }
.dark .runs { --text: #f4f4f5; --faint: #d4d4d8; --behind: #18181b; --frame: #52525b;
  --mark: #60a5fa; --hit: #4ade80; --trouble: #fca5a5; }
.runs { display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fit, minmax(min(15em, 100%), 1fr)); }
.run { border: 1px solid var(--frame); border-radius: .5em; padding: .8em 1em;
  background: var(--behind); overflow-wrap: anywhere; }
.run, .run * { color: var(--text); }
.run h3 { margin: 0; font-size: 1.05em; }
.run .about { font-size: .85em; color: var(--faint); margin: .2em 0 .8em; }
.run ol { padding-left: 1.8em; margin: 0; list-style: decimal; }
.run li { padding: .15em 0; }
.run .score { float: right; padding-left: .5em; color: var(--faint);
  font-variant-numeric: tabular-nums; }
.run .alone { border-left: .25em solid var(--mark); padding-left: .4em; }
.run .hit::after { content: " \\2713"; color: var(--hit); font-weight: bold; }
.run .problem { color: var(--trouble); white-space: pre-wrap; }
.legend { font-size: .85em; margin-top: .8em; }
[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark [role=tab][aria-selected=true] { color: var(--primary-300) !important; }
"""
# what Gradio's default theme shows too faintly
_THEME = {
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_title_text_color": "*neutral_700",
    "input_placeholder_color": "*neutral_600",
    "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_700",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted; returns the exit status, see `run_command`."""
    command = argparse.ArgumentParser(
        prog="python -m recbole_multdpo.demo",
        description="A local web page with the recommendations of several runs side by side.",
    )
    command.add_argument("run_folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    command.add_argument("--port", type=int, default=7860, help="of the page (default 7860)")
    command.add_argument("--open", action="store_true", help="open the page in a browser")
    add_run_arguments(command)
    return run_command(_serve, command.parse_args(argv))


def _serve(options: argparse.Namespace) -> None:
    _import_gradio()  # before the seconds that loading takes
    from recbole_multdpo.trained.recommender import Recommender

    recommenders = []
    for folder in options.run_folders:
        show(f"loading {folder}", flush=True)
        recommenders.append(Recommender.load(folder, **run_options(options)))
    address = launch(recommenders, options.port, blocking=False, open_browser=options.open)[1]
    print(f"{address} shows the page; Ctrl-C ends it.", flush=True)
    threading.Event().wait()


def launch(
    recommenders: Sequence[Recommender],
    port: int,
    *,
    blocking: bool = True,
    open_browser: bool = False,
) -> tuple[Any, str]:
    """Serve the page on the loopback address.

    Args:
        recommenders: one per column.
        port: a free port.
        blocking: return only when interrupted.
        open_browser: open the page in the machine's browser.

    Returns:
        Gradio's page, whose `close` ends it, and its address.

    Raises:
        MultDPOError: Gradio is missing, or the port is taken.
    """
    gr = _import_gradio()
    page = make_page(recommenders)
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            footer_links=[],
            prevent_thread_lock=not blocking,
            inbrowser=open_browser,
            css=STYLE,
            # the fonts of the system: Gradio's own themes name web fonts
            theme=gr.themes.Default(
                primary_hue="blue", font="sans-serif", font_mono="monospace"
            ).set(**_THEME),
        )
    except OSError as error:
        raise MultDPOError(
            f"port {port} cannot be used ({error}); choose another --port."
        ) from error
    return page, address


def make_page(recommenders: Sequence[Recommender]) -> Any:
    """The page, not yet served, with a tab for every kind of input that one of the runs takes."""
    gr = _import_gradio()
    kinds = {recommender.run.on_conversations for recommender in recommenders}
    titles = recommenders[0].popular_titles() if recommenders else []
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n\n{INTRODUCTION}")
        k = gr.Slider(1, 20, value=10, step=1, label="Recommendations", render=False)
        answers = gr.HTML(render=False)

        def ask(
            name: str, query: Callable[..., Any], given: Any, examples: list[Any], *others: Any
        ) -> None:
            """A button below a field and others, and examples that fill the field."""
            button = gr.Button("Recommend", variant="primary", elem_id=f"ask_{name}")
            button.click(partial(_answers, recommenders, query), [k, given, *others], answers)
            if examples:
                gr.Examples([[example] for example in examples], [given], label="Examples")

        def choice(name: str, label: str, info: str) -> Any:
            """A field for titles, completed from the catalogue."""
            return gr.Dropdown(
                titles[:MOST_CHOICES],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                max_choices=None,
                label=label,
                info=info,
                elem_id=name,
            )

        if False in kinds:
            with gr.Tab("Liked titles"):
                liked = choice(
                    "titles",
                    "Titles that somebody liked, the latest last",
                    "Type to search the catalogue; choose by a click, or arrows and Enter.",
                )
                reads = [recommender.reads_disliked for recommender in recommenders]
                disliked = []
                if any(reads):
                    of_all = "" if all(reads) else " Columns whose run does not know them say so."
                    info = f"They speak against others like them.{of_all}"
                    disliked = [choice("disliked", "Titles that they disliked", info)]
                size = EXAMPLE_TITLES
                starts = range(0, min(N_EXAMPLES * size, len(titles) - size), size)
                examples = [titles[start : start + size] for start in starts]
                ask("titles", _for_titles, liked, examples, *disliked)
        if True in kinds:
            with gr.Tab("Conversation"):
                text = gr.Textbox(
                    label="One message per line, begun by “user:” or “assistant:”",
                    placeholder=f"user: {_opening(titles)}",
                    lines=4,
                    elem_id="talk",
                )
                ask("talk", _for_talk, text, [f"user: {_opening(titles)}"])
        with gr.Tab("User of the data set"):
            users = recommenders[0].some_users(N_EXAMPLES) if recommenders else []
            text = gr.Textbox(
                label="User id, as in the .inter file",
                placeholder=f"such as {users[0]}" if users else "",
                elem_id="user",
            )
            ask("user", _for_user, text, users)
        k.render()
        answers.render()
    return page


def _opening(titles: Sequence[str]) -> str:
    """The first message of an example conversation."""
    return f"I liked {titles[0] if titles else 'it'}. What else is there?"


# a query takes the runs' recommender and returns its answer, and sentences about what is unknown
Query = Callable[["Recommender"], tuple["Answer", list[str]]]


def _answers(
    recommenders: Sequence[Recommender], query: Callable[..., Query], k: int, *given: Any
) -> str:
    return side_by_side(recommenders, query(k, *given))


def _for_titles(
    k: int, liked: Sequence[str] | None, disliked: Sequence[str] | None = None
) -> Query:
    def ask(recommender: Recommender) -> tuple[Answer, list[str]]:
        known, unknown = _found(recommender, liked)
        low, unknown_low = _found(recommender, disliked)
        unknown += unknown_low
        if unknown and not known:
            raise DataError("\n".join(unknown))
        if low and not recommender.reads_disliked:
            unknown.append("This run does not know what is disliked: those titles are left aside.")
            low = []
        return recommender.for_titles(known, k, low), unknown

    return ask


def _found(recommender: Recommender, given: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The titles that a run knows, and a sentence about each other one."""
    known, unknown = [], []
    for title in (text.strip() for text in given or [] if text.strip()):
        try:
            recommender.titles.find(title)
            known.append(title)
        except DataError as error:
            unknown.append(str(error))
    return known, unknown


def _for_talk(k: int, text: str) -> Query:
    messages = parse_turns([line for line in text.splitlines() if line.strip()])
    return lambda recommender: (recommender.for_conversation(messages, k), [])


def _for_user(k: int, text: str) -> Query:
    return lambda recommender: (next(recommender.for_users([text.strip()], k)), [])


def side_by_side(recommenders: Sequence[Recommender], ask: Query) -> str:
    """A column per run with its answer or error, as HTML."""
    answers: list[tuple[Answer, list[str]] | str] = []
    for recommender in recommenders:
        try:
            answers.append(ask(recommender))
        except MultDPOError as error:
            answers.append(str(error))
    found = [answer[0] for answer in answers if not isinstance(answer, str)]
    place = _places(found)
    lists = [[item.title for item in answer.recommendations] for answer in found]
    columns = [
        _column(name, recommender, answer, lists, place)
        for name, recommender, answer in zip(
            _names(recommenders), recommenders, answers, strict=True
        )
    ]
    legend = _legend(recommenders, found) if found else ""
    return f"<div class='runs'>{''.join(columns)}</div>{legend}"


def _places(answers: Sequence[Answer]) -> dict[str, int]:
    """Ids of what the answers know, in the order of the first that shows them, to their places.

    A prompt is in order of time, which other models may not have read.
    """
    known = (item.id for answer in answers for item in answer.history)
    return {name: at for at, name in enumerate(dict.fromkeys(known))}


def _names(recommenders: Sequence[Recommender]) -> list[str]:
    """Headings of the columns: runs of one name have the name of their folder too."""
    names = [recommender.run.name for recommender in recommenders]
    return [
        f"{name}, {recommender.run.folder.name}" if names.count(name) > 1 else name
        for name, recommender in zip(names, recommenders, strict=True)
    ]


def _column(
    name: str,
    recommender: Recommender,
    answer: tuple[Answer, list[str]] | str,
    lists: list[list[str]],
    place: dict[str, int],
) -> str:
    run = recommender.run
    metric = run.config["valid_metric"].lower()
    value = run.result["test_result"].get(metric)
    about = f"{run.config['dataset']}" + ("" if value is None else f", test {metric} {value:.3f}")
    assistant = run.result.get("assistant", {}).get("model")
    if assistant is not None:  # it is not loaded, and knows no typed titles
        about += f" with {assistant}; here without it"
    if isinstance(answer, str):
        body = f"<p class='problem'>{html(answer)}</p>"
    else:
        body = "".join(f"<p class='problem'>{html(unknown)}</p>" for unknown in answer[1])
        body += _list(recommender, answer[0], lists, place)
    heading = f"<h3>{html(name)}</h3><p class='about'>{html(about)}</p>"
    return f"<section class='run'>{heading}{body}</section>"


def _list(
    recommender: Recommender, answer: Answer, lists: list[list[str]], place: dict[str, int]
) -> str:
    """The input that the run knows, and its recommendations; items of one title share a line."""
    from recbole_multdpo.trained.recommender import one_per_text

    rows = []
    for item, n_items in one_per_text(answer.recommendations):
        alone = len(lists) > 1 and sum(item.title in titles for titles in lists) == 1
        classes = [*(["alone"] if alone else []), *(["hit"] if item.in_test else [])]
        score = ""
        if recommender.is_probability:
            score = f"<span class='score'>{_percent(item.score)}</span>"
        several = f" ({n_items} items)" if n_items > 1 else ""
        rows.append(
            f"<li value='{item.rank}'>{score}"
            f"<span class='{' '.join(classes)}'>{html(item.title)}{several}</span></li>"
        )
    return f"<p class='about'>{_known(answer, place)}</p><ol>{''.join(rows)}</ol>"


def _percent(logp: float) -> str:
    """A log-probability (nats) as per cent, with two digits."""
    value = 100 * math.exp(logp)
    return f"{value:.2g} %" if value >= 0.01 else "&lt; 0.01 %"


def _known(answer: Answer, place: dict[str, int]) -> str:
    known = sorted(answer.history, key=lambda item: place[item.id])
    titles = [html(item.title) for item in known[:HISTORY_SHOWN]]
    more = len(known) - len(titles)
    what = "mentioned" if answer.conversation is not None else "knows"
    low = "; ".join(html(item.title) for item in answer.disliked[-HISTORY_SHOWN:])
    against = f"<br>disliked: {low}" if low else ""
    return f"{what}: {'; '.join(titles) or 'nothing'}{f' and {more} more' if more else ''}{against}"


def _legend(recommenders: Sequence[Recommender], answers: Sequence[Answer]) -> str:
    parts = []
    if any(recommender.is_probability for recommender in recommenders):
        parts.append("Per cent: the probability that the language model gives to the title.")
    if len(answers) > 1:
        parts.append("A blue bar: in this list only.")
    if any(answer.user is not None for answer in answers):
        parts.append("✓: liked in the test part.")
    return f"<p class='legend'>{' '.join(parts)}</p>"


def _import_gradio() -> Any:
    """Import Gradio with its analytics disabled.

    Raises:
        MultDPOError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise MultDPOError(
            f"the page needs Gradio ({error}). Install it by: {install_extra('demo')}"
        ) from error
    return gradio


if __name__ == "__main__":
    sys.exit(main())
