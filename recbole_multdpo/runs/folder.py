"""One folder per run: settings, log, TensorBoard events, checkpoints and the result.

RecBole writes ./log, ./log_tensorboard and ./saved into the working directory. Here everything goes
into the run's folder, and nothing else is written. Only rank 0 writes and logs.
"""

import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import colorlog  # type: ignore[import-untyped]
import numpy as np
import psutil  # type: ignore[import-untyped]
import recbole.trainer.trainer as recbole_trainer
import torch
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from recbole_multdpo import __version__
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runs.logs import LOGS, rewind_logs
from recbole_multdpo.runs.per_user import FILE_NAME as PER_USER_FILE
from recbole_multdpo.runs.per_user import START_FILE
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import DETAIL
from recbole_multdpo.runtime.durable_files import restore_all_interrupted, write_atomically
from recbole_multdpo.runtime.reading import fitted, read_json, readable
from recbole_multdpo.runtime.shown_text import terminal
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.protocol import PROTOCOL, deviations, named_protocol
from recbole_multdpo.settings.text import dump_settings

_FORMAT = "%(asctime)s %(levelname)s  %(message)s"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CONFIG_FILE, LOG_FILE, RESULT_FILE = "config.yaml", "run.log", "result.json"
LOCK_FILE = ".lock"
TEST = "test_result"  # entry of a result that a run without a test lacks
_PACKAGES = ("torch", "transformers", "peft", "recbole", "numpy", "pandas", "scipy")


