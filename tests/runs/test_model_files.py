"""Checksums of `model/`, and numbers that are none."""

import pytest
import torch

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runs.model_files import check_files, check_model, file_checksums, not_finite

TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_are_found_in_every_type(dtype, value):
    good = torch.linspace(-3, 3, 12).view(3, 4)
    bad = good.clone()
    bad[1, 2] = value
    tensors = {"a": good.to(dtype), "b": torch.arange(3), "c": torch.empty(0), "d": bad.to(dtype)}
    assert not_finite(tensors.items()) == "d"
    del tensors["d"]
    assert not_finite(tensors.items()) is None


def test_the_largest_finite_numbers_are_numbers():
    for dtype in TYPES[:4]:
        assert not_finite([("a", torch.full((2,), torch.finfo(dtype).max, dtype=dtype))]) is None


def test_checksums_name_what_is_missing_changed_or_added(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.bin").write_text("2")
    checksums = file_checksums(tmp_path)
    # sha256sum of the byte "1"
    assert checksums["a.json"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    check_files(tmp_path, checksums)
    (tmp_path / "README.md").write_text("harmless")
    check_files(tmp_path, checksums)
    (tmp_path / "c.json").write_text("3")
    with pytest.raises(CheckpointError, match=r"c\.json is not of this run"):
        check_files(tmp_path, checksums)
    (tmp_path / "c.json").unlink()
    (tmp_path / "b.bin").write_text("3")
    with pytest.raises(CheckpointError, match=r"b\.bin is not what the run wrote"):
        check_files(tmp_path, checksums)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"b\.bin is missing"):
        check_files(tmp_path, checksums)


def test_nothing_outside_of_the_model_is_looked_at(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is missing"):
        check_model(tmp_path, {"model_files": {"../result.json": "0"}})
    assert not check_model(tmp_path, {})
