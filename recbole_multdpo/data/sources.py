"""Missing files of a data set, as errors that say how to get them.

RecBole downloads the data sets that it hosts. For any other missing set, and for a failed download,
a `DataError` names the files to get and the converter to run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

from recbole.config import Config

from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.known_data import hosted_data_sets, how_to_get, missing_folder


def check_files(config: Config) -> list[str]:
    """Refuse a data set that is not there and that RecBole cannot download.

    Returns:
        The files of interactions that are missing, and can be downloaded.

    Raises:
        DataError: it says how to get them.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    parts = config["benchmark_filename"]
    files = [f"{name}.{part}.inter" for part in parts] if parts else [f"{name}.inter"]
    missing = [file for file in files if not (folder / file).is_file()]
    if folder.exists() and missing:
        raise DataError(f"{folder} has no {' and no '.join(missing)}. {how_to_get(name, folder)}")
    if missing and name not in hosted_data_sets():
        raise DataError(missing_folder(name, folder))
    return missing


@contextmanager
def explaining_missing_files(config: Config) -> Iterator[None]:
    """Context manager around loading a data set: missing files raise a `DataError` with a remedy.

    Raises:
        DataError: the folder lacks interaction files; or it does not exist, and RecBole has no
            address for it or the download fails. Files left by a failed download are removed.
    """
    name, folder = config["dataset"], Path(config["data_path"])
    missing = check_files(config)
    try:
        yield
    except (OSError, RuntimeError, EOFError, BadZipFile, SystemExit) as error:
        if not missing or (folder / missing[0]).is_file():
            raise  # the data set exists or was downloaded: the error has another cause
        shutil.rmtree(folder, ignore_errors=True)  # an empty folder would block the next attempt
        raise DataError(
            f"{name} could not be downloaded ({error or 'declined'}). {how_to_get(name, folder)}"
        ) from error
