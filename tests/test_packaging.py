"""The package as others get it: wheel, source archive, metadata, and an empty folder to run in."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import recbole_multdpo
from docs.generate.addresses import absolute_links

ROOT = Path(recbole_multdpo.__file__).parents[1]
PROPERTY_FILES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "properties").rglob("*.yaml")
)


def run_python(*args: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in `cwd` that finds the package under `path`."""
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder with the source archive, and the wheel built from nothing but that archive."""
    folder = tmp_path_factory.mktemp("dist")
    done = run_python(
        "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory) -> Path:
    """The wheel's files, as an installer lays them down."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.integration
def test_wheel_holds_every_property_file_unchanged(unpacked: Path) -> None:
    assert "properties/overall.yaml" in PROPERTY_FILES
    for name in PROPERTY_FILES:
        assert (unpacked / "recbole_multdpo" / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.integration
def test_the_image_copies_all_that_a_build_needs(tmp_path: Path) -> None:
    """The `COPY` lines of the Dockerfile, and a wheel from nothing else."""
    copied = re.findall(r"^COPY (.+) (/src\S*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert copied
    for names, target in copied:
        for name in names.split():
            source, place = ROOT / name, tmp_path / target.lstrip("/")
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place = place / source.name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"))
    done = run_python(*build, str(tmp_path / "src"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_wheel_holds_the_experiments(unpacked: Path, tmp_path: Path) -> None:
    names = {path.name for path in (ROOT / "experiments").glob("*.yaml")}
    shipped = {path.name for path in (unpacked / "recbole_multdpo" / "experiments").glob("*.yaml")}
    assert names == shipped and "losses.yaml" in names
    done = run_python("-m", "recbole_multdpo", "--help", cwd=tmp_path, path=unpacked)
    assert done.returncode == 0 and "usage: python -m recbole_multdpo --model" in done.stdout
    assert str(unpacked / "recbole_multdpo" / "properties") in done.stdout


@pytest.mark.integration
def test_wheel_holds_the_package_and_nothing_else(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {
        "recbole_multdpo",
        f"recbole_multdpo-{recbole_multdpo.__version__}.dist-info",
    }
    assert (unpacked / "recbole_multdpo" / "py.typed").is_file()
    modules = {path.relative_to(ROOT) for path in (ROOT / "recbole_multdpo").rglob("*.py")}
    assert {path.relative_to(unpacked) for path in unpacked.rglob("*.py")} == modules


@pytest.mark.integration
def test_source_archive_holds_what_a_developer_needs(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "run_recbole_multdpo.py", "tests/test_packaging.py"} <= names
    assert {"CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"} <= names
    assert {"docs/README.md", "docs/settings.md", "docs/quickstart.ipynb"} <= names
    assert {"docs/generate/settings.py", "docs/images/data_flow.svg"} <= names
    assert any(name.startswith("experiments/") for name in names)
    assert {"hatch_build.py", "docs/generate/addresses.py", "mkdocs.yml"} <= names
    assert set(PROPERTY_FILES) <= names


@pytest.mark.integration
def test_metadata_bounds_what_recbole_depends_on(unpacked: Path) -> None:
    metadata = Parser().parsestr(next(unpacked.glob("*.dist-info/METADATA")).read_text())
    assert metadata["Version"] == recbole_multdpo.__version__
    assert metadata["Requires-Python"] == "<3.14,>=3.10"
    requirements = metadata.get_all("Requires-Dist")
    for name, bound in {"torch": "<2.14", "pandas": "<3", "transformers": "<6"}.items():
        assert any(re.match(rf"{name}.*{re.escape(bound)}", entry) for entry in requirements)
    assert metadata["Project-URL"].startswith("Paper, ")
    # pip must not meet RecBole's ray<=2.6.3 on a Python for which it has no release.
    assert "recbole==1.2.1; python_version < '3.12'" in requirements


@pytest.mark.integration
def test_the_description_has_no_link_that_leads_nowhere(unpacked: Path) -> None:
    metadata = Parser().parsestr(next(unpacked.glob("*.dist-info/METADATA")).read_text())
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert text.startswith("# recbole_multdpo") and "](docs/" not in text and "](../" not in text
    renderer = pytest.importorskip("readme_renderer.markdown", reason="the docs extra has it")
    with_address = absolute_links((ROOT / "README.md").read_text(), "https://github.com/a/b")
    for page in map(renderer.render, (text, with_address)):  # as PyPI renders it
        assert page and "<table>" in page
    assert 'href="https://github.com/a/b/blob/main/docs/' in page


@pytest.mark.integration
def test_installed_wheel_runs_in_an_empty_folder(unpacked: Path, tmp_path: Path) -> None:
    command = "import recbole_multdpo as r; r.run(model='EASE', dataset='ml-100k', run_dir='run')"
    done = run_python("-c", command, cwd=tmp_path, path=unpacked)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_result"]["ndcg@10"] > 0


def test_compat_table_from_the_command_line(tmp_path: Path) -> None:
    done = run_python("-m", "recbole_multdpo.compat", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recbole" in done.stdout and "checkpoint loading" in done.stdout
    assert list(tmp_path.iterdir()) == []
