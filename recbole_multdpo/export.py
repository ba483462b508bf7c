"""Export of a finished run: `python -m recbole_multdpo.export RUN_FOLDER OUTPUT`.

The folder holds the merged model and its tokenizer for plain transformers, the catalogue with its
token ids and the prompt's frame (`catalogue.json`), code that ranks it with torch and transformers
alone (`rank_catalogue.py`), the run's settings and a model card. With `--adapter`, for runs with
LoRA, `base/` holds the model after supervised fine-tuning and `adapter/` the preference stage's
adapter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runtime.durable_files import atomic_folder, is_write_failure
from recbole_multdpo.runtime.interruption import SignalHandler
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.settings.effects import acts
from recbole_multdpo.settings.text import dump_settings, read_settings_file
from recbole_multdpo.trained import exported
from recbole_multdpo.trained.commands import run_command, run_options, run_parser
from recbole_multdpo.trained.model_card import CARD_FIGURES, model_card

if TYPE_CHECKING:
    from recbole_multdpo.data.prompt import PromptBuilder
    from recbole_multdpo.trained.run import TrainedRun

HELPER = "rank_catalogue.py"
BASE, ADAPTER = "base", "adapter"
MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights and tokenizers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see `run_command`."""
    command = run_parser("export", "A finished run as a Hugging Face folder with its catalogue.")
    command.add_argument("output", type=Path, help="folder to make")
    command.add_argument(
        "--adapter", action="store_true", help="runs with LoRA: model and adapter apart"
    )
    command.add_argument("--license", help="for the model card, as the hub names it, such as mit")
    command.add_argument("--language", default="en", help="of the titles, for the card; default en")
    with SignalHandler():  # SIGTERM, too, leaves no partial folder
        return run_command(_export, command.parse_args(argv))


def _export(options: argparse.Namespace) -> None:
    export(
        options.run_folder,
        options.output,
        adapter=options.adapter,
        license_id=options.license,
        language=options.language,
        **run_options(options),
    )
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    show(f"{options.output}: {size / 1e6:.1f} MB; README.md says how to use it")


