"""Runs a comparison: tuning, members, report. A run that fails does not stop the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO

import psutil  # type: ignore[import-untyped]

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.origin import read_origin
from recbole_multdpo.comparison.plan import Plan, acting, make_plan
from recbole_multdpo.comparison.published import read_published
from recbole_multdpo.comparison.report import write_report
from recbole_multdpo.comparison.request import REQUEST_FILE, Member, Request, System, request_text
from recbole_multdpo.comparison.results import read_results, start_is_kept
from recbole_multdpo.comparison.tuning import FINAL_TEST, Tuned, is_stopped, tune, write_tuning
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runs.folder import (
    CONFIG_FILE,
    RESULT_FILE,
    command,
    is_finished,
    lock_folder,
    read_result,
)
from recbole_multdpo.runs.preflight import check_inputs
from recbole_multdpo.runtime.console import duration
from recbole_multdpo.runtime.durable_files import (
    atomic_folder,
    restore_interrupted,
    write_atomically,
)
from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler
from recbole_multdpo.runtime.reading import read_bytes
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.settings.asked_for import ASKED_FOR
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

INTERRUPTED = (130, 143, -2, -15)  # exit statuses after Ctrl-C and SIGTERM
POLL_SECONDS = 1.0

RunMember = Callable[[list[str]], int]


def run_in_subprocess(
    argv: list[str],
    output: IO[bytes] | None = None,
    stop: Callable[[], bool] | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run the command line in a new process, whose crash or lack of memory stays its own.

    Args:
        argv: the arguments.
        output: gets what it prints, which its run.log has too; None for the console.
        stop: called every `POLL_SECONDS`; the process is terminated when it returns True.
        variables: of the environment, where it has none of these names.

    Returns:
        The exit status.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # the working directory may hold foreign files: nothing is imported from there
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    environment = {**(variables or {}), **os.environ, **own}
    command = [sys.executable, "-m", "recbole_multdpo", *argv]
    with subprocess.Popen(command, env=environment, stdout=output, stderr=output) as child:
        try:
            while stop is not None and child.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_SECONDS)
                if child.poll() is None and stop():
                    child.terminate()
                    break
            return child.wait()
        except KeyboardInterrupt:  # let the run save its checkpoint and exit
            child.terminate()
            child.wait()
            raise


def run_comparison(argv: Sequence[str], run_member: RunMember | None = None) -> int:
    """Tune, run all members without a result, and write tables and report.

    Args:
        argv: the command line; `--resume=FOLDER` runs what is missing in FOLDER.
        run_member: runs a command line and returns its exit status; by default in a new process.

    Returns:
        Exit status: 0 if every member has a result, else 1.

    Raises:
        ConfigError: the settings of a member are wrong; nothing was run.
        KeyboardInterrupt: a member was interrupted; the comparison can be resumed.
    """
    return compare(argv, run_member)[1]


def compare(argv: Sequence[str], run_member: RunMember | None = None) -> tuple[Path, int]:
    """Like `run_comparison`; returns the comparison's folder too."""
    request = read_request(argv)
    is_new = not any(argument.startswith("--resume=") for argument in argv)
    plan = make_plan(request, resumed=not is_new)
    for config in plan.configs.values():
        check_inputs(config)
    if is_new:
        _make_folder(plan.folder)
    lock = lock_folder(plan.folder)
    try:
        if is_new:
            started_by = command(list(argv))
            request = replace(request, auto_dtype=plan.auto_dtype, command=started_by)
            write_atomically(plan.folder / REQUEST_FILE, request_text(request))
            if plan.dtype_choice is not None:
                show(plan.dtype_choice, flush=True)
        return plan.folder, _run_plan(plan, request, run_member)
    finally:
        lock.release()


def _run_plan(plan: Plan, request: Request, run_member: RunMember | None) -> int:
    """Tune, run and report; returns the exit status."""
    runner = Runner(run_member, request.jobs, plan.metric, plan.folder)
    try:
        with SignalHandler():
            tuned = _tune(plan, request, runner)
            failures = _run_members(plan, tuned, runner)
    except Interrupted as interruption:
        interruption.args = (f"{interruption}; continue with --resume={plan.folder}",)
        raise
    finished = [member for member in plan.members if member not in failures]
    _report(finished, failures, tuned, plan, request)
    return 1 if failures else 0


