"""Error messages for a missing data set."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from recbole_multdpo.data.sources import explaining_missing_files
from recbole_multdpo.errors import DataError
from recbole_multdpo.runs.load import load_dataset
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.known_data import HOW_TO_GET, hosted_data_sets
from recbole_multdpo.settings.layers import properties_folder
from tests.integration.toy import write_toy


def config_of(name, data_path, *more):
    return load_config(["--model=Pop", f"--dataset={name}", f"--data_path={data_path}", *more])


def loading_error(config):
    """The message of loading the data set as a run does."""
    from recbole.data import create_dataset

    with pytest.raises(DataError) as caught:
        load_dataset(config, create_dataset)
    return str(caught.value)


@pytest.fixture
def no_network(monkeypatch):
    def urlopen(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.mark.parametrize(
    ("name", "converter"),
    [
        ("reddit-v2", "crs"),
        ("redial", "crs"),
        ("goodreads-sprec", "titles-jsonl"),
        ("amazon-beauty-5core", "sequences"),
        ("lastfm-colakg", "lastfm"),
    ],
)
def test_a_set_that_nobody_hosts(name, converter, tmp_path):
    message = loading_error(config_of(name, tmp_path))
    assert f"there is no folder {tmp_path / name}" in message
    assert f"convert {converter} --input <that folder> --output {tmp_path / name}" in message


@pytest.mark.parametrize("name", ["ml-1m", "ml-10m", "goodreads", "amazon-books-18"])
def test_a_download_that_fails(name, tmp_path, no_network):
    message = loading_error(config_of(name, tmp_path))
    assert f"{name} could not be downloaded (<urlopen error no network>)" in message
    assert f"--output {tmp_path / name}" in message
    assert not list(tmp_path.iterdir())  # RecBole's empty folder would block the next attempt


def test_a_download_that_is_broken_off_leaves_nothing(tmp_path, monkeypatch):
    """The download fails after RecBole has made the folder and part of a file."""
    from recbole.data.dataset import Dataset

    def download(self):
        Path(self.dataset_path).mkdir()
        (Path(self.dataset_path) / "ml-1m.zip").touch()
        raise RuntimeError("Stopped downloading due to interruption.")

    monkeypatch.setattr(Dataset, "_download", download)
    assert "due to interruption" in loading_error(config_of("ml-1m", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_large_download_that_is_declined(tmp_path, monkeypatch):
    from recbole.data.dataset import Dataset

    monkeypatch.setattr(Dataset, "_download", lambda self: exit(-1))
    assert "ml-1m could not be downloaded (-1)" in loading_error(config_of("ml-1m", tmp_path))


def test_an_unknown_set(tmp_path):
    message = loading_error(config_of("mine", tmp_path))
    assert "the folder that holds mine/" in message and "convert --help" in message


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ml100k", "ml-100k?"),
        ("ML_1M", "ml-1m?"),
        ("ml-25m", "ml-20m?"),
        ("Amazon_Beauty", "amazon-beauty?"),
        ("AmazonBeauty", "amazon-beauty?"),
        ("amazon-beauty-5-core", "amazon-beauty-5core?"),
        ("lastfm_colakg", "lastfm-colakg?"),
        ("LastFM", "lastfm?"),
        ("steam", "steam-merged or steam-not-merged?"),
        ("mind", "mind-large-dev or mind-large-train or mind-small-dev or 1 more?"),
    ],
)
def test_a_name_that_is_nearly_one(tmp_path, given, meant):
    message = loading_error(config_of(given, tmp_path))
    assert message.startswith(f"there is no data set {given}; did you mean {meant}")


@pytest.mark.parametrize("name", ["amazon-beauty-5core", "lastfm-colakg"])
def test_a_name_that_is_one(tmp_path, name):
    assert "did you mean" not in loading_error(config_of(name, tmp_path))


def test_a_folder_without_its_files(tmp_path):
    (tmp_path / "redial").mkdir()
    (tmp_path / "redial" / "redial.train.inter").touch()
    message = loading_error(config_of("redial", tmp_path))
    assert "has no redial.valid.inter and no redial.test.inter." in message
    (tmp_path / "mine").mkdir()
    assert "has no mine.inter." in loading_error(config_of("mine", tmp_path))


def test_errors_of_a_set_that_is_there_stay_themselves(tmp_path):
    config = config_of("toy", write_toy(tmp_path))
    with pytest.raises(RuntimeError, match="a bug"), explaining_missing_files(config):
        raise RuntimeError("a bug")
    assert (tmp_path / "toy" / "toy.inter").exists()


def test_every_named_set_has_a_property_file_and_a_way_to_get_it():
    shipped = {file.stem for file in (properties_folder() / "dataset").glob("*.yaml")}
    assert shipped == {"ml-100k", *HOW_TO_GET}
    for text in HOW_TO_GET.values():
        assert "{folder}" in text and "python -m recbole_multdpo.data.convert" in text
    assert "ml-10m" in hosted_data_sets() and "reddit-v2" not in hosted_data_sets()
