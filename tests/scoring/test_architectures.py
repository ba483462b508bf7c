"""Every scorer on every architecture against the model's own forward.

An architecture is either exact in all scorers, or listed as refused with its limitation.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from recbole_multdpo.model import probe
from recbole_multdpo.model.probe import Trial, faults
from recbole_multdpo.scoring import best_first as best_first_module
from recbole_multdpo.scoring import packed as packed_module
from recbole_multdpo.scoring import trie_scores as trie_scores_module
from recbole_multdpo.scoring.parts import Parts, parts_of
from recbole_multdpo.scoring.windows import LayerKinds
from tests.scoring.architectures import (
    ARCHITECTURES,
    EOS,
    IS_LOWEST,
    MIXED_LAYERS,
    VOCABULARY,
    WINDOW,
    Architecture,
    gradient_errors,
    value_errors,
    with_adapter,
)

# measured: 8e-6 nats and 1.2e-6 of a gradient's length where exact, 0.7 nats where wrong
NATS, OF_GRADIENT = 1e-4, 1e-4
ROWS = [
    pytest.param(row, attn, id=f"{row.name}-{attn}")
    for row in ARCHITECTURES
    for attn in row.attention
]
DEFAULT_ROWS = [pytest.param(row, row.attention[0], id=row.name) for row in ARCHITECTURES]


def too_large(errors, bound):
    """Errors that are too large, NaN, or an exception's text."""
    return {k: v for k, v in errors.items() if isinstance(v, str) or not v <= bound}


def is_absent(row):
    """True if the installed transformers is too old for a row, the only valid excuse."""
    if row.kind in CONFIG_MAPPING:
        return False
    assert row.lowest_lacks and IS_LOWEST, row.name
    return True


def check_values(lm, row):
    wrong = too_large(value_errors(lm), NATS)
    assert ("padded" in wrong) == row.padded_too, wrong
    assert bool(wrong) == bool(row.why_refused), wrong


def check_verdict(lm, row):
    """Check the result of probing a part of the model before a run."""
    trial = Trial(
        24, 6, range(3, VOCABULARY), EOS, ("packed", "padded", "trie_scores", "best_first", "beam")
    )
    found = faults(lm, trial, torch.device("cpu"))
    assert row.padded_too or "padded" not in found, found
    assert bool(found) == bool(row.why_refused), found


def check_gradients(lm):
    assert not too_large(gradient_errors(lm), OF_GRADIENT)


def test_the_sweep_is_wide():
    names = [row.name for row in ARCHITECTURES]
    assert len(set(names)) == len(names) >= 45
    assert sum(not row.why_refused for row in ARCHITECTURES) >= 40


@pytest.mark.parametrize(("row", "attn"), DEFAULT_ROWS)
def test_values_and_all_gradients(row, attn):
    if is_absent(row):
        return
    lm = row.build(attn)
    check_values(lm, row)
    if not row.why_refused:
        check_gradients(lm)


@pytest.mark.parametrize(("row", "attn"), DEFAULT_ROWS)
def test_the_probe_says_equal_or_refused(row, attn, monkeypatch):
    if is_absent(row):
        return
    monkeypatch.setattr(probe, "SMALL", 0)  # as of a large model, of which a part is tried
    check_verdict(row.build(attn), row)


@pytest.mark.parametrize(("row", "attn"), DEFAULT_ROWS)
def test_values_and_gradients_with_lora(row, attn):
    if is_absent(row) or row.why_refused:
        return
    lm = with_adapter(row.build(attn), row.lora_targets)
    check_values(lm, row)
    check_gradients(lm)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradients_of_windows_and_caps_that_are_computed_again():
    options = {**MIXED_LAYERS, "final_logit_softcapping": 2.0}
    lm = Architecture("", "gemma3_text", options).build("sdpa")
    stored = gradient_errors(lm)
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    lm.train()
    again = gradient_errors(lm)
    assert not too_large(stored, OF_GRADIENT) and not too_large(again, OF_GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "attn"), [p for p in ROWS if p.values[1] == "eager"])
def test_eager_attention(row, attn):
    if is_absent(row):
        return
    lm = row.build(attn)
    check_values(lm, row)
    if not row.why_refused:
        check_gradients(lm)
        lm = with_adapter(lm, row.lora_targets)
        check_values(lm, row)
        check_gradients(lm)


@pytest.mark.parametrize("row", [row for row in ARCHITECTURES if row.no_sdpa], ids=lambda r: r.name)
def test_architectures_without_sdpa(row):
    """Otherwise the row must try it."""
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        AutoModelForCausalLM.from_config(row.config(), attn_implementation="sdpa")


