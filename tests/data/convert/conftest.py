"""Fixtures that run the converter on small handmade files."""

import gzip
import json
from pathlib import Path

import pytest

from recbole_multdpo.data.convert.__main__ import main
from recbole_multdpo.data.item_text import read_item_file


class Converted:
    """The files of a converted data set, as rows of text."""

    def __init__(self, folder):
        self.folder = folder
        self.report = json.loads((folder / "conversion.json").read_text())
        rejected = folder / "rejected.jsonl"
        lines = rejected.read_text().splitlines() if rejected.exists() else []
        self.rejected = [json.loads(line) for line in lines]
        self.yaml = (folder / f"{folder.name}.yaml").read_text()

    def rows(self, suffix):
        """Rows of an atomic file without its header."""
        text = (self.folder / f"{self.folder.name}.{suffix}").read_text(encoding="utf-8")
        return [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]]

    def header(self, suffix):
        """Columns of an atomic file."""
        with (self.folder / f"{self.folder.name}.{suffix}").open(encoding="utf-8") as file:
            return file.readline().rstrip("\n").split("\t")

    def items(self, *columns):
        """Items as the loader reads them."""
        return read_item_file(self.folder / f"{self.folder.name}.item", columns, "item_id")

    def reasons(self):
        """(file, line, reason) of every rejected row."""
        return [(r["file"], r["line"], r["reason"]) for r in self.rejected]


def write_raw(folder: Path, files: dict) -> Path:
    """Write raw files: text as UTF-8, bytes unchanged, lists as JSON lines; .gz is compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        data = content.encode() if isinstance(content, str) else content
        if name.endswith(".gz"):
            data = gzip.compress(data)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def convert(tmp_path):
    """convert(format, files, *options) -> Converted, through the command's entry point."""

    def run(kind, files, *options, name="toy"):
        raw = write_raw(tmp_path / "raw", files)
        output = tmp_path / "out" / name
        arguments = [kind, "--input", str(raw), "--output", str(output), *map(str, options)]
        assert main(arguments) == 0
        return Converted(output)

    return run


@pytest.fixture
def conversion_error(tmp_path, capsys):
    """conversion_error(format, files, *options) -> the message; checks that no output is left."""

    def run(kind, files, *options):
        raw = write_raw(tmp_path / "raw", files)
        output = tmp_path / "out" / "toy"
        arguments = [kind, "--input", str(raw), "--output", str(output), *map(str, options)]
        assert main(arguments) == 2
        assert not list((tmp_path / "out").iterdir())
        return capsys.readouterr().err

    return run
