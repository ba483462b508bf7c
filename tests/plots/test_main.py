"""The command line of the figures: files and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_multdpo.plots.__main__ import main
from tests.plots.conftest import MakeRun, set_seconds

MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


@pytest.mark.parametrize("figure", ["training", "bars", "cutoffs", "cost"])
def test_command_writes_a_picture_and_vector_files(
    make_run: MakeRun, figure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("run", n_steps=20)
    set_seconds(folder, range(1, 41))
    assert main([figure, str(folder), "--formats=png,pdf,svg"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(folder / f"{figure}.{suffix}") for suffix in MAGIC]
    for suffix, magic in MAGIC.items():
        assert (folder / f"{figure}.{suffix}").read_bytes().startswith(magic)


def test_same_data_same_file(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("run", n_steps=20)
    for name in ("a", "b"):
        assert (
            main(
                [
                    "training",
                    str(folder),
                    f"--output={tmp_path / 'new' / name}",
                    "--formats=svg,pdf",
                ]
            )
            == 0
        )
    for suffix in ("svg", "pdf"):
        one, other = ((tmp_path / "new" / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats=gif"], "png, pdf, svg"),
        (["--metric=auc"], "not measured"),
        (["--systems=LLMRec mult_dpo,EAS"], "no run is of 'EAS'"),
        (["--output=/proc/none/figure"], "cannot write"),
    ],
)
def test_user_errors_end_with_status_2_and_a_message(
    make_run: MakeRun, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bars", str(make_run("run")), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