def export(
    run_folder: str | Path,
    output: str | Path,
    *,
    adapter: bool = False,
    license_id: str | None = None,
    language: str = "en",
    **options: Any,
) -> None:
    """Write a run as a folder that needs transformers only; the folder is complete or absent.

    Args:
        run_folder: folder of a finished run of LLMRec.
        output: a folder that does not exist, or is empty.
        adapter: write base model and LoRA adapter separately instead of merged.
        license_id, language: for the model card, as the hub names them.
        options: as for `trained.run.load_run`.

    Raises:
        ConfigError: the run is not of LLMRec; or `output` is not empty; or `adapter` for a run
            without one.
        CheckpointError: the weights of the first stage, which `adapter` needs, are gone.
        MultDPOError: the folder cannot be written.
    """
    from recbole_multdpo.settings.language_models import LLMREC
    from recbole_multdpo.trained.run import load_run, result_of

    run_folder, output = Path(run_folder), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not empty. Name a new folder.")
    result = result_of(run_folder, needed=CARD_FIGURES)
    if result["model"] != LLMREC:
        raise ConfigError(
            f"the run in {run_folder} is of {result['model']}; only LLMRec's are language models "
            "that a Hugging Face folder can hold."
        )
    run = load_run(run_folder, **options)
    try:
        with atomic_folder(output) as temporary:
            if adapter:
                _write_adapter(run, temporary, options)
            else:
                _copy_model(run, temporary)
            content = json.dumps(catalogue_content(run), ensure_ascii=False)
            (temporary / exported.FILE_NAME).write_text(content, encoding="utf-8")
            shutil.copyfile(exported.__file__, temporary / HELPER)
            settings = public_settings(run)
            (temporary / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
            card = model_card(
                settings,
                result,
                run.titles[1:3],
                adapter=adapter,
                license_id=license_id,
                language=language,
            )
            (temporary / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if not isinstance(error, OSError) and not is_write_failure(error):
            raise
        raise MultDPOError(
            f"cannot write {output}: {error}. Free space, or name a folder that can be written."
        ) from error


def _copy_model(run: TrainedRun, folder: Path) -> None:
    """Copy the files that transformers writes for a model, and no others.

    Links are left out, as one in a foreign folder may lead to any file of this machine. So is code,
    unless it may run.
    """
    assert run.config.settings is not None
    kinds = {*MODEL_FILES, *([".py"] if run.config.settings.trust_remote_code else [])}
    for file in sorted((run.folder / "model").iterdir()):
        if file.suffix in kinds and file.is_file() and not file.is_symlink():
            # contents without modes: weights may be readable by their owner alone
            shutil.copyfile(file, folder / file.name)


def public_settings(run: TrainedRun) -> dict[str, Any]:
    """A run's settings without those that hold on its machine only."""
    settings = {**run.config.to_dict(), **read_settings_file(run.folder / "config.yaml")}
    settings = {
        key: value
        for key, value in settings.items()
        if acts(key, run.config["model"]).changes != "machine"
    }
    backbone = Path(str(settings["backbone"]))
    settings["backbone"] = backbone.name if backbone.is_absolute() else str(backbone)
    return settings


def _disliked(prompts: PromptBuilder) -> dict[str, Any]:
    """Mark and limit of low-rated titles in a prompt; none where prompts show none."""
    if not prompts.frame.disliked:
        return {}
    return {"mark": prompts.frame.disliked, "max_disliked": prompts.max_disliked}


def catalogue_content(run: TrainedRun) -> dict[str, Any]:
    """The content of `catalogue.json`; see `exported.Catalogue`."""
    from recbole_multdpo.data.item_tokens import encode_items

    model, settings = run.model, run.model.settings
    # not the model's own table, which leaves out forced tokens at the end
    tokens = encode_items(
        model.tokenizer,
        run.titles,
        prefix=model.prompts.frame.item_prefix,
        max_item_tokens=settings.max_item_tokens,
    )
    limit = settings.ranking_history if not run.on_conversations else None
    return {
        "format": exported.FORMAT,
        "normalize_over": settings.normalize_over,
        "prompt": {
            "context": run.config["context"],
            "max_history": limit,
            "max_prompt_tokens": settings.max_prompt_tokens,
            **model.prompts.frame_ids(),
            **_disliked(model.prompts),
        },
        "items": [
            {
                "id": run.item_name(item),
                "title": run.titles[item],
                "tokens": tokens.ids[item, : tokens.lengths[item]].tolist(),
            }
            for item in range(1, len(run.titles))
        ],
    }


def _write_adapter(run: TrainedRun, folder: Path, options: Mapping[str, Any]) -> None:
    """Write `base/` and `adapter/`: the preference stage's adapter on the merged first stage."""
    from peft import PeftModel

    from recbole_multdpo.runs.checkpoint import load_checkpoint, load_trainable_tensors
    from recbole_multdpo.runs.resume import REFIT
    from recbole_multdpo.runs.unchanged import check_checkpoint
    from recbole_multdpo.trained.run import run_config
    from recbole_multdpo.trained.sft_start import load_sft_start

    config = run_config(run.folder, {}, **options)
    stage = f"{REFIT if 'refit_epochs' in run.result else ''}preference"
    best = run.folder / "checkpoints" / stage / "best"
    if config.settings is None or config.settings.trains_all_weights or not best.is_dir():
        raise ConfigError(
            f"the run in {run.folder} has no LoRA adapter of a preference stage; export it without "
            "--adapter."
        )
    model = load_sft_start(run.folder, run.result, config, run.parts)
    model.start_preference_stage(config.settings.loss)
    tensors, state, _ = load_checkpoint(best)
    check_checkpoint(run.folder, run.result, config, state)
    load_trainable_tensors(model.lm, tensors, best)
    assert isinstance(model.lm, PeftModel)
    for peft_config in model.lm.peft_config.values():
        peft_config.base_model_name_or_path = BASE  # its sibling folder, not the backbone
    model.save(folder / ADAPTER)
    model.drop_adapter()
    model.save(folder / BASE)


if __name__ == "__main__":
    sys.exit(main())