class RunFolder:
    """The folder of one run; while it is open, log and TensorBoard events are written to it.

    Use it as a context manager, or call `close`, which restores the root logger and RecBole's
    TensorBoard function and closes their files. A folder opened while another one is open must be
    closed first.

    Attributes:
        path: the folder.
        config_file: the resolved settings, readable with `--config_files`.
        log_file: the log, without colours.
        tensorboard_dir: TensorBoard's event files.
        checkpoints_dir: the checkpoints; also `config["checkpoint_dir"]`.
        result_file: the result, written at the end.
        refused: set it if the run did not begin, for `close` to remove the folder.
    """

    def __init__(self, path: Path, config: Config, lock: FileLock | None = None):
        """Open an existing folder and start writing log and events; see `create_run_folder`."""
        self.path = path
        self._lock = lock
        self.refused = False
        self.config_file = path / CONFIG_FILE
        self.log_file = path / LOG_FILE
        self.tensorboard_dir = path / "tensorboard"
        self.checkpoints_dir = path / "checkpoints"
        self.result_file = path / RESULT_FILE
        self._config = config
        self._writer: Any = None
        self._handlers: list[logging.Handler] = []
        self._make()

    def _make(self) -> None:
        self._tensorboard_before = recbole_trainer.get_tensorboard
        self._root_level = logging.getLogger().level
        try:
            processes.broadcast_from_main(self._fill)
        except OSError as error:
            raise MultDPOError(_cannot_write(self.path, error)) from error
        if not processes.is_main_process():
            self._handlers = [logging.NullHandler()]
            logging.getLogger().addHandler(self._handlers[0])
            logging.getLogger().setLevel(logging.CRITICAL)
        self._config["checkpoint_dir"] = str(self.checkpoints_dir)
        # RecBole's Trainer looks this name up in its own module.
        recbole_trainer.get_tensorboard = self.tensorboard

    def _fill(self) -> None:
        self.tensorboard_dir.mkdir(exist_ok=True)
        self.checkpoints_dir.mkdir(exist_ok=True)
        if not self.is_finished:  # a finished run keeps its settings
            write_atomically(self.config_file, dump_settings(self._config.to_dict()))
        self._start_logging()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # The console shows the error anyway, as a message or with its traceback.
            is_bug = not isinstance(error, KeyboardInterrupt | MultDPOError)
            trouble = (type(error), error, trace) if is_bug else None
            reason = (str(error) or type(error).__name__,)
            record = logging.LogRecord(
                "root", logging.ERROR, __file__, 0, "the run stopped: %s", reason, trouble
            )
            self._handlers[-1].handle(record)
        self.close()

    def close(self) -> None:
        """Close log and events and restore RecBole and the root logger; repeated calls are safe."""
        if recbole_trainer.get_tensorboard == self.tensorboard:
            recbole_trainer.get_tensorboard = self._tensorboard_before
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        root = logging.getLogger()
        if self._handlers:
            root.setLevel(self._root_level)
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        self._handlers = []
        if self._lock is not None:
            self._lock.release()
        if self.refused and processes.is_main_process():
            shutil.rmtree(self.path, ignore_errors=True)

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Truncate the logs to their sizes at a checkpoint; {} removes them.

        Unfinished files of a killed run are removed too.

        Raises:
            MultDPOError: a file cannot be written.
        """
        try:
            restore_all_interrupted(self.path)
            rewind_logs(self.path, sizes)
        except OSError as error:
            raise MultDPOError(_cannot_write(self.path, error)) from error

    def tensorboard(self, logger: Any = None) -> Any:
        """The run's only SummaryWriter; RecBole passes its logger, which is unused."""
        if not processes.is_main_process():
            return _NoTensorBoard()
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.tensorboard_dir))
        return self._writer

    def write_result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json atomically.

        Args:
            result: results of the run: `valid_result`, `test_result` (metric name, such as ndcg@10,
                to value), `num_users_evaluated`, `num_items`, `seconds` (stage to seconds), and any
                further entries. numpy numbers become plain ones; a value that is not finite becomes
                null, as JSON has no NaN.

        Returns:
            Content of the file: `result` with model, dataset, loss, seed, peak memory, versions,
            hardware and the command.

        Raises:
            MultDPOError: the file cannot be written, for example because the disk is full.
        """
        settings = self._config.settings
        complete = {
            "model": self._config["model"],
            "dataset": self._config["dataset"],
            "loss": settings.loss if settings else None,
            "seed": self._config["seed"],
            **self._protocol(),
            **result,
            "processes": processes.world_size(),
            "peak_memory_mb": peak_memory_mb(),
            "versions": versions(),
            "hardware": hardware(),
            "command": command(self._config.argv),
        }
        written: dict[str, Any] = plain_json(complete)
        text = json.dumps(written, indent=2, allow_nan=False) + "\n"
        try:
            processes.broadcast_from_main(lambda: write_atomically(self.result_file, text))
        except OSError as error:
            raise MultDPOError(_cannot_write(self.result_file, error)) from error
        return written

    @property
    def is_finished(self) -> bool:
        """True if nothing is left to do, see `is_finished`."""
        return is_finished(self.path, tested=self._config["final_test"])

    def seconds_before(self) -> dict[str, float]:
        """Wall seconds by stage of the run up to a test that is made later; {} for other runs."""
        file = self.result_file
        return dict(read_result(file).get("seconds", {})) if file.is_file() else {}

    def _protocol(self) -> dict[str, Any]:
        """The named protocol and what differs from it; {} without one."""
        name, final = self._config[PROTOCOL], self._config.final_config_dict
        return {PROTOCOL: {"name": name, "deviations": deviations(final)}} if name else {}

    def _start_logging(self) -> None:
        """Send the root logger, which RecBole uses, to the console and to run.log."""
        root = logging.getLogger()
        level = getattr(logging, str(self._config["state"]).upper())
        # the log has all there is to say, whatever the console shows
        in_file = min(level, DETAIL)
        console = logging.StreamHandler()
        colour = _ColouredFormatter("%(log_color)s" + _FORMAT, "%d %b %H:%M:%S")
        is_terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
        console.setFormatter(colour if is_terminal else _PlainFormatter(_FORMAT, "%d %b %H:%M:%S"))
        file = logging.FileHandler(self.log_file, encoding="utf-8")
        file.setFormatter(_PlainFormatter(_FORMAT))
        self._handlers = [console, file]
        for handler, least in zip(self._handlers, (level, in_file), strict=True):
            handler.setLevel(least)
            root.addHandler(handler)
        root.setLevel(in_file)


@contextmanager
def no_tensorboard() -> Iterator[None]:
    """Keep RecBole's trainers from writing TensorBoard events inside the block."""
    before, recbole_trainer.get_tensorboard = (
        recbole_trainer.get_tensorboard,
        lambda logger=None: _NoTensorBoard(),
    )
    try:
        yield
    finally:
        recbole_trainer.get_tensorboard = before


