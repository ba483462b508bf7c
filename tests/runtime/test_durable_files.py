"""Files and folders appear whole or not at all, kills at the worst moments included."""

import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest

from recbole_multdpo.runtime.durable_files import (
    atomic_folder,
    restore_all_interrupted,
    restore_interrupted,
    write_atomically,
)


def write_folder(folder: Path, content: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "content").write_text(content)


def content(folder: Path) -> str:
    return (folder / "content").read_text()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_atomically(file, "old")

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]  # no temporary file stays
    monkeypatch.undo()
    write_atomically(file, "new")
    assert file.read_text() == "new"


def test_others_may_read_the_files(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_folder_replaces_an_older_one(tmp_path):
    target = tmp_path / "deep" / "target"
    write_folder(target, "old")
    (target / "stale").touch()
    write_folder(target, "new")
    assert content(target) == "new" and os.listdir(target) == ["content"]
    assert os.listdir(target.parent) == ["target"]


def test_a_failure_leaves_the_older_folder(tmp_path):
    write_folder(tmp_path / "target", "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "target") as temporary:
        (temporary / "content").write_text("half")
        raise KeyboardInterrupt
    assert content(tmp_path / "target") == "old" and os.listdir(tmp_path) == ["target"]


def test_a_failing_rename_puts_the_older_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "target", "old")
    rename = Path.rename

    def fail_for_the_new_one(path, to):
        if path.suffix == ".tmp":
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="no"):
        write_folder(tmp_path / "target", "new")
    assert content(tmp_path / "target") == "old" and os.listdir(tmp_path) == ["target"]


def test_two_processes_that_write_the_same_folder(tmp_path, monkeypatch):
    """The other one's folder appears between our two renames: it stays, nothing else does."""
    write_folder(tmp_path / "target", "old")
    rename = Path.rename

    def rename_and_be_overtaken(self, other):
        rename(self, other)
        if self.name == "target":
            self.mkdir()
            (self / "content").write_text("theirs")

    monkeypatch.setattr(Path, "rename", rename_and_be_overtaken)
    with pytest.raises(OSError):
        write_folder(tmp_path / "target", "ours")
    assert content(tmp_path / "target") == "theirs" and os.listdir(tmp_path) == ["target"]


def _killed_at(moment: str, target: Path) -> None:
    """Replace `target`, and be killed before, between or after the two renames."""
    rename = Path.rename
    n_renames = 0

    def rename_until(self, other):
        nonlocal n_renames
        if n_renames == {"before": 0, "between": 1, "after": 2}[moment]:
            os.kill(os.getpid(), signal.SIGKILL)
        n_renames += 1
        rename(self, other)
        if moment == "after" and n_renames == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = rename_until  # type: ignore[method-assign]
    write_folder(target, "new")


@pytest.mark.parametrize(
    ("moment", "expected"), [("before", "old"), ("between", "old"), ("after", "new")]
)
def test_a_kill_at_any_rename_loses_nothing(tmp_path, moment, expected):
    target = tmp_path / "target"
    write_folder(target, "old")
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(moment, target))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert target.exists() == (moment != "between") and len(os.listdir(tmp_path)) == 2
    restore_interrupted(target)
    assert content(target) == expected and os.listdir(tmp_path) == ["target"]


def test_nothing_to_restore(tmp_path):
    restore_interrupted(tmp_path / "target")
    assert os.listdir(tmp_path) == []


def test_all_leftovers_of_a_folder_are_cleared_and_nothing_else(tmp_path):
    """A file and two folders were being written; hidden files of others stay."""
    (tmp_path / ".result.json.abc.tmp").write_text("{")
    (tmp_path / ".model.1a.tmp").mkdir()
    (tmp_path / ".best.2b.old").mkdir()
    (tmp_path / ".best.2b.old" / "content").write_text("moved aside")
    for name in (".lock", "result.json", ".hidden"):
        (tmp_path / name).touch()
    restore_all_interrupted(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", ".lock", "best", "result.json"]
    assert content(tmp_path / "best") == "moved aside"
    restore_all_interrupted(tmp_path / "absent")


def _waits_inside(target: Path, ready, go_on) -> None:
    with atomic_folder(target) as temporary:
        (temporary / "content").write_text("theirs")
        ready.set()
        go_on.wait(60)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    """A living writer's folder, a folder of another name, a file and a link stay."""
    context = multiprocessing.get_context("fork")
    ready, go_on = context.Event(), context.Event()
    living = context.Process(target=_waits_inside, args=(tmp_path / "target", ready, go_on))
    living.start()
    assert ready.wait(60)
    (of_living,) = os.listdir(tmp_path)
    killed_ready = context.Event()
    killed = context.Process(
        target=_waits_inside, args=(tmp_path / "target", killed_ready, context.Event())
    )
    killed.start()
    assert killed_ready.wait(60)
    killed.kill()
    killed.join()
    (of_killed,) = {*os.listdir(tmp_path)} - {of_living}
    for name in (".target.notes.tmp", ".targets.0123456789ab.tmp", ".x.target.0123456789ab.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".target.00123456789a.tmp").write_text("a file")
    (tmp_path / ".target.abcdefabcdef.tmp").symlink_to(tmp_path / ".target.notes.tmp")
    before = {*os.listdir(tmp_path)}
    write_folder(tmp_path / "target", "mine")
    assert {*os.listdir(tmp_path)} == before - {of_killed} | {"target"}
    go_on.set()
    living.join()
    assert living.exitcode == 0 and content(tmp_path / "target") == "theirs"
    assert {*os.listdir(tmp_path)} == before - {of_killed, of_living} | {"target"}