class Runner:
    """Makes runs in their folders, `jobs` at a time; finished ones are skipped."""

    def __init__(
        self, run_member: RunMember | None, jobs: int, metric: str = "", parent: Path = Path()
    ) -> None:
        self._run_member, self._metric, self._parent = run_member, metric, parent
        self.jobs = jobs
        self._told: set[str] = set()  # reasons of failures
        self._telling = Lock()

    def run_all(
        self,
        runs: Mapping[Path, Mapping[str, str]],
        stop: Callable[[Path], bool] | None = None,
    ) -> dict[Path, str]:
        """Make the runs that have no result yet.

        Args:
            runs: folder to settings, key to the value's text.
            stop: takes the folder of a run in progress; True ends it early.

        Returns:
            Folder of each failed run to the reason.

        Raises:
            KeyboardInterrupt: a run was interrupted.
        """
        names = {folder: f"[{n}/{len(runs)}] {folder}" for n, folder in enumerate(runs, 1)}
        if self.jobs == 1:
            reasons = {
                folder: self._run(names[folder], folder, runs[folder], stop) for folder in runs
            }
        else:
            with ThreadPoolExecutor(self.jobs) as pool:
                waiting = {
                    folder: pool.submit(self._run, names[folder], folder, runs[folder], stop)
                    for folder in runs
                }
                try:
                    reasons = {folder: future.result() for folder, future in waiting.items()}
                except KeyboardInterrupt:  # running ones save and exit, the others never start
                    pool.shutdown(wait=False, cancel_futures=True)
                    for child in psutil.Process().children():
                        child.terminate()
                    raise
        return {folder: reason for folder, reason in reasons.items() if reason is not None}

    def _run(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        stop: Callable[[Path], bool] | None,
    ) -> str | None:
        """Make or resume one run; returns the reason of a failure, None for success."""
        if is_finished(folder, tested=settings.get(FINAL_TEST) != "False"):
            show(f"{name}: done already", flush=True)
            return None
        show(name, flush=True)
        if settings["model"] in LANGUAGE_MODELS and (folder / CONFIG_FILE).is_file():
            asked = [f"--{key}={settings[key]}" for key in ASKED_FOR if key in settings]
            if (folder / RESULT_FILE).is_file():  # of a trial, whose settings say that it has none
                asked.append(f"--{FINAL_TEST}=True")
            argv = [f"--resume={folder}", *asked]
        else:  # nothing to resume: not started yet, or one of RecBole's models
            shutil.rmtree(folder, ignore_errors=True)
            argv = [*(f"--{key}={text}" for key, text in settings.items()), f"--run_dir={folder}"]
        said, start = "", time.monotonic()
        if self._run_member is not None:
            status = self._run_member(argv)
        else:
            stop_this = None if stop is None else partial(stop, folder)
            with TemporaryFile() as printed:
                status = run_in_subprocess(argv, printed, stop_this, self._names_at_wandb(folder))
                printed.seek(0)
                said = printed.read().decode("utf-8", errors="replace")
        if is_stopped(folder):
            return "stopped early"
        if status in INTERRUPTED:
            raise KeyboardInterrupt
        if status == 0:
            show(
                f"{name}: {_outcome(folder, self._metric)}{duration(time.monotonic() - start)}",
                flush=True,
            )
            return None
        reason = _last_error(folder / "run.log") or _last_line(said) or f"exit status {status}"
        with self._telling:
            if reason not in self._told:  # a common cause is told once
                show(f"{name} failed: {reason}", sys.stderr, flush=True)
            else:
                show(f"{name} failed for the same reason", sys.stderr, flush=True)
            self._told.add(reason)
        return reason

    def _names_at_wandb(self, folder: Path) -> dict[str, str]:
        """Environment variables of Weights & Biases: a run's group and name there."""
        name = folder.relative_to(self._parent).as_posix()
        return {"WANDB_RUN_GROUP": self._parent.resolve().name, "WANDB_NAME": name}