class _NoTensorBoard:
    """Replacement for SummaryWriter that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _PlainFormatter(logging.Formatter):
    """Remove the colours that RecBole puts into its messages."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal(_ANSI.sub("", super().format(record)), lines=True)


class _ColouredFormatter(colorlog.ColoredFormatter):
    """Keep colours, RecBole's and the level's; escape any other control sequence."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        colours = [*_COLOUR.findall(text), ""]
        parts = [terminal(part, lines=True) for part in _COLOUR.split(text)]
        return "".join(map("".join, zip(parts, colours, strict=True)))


def create_run_folder(config: Config) -> RunFolder:
    """Create the run's folder, save the settings in it and send log and events there.

    The folder is `run_dir`, or `resume` for a resumed run, or else a new one under `checkpoint_dir`
    named by model, data set, loss (LLMRec only) and time.

    Args:
        config: the run's settings; `config["checkpoint_dir"]` is set to the folder's checkpoints.

    Returns:
        The open folder. The warnings about settings are in its log.

    Raises:
        ConfigError: run_dir is not empty and resume does not name it, or it cannot be created; or
            another process is using the folder.
        MultDPOError: the folder cannot be written to.
    """
    locks: list[FileLock] = []  # the main process takes it for all

    def make() -> Path:
        path, lock = _make_folder(config)
        locks.append(lock)
        return path

    try:
        folder = RunFolder(processes.broadcast_from_main(make), config, *locks)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    logger = logging.getLogger()
    logger.log(DETAIL, "command: %s", command(config.argv))
    logger.info("folder: %s", folder.path)
    protocol = named_protocol(config.final_config_dict)
    if protocol:
        logger.info("protocol: %s", protocol)
    if config.dtype_choice is not None:
        logger.info("%s", config.dtype_choice)
    for note in config.notes:
        logger.info("%s", note)
    for warning in config.warnings:
        logger.warning("%s", warning)
    return folder


def _make_folder(config: Config) -> tuple[Path, FileLock]:
    """Create or find the run's folder and lock it against other processes."""
    run_dir, resume = config["run_dir"], config["resume"]
    if resume is not None:
        if run_dir is not None and Path(run_dir).resolve() != Path(resume).resolve():
            raise ConfigError(
                f"run_dir={run_dir} and resume={resume} differ. A run is continued in its own "
                "folder: leave run_dir out."
            )
        _refuse_links(Path(resume))
        return Path(resume), lock_folder(Path(resume))
    try:
        if run_dir is None:
            path = _new_folder(Path(config["checkpoint_dir"]), _run_name(config))
            return path, lock_folder(path)
        path = Path(run_dir)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        place = f"run_dir={run_dir}" if run_dir is not None else "the run folder"
        raise ConfigError(
            f"{place} cannot be made: {error.strerror}: {error.filename}. "
            "Name a folder that can be written: --run_dir=PATH."
        ) from error
    lock = lock_folder(path)  # first: of two runs that find it empty, only one gets it
    if any(entry.name != LOCK_FILE for entry in path.iterdir()):
        lock.release()
        raise ConfigError(
            f"run_dir={run_dir} is not empty. Name a new folder, or continue the run in it "
            f"with --resume={run_dir}."
        )
    return path, lock


def _refuse_links(folder: Path) -> None:
    """Refuse to write through links: in a folder from somebody else they could name any file.

    Raises:
        ConfigError: a file that a run appends to or replaces is a link.
    """
    written = (LOCK_FILE, LOG_FILE, PER_USER_FILE, START_FILE, *LOGS)
    found = [name for name in written if (folder / name).is_symlink()]
    if found:
        raise ConfigError(
            f"{folder / found[0]} is a link, and a run writes only into its own files. Replace "
            "it by the file that it points to."
        )


def lock_folder(path: Path) -> FileLock:
    """Lock a folder for this process; the system releases the lock when the process ends.

    Raises:
        ConfigError: another process, or another run of this one, holds the lock.
        MultDPOError: the folder cannot be written to.
    """
    lock = FileLock(path / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{path} is in use by another run that has not ended. Wait for it, or name another "
            "folder: --run_dir=PATH."
        ) from None
    except OSError as error:
        raise MultDPOError(_cannot_write(path, error)) from error
    return lock


