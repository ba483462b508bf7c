"""The quick-start notebook, executed from top to bottom in a kernel, on the toy data set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT
from tests.integration.toy import toy_arguments, write_toy

nbformat = pytest.importorskip("nbformat", reason="executing the notebook needs nbclient")
nbclient = pytest.importorskip("nbclient", reason="executing the notebook needs nbclient")
pytest.importorskip("ipykernel", reason="executing the notebook needs ipykernel")
pytestmark = pytest.mark.integration
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def toy_settings(folder: Path) -> str:
    """Code in place of the notebook's cell of settings: the toy data set and a toy model."""
    arguments = toy_arguments(write_toy(folder / "data"), folder / "run")
    shared = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    common = ("data_path", "load_col", "topk", "valid_metric", "device")
    taken = ("model", "dataset", "run_dir", *common)
    small = {name: text for name, text in shared.items() if name not in taken}
    dataset = {name: text for name, text in shared.items() if name in common} | {"dataset": "toy"}
    return f"small = {small}\ndataset = {dataset}\nliked = ['Red Night 0', 'Blue River 0']"


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = (cell for cell in notebook.cells if cell.source.startswith("small = "))
    settings.source = toy_settings(tmp_path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= shown
    for run in ("mult_dpo", "ease"):
        assert (tmp_path / "runs" / run / "result.json").is_file()
        assert "test" in (tmp_path / "runs" / run / "run.log").read_text()
    tables = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert any("reference_rank" in table for table in tables)  # the explanation


def test_committed_notebook_has_no_error_and_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text
    assert "/tmp/" not in text and "/home/" not in text
