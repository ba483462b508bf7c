"""Checks of a run's inputs that need no data: they come before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path

from recbole_multdpo.data.atomic_file import check_atomic_files, missing_columns, open_atomic_file
from recbole_multdpo.data.candidate_lists import read_pairs
from recbole_multdpo.data.item_text import OTHER_COLUMNS, text_columns
from recbole_multdpo.data.prompt import check_template
from recbole_multdpo.data.sources import check_files
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.backbone_folder import TINY, check_hub, local_folder
from recbole_multdpo.settings.config import Config


def check_inputs(config: Config) -> None:
    """Refuse what is certain to fail: missing files or columns, an unknown prompt, no backbone.

    Raises:
        ConfigError: of a setting that names something that does not exist.
        DataError: the data set is missing and RecBole has no address for it, or a file's first line
            is malformed or lacks a column; or candidate lists cannot be read.
    """
    settings = config.settings
    check_files(config)
    check_atomic_files(config)
    if config["candidate_lists"] is not None:
        names = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"])
        read_pairs(Path(config["candidate_lists"]), *names)
    if settings is None:
        return
    check_template(settings.prompt_template)
    if settings.backbone != TINY and local_folder(settings.backbone) is None:
        check_hub(settings.backbone)
    file = Path(config["data_path"]) / f"{config['dataset']}.item"
    wanted = text_columns(settings.item_text_fields, settings.item_text_template)
    if not file.is_file() or not wanted:
        return
    if settings.item_year_field:
        wanted.append(settings.item_year_field)
    columns = open_atomic_file(
        file, config["field_separator"], config["encoding"] or "utf-8"
    ).columns
    missing = missing_columns(wanted, columns)
    if missing:
        raise DataError(
            f"{file} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(columns)}. {OTHER_COLUMNS}"
        )