def is_in_use(path: Path) -> bool:
    """True if another run holds the lock of the folder, or it cannot be written to."""
    try:
        lock_folder(path).release()
    except MultDPOError:
        return True
    return False


def _run_name(config: Config) -> str:
    loss = [config.settings.loss] if config.settings else []
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return "-".join([config["model"], config["dataset"], *loss, time])


def _new_folder(parent: Path, name: str) -> Path:
    """Create a new folder; two runs never get the same one, as mkdir fails if it exists."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


class _Lists(TypedDict):
    file: str
    users: int
    shortest: int
    longest: int
    users_with_target: int
    valid_ratio: float
    fingerprint: str


class _Result(TypedDict, total=False):
    """Types of the entries of `result.json` that are read."""

    model: str
    dataset: str
    loss: str | None
    seed: int
    valid_result: dict[str, float | None] | None
    test_result: dict[str, float | None]
    num_users_evaluated: int
    num_items: int
    test_set: str
    candidate_lists: _Lists
    fingerprints: dict[str, str]
    settings_hash: str
    model_files: dict[str, str]
    seconds: dict[str, float]
    versions: dict[str, str | None]
    grounding_by: Literal["base", "tuned"]
    grounding_gamma: float
    assistant: dict[str, Any]
    sft_teacher: str
    refit_epochs: dict[str, int]


_RESULT: TypeAdapter[_Result] = TypeAdapter(_Result)


def read_result(file: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read the result that `RunFolder.write_result` wrote.

    Args:
        file: a run's `result.json`.
        needed: entries that it must have.

    Raises:
        MultDPOError: the file is missing or damaged, or lacks an entry.
    """
    with readable(file, "Remove it and resume the run to write it again.", MultDPOError):
        result: dict[str, Any] = fitted(_RESULT, read_json(file))
        missing = [name for name in needed if name not in result]
        ends_early = TEST in missing and "valid_result" in result
        if missing and not ends_early:
            raise ValueError(f"there is no {missing[0]}")
    if ends_early:
        raise MultDPOError(
            f"the run in {file.parent} ended after validation (final_test=False): it has no test "
            f"and keeps no model. Run --resume={file.parent} --final_test=True to make them."
        )
    return result


def is_finished(folder: Path, *, tested: bool = True) -> bool:
    """True if a run has its result.

    Args:
        folder: the run.
        tested: the result is complete only with a test, see `final_test`.

    Raises:
        MultDPOError: the result is damaged.
    """
    file = folder / RESULT_FILE
    return file.is_file() and (not tested or TEST in read_result(file))


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"cannot write {path}: {error.strerror or error}. "
        "Free space or name a folder that can be written: --run_dir=PATH."
    )


def plain_json(value: Any) -> Any:
    """Convert to plain JSON data: numpy and torch numbers to Python's, non-finite ones to None."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic | torch.Tensor):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def command(argv: list[str]) -> str:
    """Shell command that started the run, or has the same effect.

    Args:
        argv: the run's arguments. They may differ from those of the process, for example if a
            Python program called the run.
    """
    if processes.world_size() > 1:
        per_node = os.environ.get("LOCAL_WORLD_SIZE") or str(processes.world_size())
        launcher = ["torchrun", "--nproc_per_node", per_node]
        return shlex.join([*launcher, "-m", "recbole_multdpo", *argv])
    if argv == sys.argv[1:]:
        return shlex.join(sys.orig_argv)
    return shlex.join(["python", "-m", "recbole_multdpo", *argv])


def peak_memory_mb() -> dict[str, float]:
    """Peak memory of this process in MiB: `rss`, and `cuda` (allocated) if a GPU was used."""
    peak = {"rss": _peak_rss_bytes() / 2**20}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def _peak_rss_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str | None]:
    """Versions of Python, this package and its main dependencies; None if not installed."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "recbole_multdpo": __version__,
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """CPU model, cores available to this process, torch's threads, memory in MiB, and GPUs."""
    affinity = getattr(os, "sched_getaffinity", None)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_mb": round(psutil.virtual_memory().total / 2**20),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()
