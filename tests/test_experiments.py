"""The experiments that the repository ships: each is a comparison whose settings all pass."""

import re
from pathlib import Path

import pytest

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
COMMAND = "run_recbole_multdpo.py"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_experiment_can_be_planned(file: Path, tmp_path: Path) -> None:
    plan = make_plan(read_request([f"--experiment={file}", f"--run_dir={tmp_path / 'new'}"]))
    assert plan.members and not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_first_lines_say_what_to_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = file.read_text().partition("\ndataset:")[0].splitlines()
    lines = [line[1:].split() for line in head]
    commands = [words[2:] for words in lines if words[:2] == ["python", COMMAND]]
    (arguments,) = commands
    assert f"--experiment=experiments/{file.name}" in arguments
    monkeypatch.chdir(FOLDER.parent)
    run_dir = read_request(arguments).run_dir
    # folders that the other lines speak of are that of the command
    others = {word.rstrip(".,") for words in lines for word in words if "runs/" in word}
    folders = {word.rpartition("=")[2].removeprefix("runs/").split("/")[0] for word in others}
    assert run_dir is not None and folders == {run_dir.removeprefix("runs/")}


def test_the_readme_lists_every_file_and_no_other() -> None:
    text = (FOLDER / "README.md").read_text()
    listed = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == [file.name for file in FILES]
    named = set(re.findall(r"experiments/([\w.]+\.yaml)", text))
    assert named and named <= set(listed)


def test_a_wrong_setting_would_be_found(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text((FOLDER / "figure1_beta.yaml").read_text().replace("beta:", "bta:"))
    with pytest.raises(ConfigError, match="bta"):
        make_plan(read_request([f"--experiment={broken}", f"--run_dir={tmp_path / 'new'}"]))


def test_there_is_one_for_every_figure() -> None:
    names = " ".join(file.stem for file in FILES)
    assert all(f"figure{number}" in names for number in (1, 2, 3, 4)) and "losses" in names
