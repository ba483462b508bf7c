"""No code from data: what the package never calls, and archives that would leave their folder."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

import pytest
from recbole.utils.url import extract_zip

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "recbole_multdpo").rglob("*.py"))
# calls that run code from data, or a shell, or unpack what they are given
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
    "torch.load",
    "joblib.load",
    "pd.read_pickle",
    "shelve.open",
    "yaml.unsafe_load",
    "yaml.full_load",
    "tarfile.open",
    "shutil.unpack_archive",
}
FORBIDDEN_METHODS = {"extractall", "extract"}
# the one place: RecBole's own checkpoints, and only those that this process has written
ALLOWED = {("patches.py", "self._torch.load")}


def found_in(source: str) -> set[str]:
    """Forbidden calls, unsafe keywords and YAML without a loader of ours in a module's source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        is_load = name.endswith("torch.load")
        if name in FORBIDDEN or name.rpartition(".")[2] in FORBIDDEN_METHODS or is_load:
            found.add(name)
        if options.get("shell") == "True" or options.get("allow_pickle") == "True":
            found.add(name)
        if options.get("trust_remote_code") == "True":
            found.add(name)
        if name == "np.load" and options.get("allow_pickle") != "False":
            found.add(name)
        if name == "yaml.load" and options.get("Loader") != "SettingsLoader":
            found.add(name)
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.name)
def test_nothing_runs_code_from_data(file: Path) -> None:
    allowed = {name for owner, name in ALLOWED if owner == file.name}
    assert found_in(file.read_text(encoding="utf-8")) <= allowed


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "torch.load(file)",
        "self._torch.load(file)",
        "np.load(file)",
        "subprocess.run(text, shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds(source: str) -> None:
    """Control."""
    assert found_in(source)


def test_an_archive_cannot_leave_its_folder(tmp_path: Path) -> None:
    """RecBole unpacks what it downloads: parents, absolute paths and links in it lead nowhere."""
    archive, folder = tmp_path / "data.zip", tmp_path / "unpacked"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside", "x")
        file.writestr(f"{tmp_path}/absolute", "x")
        file.writestr("a/../../../outside", "x")
        file.writestr(link, str(tmp_path))
    extract_zip(str(archive), str(folder))
    outside = {path.name for path in tmp_path.iterdir()} - {"data.zip", "unpacked"}
    assert not outside
    assert not any(path.is_symlink() for path in folder.rglob("*"))
