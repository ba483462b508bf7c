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
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_multdpo.errors import MultDPOError, install_extra
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
HISTORY_SHOWN = 8
STYLE = """
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(15em, 1fr)); gap: 1em; }
.run { border: 1px solid #d4d4d8; border-radius: .5em; padding: .8em 1em; background: #fff; }
.run, .run * { color: #18181b; }
.run h3 { margin: 0; font-size: 1.05em; }
.run .about { font-size: .85em; color: #52525b; margin: .2em 0 .8em; }
.run ol { padding-left: 1.8em; margin: 0; list-style: decimal; }
.run li { padding: .15em 0; }
.run .score { float: right; color: #52525b; font-variant-numeric: tabular-nums; }
.run .alone { border-left: .25em solid #2563eb; padding-left: .4em; }
.run .hit::after { content: " \\2713"; color: #15803d; font-weight: bold; }
.run .problem { color: #b91c1c; white-space: pre-wrap; }
.legend { font-size: .85em; margin-top: .8em; }
"""


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
            theme=gr.themes.Default(font="sans-serif", font_mono="monospace"),
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
    turns = "One message per line, begun by “user:” or “assistant:”"
    tabs = [
        *([("Liked titles", "titles", "Titles, one per line", 4, _for_titles)] * (False in kinds)),
        *([("Conversation", "talk", turns, 4, _for_talk)] * (True in kinds)),
        ("User of the data set", "user", "User id, as in the .inter file", 1, _for_user),
    ]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        k = gr.Slider(1, 20, value=10, step=1, label="Recommendations", render=False)
        answers = gr.HTML(render=False)
        for heading, name, label, lines, query in tabs:
            with gr.Tab(heading):
                text = gr.Textbox(label=label, lines=lines, elem_id=name)
                button = gr.Button("Recommend", variant="primary", elem_id=f"ask_{name}")
                button.click(partial(_answers, recommenders, query), [text, k], answers)
        k.render()
        answers.render()
    return page


def _answers(
    recommenders: Sequence[Recommender],
    query: Callable[[str, int], Callable[[Recommender], Answer]],
    text: str,
    k: int,
) -> str:
    return side_by_side(recommenders, query(text, k))


def _for_titles(text: str, k: int) -> Callable[[Recommender], Answer]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lambda recommender: recommender.for_titles(lines, k)


def _for_talk(text: str, k: int) -> Callable[[Recommender], Answer]:
    messages = parse_turns([line for line in text.splitlines() if line.strip()])
    return lambda recommender: recommender.for_conversation(messages, k)


def _for_user(text: str, k: int) -> Callable[[Recommender], Answer]:
    return lambda recommender: next(recommender.for_users([text.strip()], k))


def side_by_side(recommenders: Sequence[Recommender], ask: Callable[[Recommender], Answer]) -> str:
    """A column per run with its answer or error, as HTML."""
    answers: list[Answer | str] = []
    for recommender in recommenders:
        try:
            answers.append(ask(recommender))
        except MultDPOError as error:
            answers.append(str(error))
    lists = [[i.id for i in a.recommendations] for a in answers if not isinstance(a, str)]
    columns = [
        _column(recommender, answer, lists)
        for recommender, answer in zip(recommenders, answers, strict=True)
    ]
    legend = "" if not lists else _legend(answers, len(lists))
    return f"<div class='runs'>{''.join(columns)}</div>{legend}"


def _column(recommender: Recommender, answer: Answer | str, lists: list[list[str]]) -> str:
    run = recommender.run
    metric = run.config["valid_metric"].lower()
    value = run.result["test_result"].get(metric)
    about = f"{run.config['dataset']}" + ("" if value is None else f", test {metric} {value:.3f}")
    if isinstance(answer, str):
        body = f"<p class='problem'>{html(answer)}</p>"
    else:
        rows = []
        for item in answer.recommendations:
            alone = len(lists) > 1 and sum(item.id in ids for ids in lists) == 1
            classes = [*(["alone"] if alone else []), *(["hit"] if item.in_test else [])]
            rows.append(
                f"<li><span class='score'>{item.score:.2f}</span>"
                f"<span class='{' '.join(classes)}'>{html(item.title)}</span></li>"
            )
        body = f"<p class='about'>{_known(answer)}</p><ol>{''.join(rows)}</ol>"
    heading = f"<h3>{html(run.name)}</h3><p class='about'>{html(about)}</p>"
    return f"<section class='run'>{heading}{body}</section>"


def _known(answer: Answer) -> str:
    titles = [html(item.title) for item in answer.history[:HISTORY_SHOWN]]
    more = len(answer.history) - len(titles)
    what = "mentioned" if answer.conversation is not None else "knows"
    return f"{what}: {'; '.join(titles) or 'nothing'}{f' and {more} more' if more else ''}"


def _legend(answers: Sequence[Answer | str], n_lists: int) -> str:
    parts = ["Scores are log-probabilities (nats) of language models, own units of other models."]
    if n_lists > 1:
        parts.append("A blue bar: in this list only.")
    if any(not isinstance(answer, str) and answer.user is not None for answer in answers):
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