# ------------------------------------------------------------------ controls: what must be found


def wrong_scorers(kind, options, other_options):
    """Scorers that differ from the forward of the same model with other options."""
    lm = Architecture("", kind, other_options).build("sdpa")
    truth = Architecture("", kind, options).build("sdpa")
    truth.load_state_dict(lm.state_dict())
    errors = value_errors(lm, truth)
    assert not [value for value in errors.values() if isinstance(value, str)]
    return set(too_large(errors, NATS))


MASKED_SCORERS = {"packed", "best_first", "beam", "trie_scores", "packed_prompt"}
EVERY_SCORER = MASKED_SCORERS | {"padded", "padded_prompt"}


def test_the_same_model_twice_does_not_differ():
    same = {"sliding_window": None}
    assert wrong_scorers("mistral", same, same) == set()


def test_a_missing_window_is_found():
    assert wrong_scorers("mistral", {"sliding_window": WINDOW}, {"sliding_window": None}) == (
        EVERY_SCORER
    )


def test_a_weak_softcap_is_found():
    """A softcap that changes logits by hundredths."""
    options, other = (
        {"sliding_window": 64, "final_logit_softcapping": cap} for cap in (30.0, None)
    )
    kind = "gemma3_text"
    assert wrong_scorers(kind, options, other) == EVERY_SCORER


def test_a_scale_of_the_logits_is_found():
    assert wrong_scorers("granite", {"logits_scaling": 1.1}, {}) == EVERY_SCORER


def test_a_shifted_position_is_found(monkeypatch):
    right = packed_module.pack

    def shifted(*arguments):
        packed = right(*arguments)
        packed.position_ids.add_((packed.segments > 0).long())
        return packed

    monkeypatch.setattr(packed_module, "pack", shifted)
    lm = Architecture("", "llama").build("sdpa")
    assert set(too_large(value_errors(lm), NATS)) == {"packed"}
    assert set(too_large(gradient_errors(lm), OF_GRADIENT)) == {"packed"}


def test_candidates_that_see_each_other_are_found(monkeypatch):
    right = packed_module.pack

    def one_candidate(*arguments):
        packed = right(*arguments)
        packed.segments.clamp_(max=1)
        return packed

    monkeypatch.setattr(packed_module, "pack", one_candidate)
    lm = Architecture("", "llama").build("sdpa")
    assert set(too_large(value_errors(lm), NATS)) == {"packed"}


@pytest.mark.parametrize("kept", ["the mask without windows", "the window in all layers"])
def test_one_mask_for_mixed_layers_is_found(monkeypatch, kept):
    right = LayerKinds.masks

    def one_mask(self, mask, *positions):
        cut = right(self, mask, *positions)
        return cut["sliding_attention"] if kept == "the window in all layers" else mask

    monkeypatch.setattr(LayerKinds, "masks", one_mask)
    lm = Architecture("", "gemma3_text", MIXED_LAYERS).build("sdpa")
    # the prompt of a search is run before there is a mask of ours
    assert set(too_large(value_errors(lm), NATS)) == MASKED_SCORERS
    assert set(too_large(gradient_errors(lm), OF_GRADIENT)) == {"packed"}


def test_a_window_counted_in_columns_is_found(monkeypatch):
    right = LayerKinds.masks

    def by_column(self, mask, queries, keys):
        columns = torch.arange(keys.shape[1]).expand_as(keys)
        return right(self, mask, columns[:, -queries.shape[1] :], columns)

    monkeypatch.setattr(LayerKinds, "masks", by_column)
    lm = Architecture("", "mistral").build("sdpa")
    wrong = {"packed", "best_first", "beam", "trie_scores"}
    assert set(too_large(value_errors(lm), NATS)) == wrong


def test_output_embeddings_without_the_rest_of_the_head_are_found(monkeypatch):
    def embeddings_alone(model):
        return Parts(parts_of(model).body, model.get_output_embeddings())

    for module in (packed_module, best_first_module, trie_scores_module):
        monkeypatch.setattr(module, "parts_of", embeddings_alone)
    lm = Architecture("", "granite", {"logits_scaling": 1.01}).build("sdpa")
    assert set(too_large(value_errors(lm), NATS)) == MASKED_SCORERS


def test_random_weights_depend_on_the_first_token():
    """The prompt's beginning must matter, or a wrong window would not be noticed."""
    lm = Architecture("", "llama").build("sdpa")
    ids = torch.arange(3, 32)[None]
    other = ids.clone()
    other[0, 0] = 50
    with torch.no_grad():
        first, second = (lm(input_ids=i).logits[0, -1].log_softmax(-1) for i in (ids, other))
    assert (first - second).abs().max() > 0.01