def _tune(plan: Plan, request: Request, runner: Runner) -> dict[System, Tuned]:
    """Choose settings on the validation part and write the trials."""
    tuned = {}
    for system in plan.systems:
        if plan.spaces[system]:
            show(f"tuning {system.name}: {', '.join(plan.spaces[system])}", flush=True)
            tuned[system] = tune(system, plan, request.trials, runner.run_all, runner.jobs)
            write_tuning(list(tuned.values()), plan.folder)
    return tuned


def _run_members(plan: Plan, tuned: Mapping[System, Tuned], runner: Runner) -> dict[Member, str]:
    """Run every member; returns failed ones to their reasons."""
    folders = {plan.folder / member.folder_name: member for member in plan.members}
    failures: dict[Member, str] = {}
    runs = {}
    for folder, member in folders.items():
        choice = tuned.get(member.system)
        if choice is None:
            runs[folder] = {**plan.settings[member.system], "seed": str(member.seed)}
        elif choice.best is None:
            failures[member] = "no trial of its settings has a validation score"
        else:
            if member.seed == plan.first_seed:
                _reuse_trial(choice.best.folder, folder)
            chosen = acting({**plan.settings[member.system], **choice.best.texts})
            runs[folder] = {**chosen, "seed": str(member.seed)}
    for folder, reason in runner.run_all(runs).items():
        failures[folders[folder]] = reason
    return failures


def _reuse_trial(trial: Path, folder: Path) -> None:
    """Copy the chosen trial, which has the member's settings and seed, unless it is there.

    The copy of a language model is resumed, to be tested. RecBole's models cannot be resumed: they
    are trained again with the same seed, unless the trial, of version 0.1, has its test.
    """
    restore_interrupted(folder)
    if not (folder / RESULT_FILE).is_file():
        with atomic_folder(folder) as copy:
            shutil.copytree(trial, copy, dirs_exist_ok=True)


def _make_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"run_dir={folder} is not empty. Name a new folder, or continue the comparison in it "
            f"with --resume={folder}."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={folder} cannot be made: {error.strerror}.") from error


def _last_error(log: Path) -> str | None:
    """The last error in a run's log, without its time; None if there is none."""
    try:
        lines = read_bytes(log).decode("utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return None
    errors = [line.partition(" ERROR  ")[2] for line in lines if " ERROR  " in line]
    return errors[-1] if errors else None


def _last_line(text: str) -> str | None:
    """The error that ends what a process printed, or its last line; None if there is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = errors or lines
    return last[-1] if last else None


def _outcome(folder: Path, metric: str) -> str:
    """The deciding metric of a finished run on validation, for one line; "" if it has none."""
    try:
        result = read_result(folder / RESULT_FILE)
    except MultDPOError:
        return ""
    score = (result.get("valid_result") or {}).get(metric)
    kept = ", SFT kept" if start_is_kept(result) else ""
    return "" if score is None else f"valid {metric} {score:.4f}{kept}; "


def _report(
    finished: Sequence[Member],
    failures: Mapping[Member, str],
    tuned: Mapping[System, Tuned],
    plan: Plan,
    request: Request,
) -> None:
    for reason in dict.fromkeys(failures.values()):
        names = [member.folder_name for member in failures if failures[member] == reason]
        show(f"failed: {', '.join(names)}: {reason}", sys.stderr)
    if not finished:
        raise MultDPOError(f"no run of the comparison in {plan.folder} succeeded.")
    results = read_results(finished, plan.folder)
    reasons = {member.folder_name: reason for member, reason in failures.items()}
    choices = [choice.sentence for choice in tuned.values()]
    origin = read_origin(finished, plan.folder, request.command)
    published = read_published(finished, plan.folder)
    at = (plan.metric, plan.folder, request.baseline)
    try:
        show(write_report(results, *at, reasons, choices, origin, published))
    except OSError as error:
        raise MultDPOError(
            f"the report cannot be written to {plan.folder}: {error.strerror}. Free space and run "
            f"--resume={plan.folder}."
        ) from error
