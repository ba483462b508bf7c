"""Epochs by the size of the data: those of ml-100k up to its size, then fewer; numbers stay."""

from __future__ import annotations

import pytest

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.by_size import AUTO, TUNED_EPOCHS, TUNED_EXAMPLES, epochs_for
from recbole_multdpo.settings.config import load_config, properties_folder


@pytest.mark.parametrize("stage", TUNED_EPOCHS)
@pytest.mark.parametrize(("times", "share"), [(0, 1), (0.5, 1), (1, 1), (4, 1 / 2), (10**9, 0)])
def test_epochs_fall_with_the_square_root_of_the_examples(stage, times, share):
    n_examples = round(times * TUNED_EXAMPLES)
    expected = max(round(TUNED_EPOCHS[stage] * share), 1)
    assert epochs_for(AUTO, stage, n_examples) == expected


@pytest.mark.parametrize("n_examples", [1, 943, 10**7])
def test_a_number_of_epochs_is_as_set(n_examples):
    assert [epochs_for(n, "sft", n_examples) for n in (0, 1, 20)] == [0, 1, 20]


def test_the_property_file_says_how_many_they_are():
    text = (properties_folder() / "model/LLMRec.yaml").read_text(encoding="utf-8")
    said = " ".join(text.replace("#", " ").split())
    for key, stage in (("sft_epochs", "sft"), ("epochs", "preference")):
        line = said[said.index(f" {key}: auto ") :]
        assert (
            f"auto (tiny): {TUNED_EPOCHS[stage]} for {TUNED_EXAMPLES} users or fewer" in line[:250]
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=LLMRec", "--backbone=org/lm", "--epochs=auto"], "epochs=auto is as many epochs"),
        (["--model=LLMRec", "--backbone=org/lm", "--sft_epochs=auto"], "such as --sft_epochs=1"),
        (["--model=BPR", "--epochs=auto"], "epochs=auto is of LLMRec alone"),
        (["--model=LLMRec", "--epochs=many"], "epochs"),
    ],
)
def test_auto_is_refused_where_nothing_was_chosen(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(["--dataset=ml-100k", "--device=cpu", *arguments])
