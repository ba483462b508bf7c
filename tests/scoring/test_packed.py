"""Packed against padded scoring: values, losses, every gradient; wrong masks differ."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.losses import preference_loss
from recbole_multdpo.model.backbone import add_lora
from recbole_multdpo.scoring import packed as packed_module
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.head import head_logps
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import (
    PADDING_SEGMENT,
    PackedExamples,
    block_mask,
    pack,
    packed_logps,
    packed_logps_with_prompt,
    split_candidates,
)
from recbole_multdpo.scoring.padded import padded_logps
from recbole_multdpo.scoring.parts import parts_of

EOS = 2
# items 2 and 4 share a prefix, 3 is its terminator alone, 5 and 6 are the same text
ITEMS = ItemTokens.from_lists(
    [
        [],
        [40, 41, 42, EOS],
        [7, 9, EOS],
        [EOS],
        [7, 9, 30, 31, 32, 33, EOS],
        [50, EOS],
        [50, EOS],
        [7, EOS],
    ]
)
# uneven prompts, the shortest possible one among them; padding also in a wider prompt column
PROMPT_LENGTHS = torch.tensor([6, 1, 3])
PROMPT_IDS = torch.tensor(
    [[11, 12, 13, 14, 15, 16, 0], [17, 0, 0, 0, 0, 0, 0], [18, 12, 19, 0, 0, 0, 0]]
)
# padding between and after candidates, a repeated candidate, equal texts, terminators alone
CANDIDATES = torch.tensor([[4, 2, 0, 2, 1], [3, 0, 0, 5, 6], [1, 7, 4, 3, 0]])
LEVELS = torch.tensor([[1, 1, -1, 0, 0], [1, -1, -1, 0, 0], [1, 0, 0, 0, -1]])
CATALOGUE = ItemCatalogue.build(ITEMS)
PROMPTS = Prompts(PROMPT_IDS, PROMPT_LENGTHS)
BATCH = (PROMPTS, CANDIDATES, CATALOGUE)


pytestmark = pytest.mark.usefixtures("pure_float64")


def one_by_one(lm, prompts, candidates, catalogue):
    """The definition: every candidate alone after its prompt, without padding or mask."""
    items = catalogue.items
    logps = torch.zeros(candidates.shape, dtype=torch.float64)
    for example, row in enumerate(candidates.tolist()):
        prompt = prompts.ids[example, : prompts.lengths[example]]
        for slot, item in enumerate(row):
            text = items.ids[item, : items.lengths[item]]
            logits = lm(input_ids=torch.cat([prompt, text])[None]).logits[0].double()
            for offset, token in enumerate(text.tolist()):
                logps[example, slot] += logits[len(prompt) + offset - 1].log_softmax(-1)[token]
    return logps


def trainable(lm, adapter):
    """All weights, or a LoRA adapter whose B is not zero, in training mode without dropout."""
    if adapter == "lora":
        lm = add_lora(lm, r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=3)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            for name, parameter in lm.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return lm.train()


def loss_and_gradients(score, lm, reference_logps):
    """Mult-DPO over the batch, and the gradient of every trainable parameter."""
    lm.zero_grad(set_to_none=True)
    logps = score(lm, *BATCH)
    loss = preference_loss("mult_dpo", logps, reference_logps, LEVELS, 0.7)
    loss.sum().backward()
    gradients = {n: p.grad for n, p in lm.named_parameters() if p.requires_grad}
    return logps.detach(), loss.detach(), gradients


# -------------------------------------------------------------------------------------------------
# equality


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_packed_equals_padded(make_lm, architecture, attn, adapter, checkpointing):
    """Value, loss and every gradient in float64."""
    lm = make_lm(architecture, dtype=torch.float64, attn=attn)
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.disable_input_require_grads()
    lm = trainable(lm, adapter)
    parts_of(causal_lm(lm))  # runs a new model once
    layer_calls = []
    for layer in causal_lm(lm).model.layers:
        layer.self_attn.k_proj.register_forward_pre_hook(lambda *_: layer_calls.append(1))

    reference_logps = torch.linspace(-9, -5, CANDIDATES.numel()).view(CANDIDATES.shape).double()
    logps, loss, gradients = loss_and_gradients(packed_logps, lm, reference_logps)
    # two layers, each once; checkpointed, all but the last once more in the backward pass
    assert len(layer_calls) == (3 if checkpointing else 2)
    expected_logps, expected_loss, expected = loss_and_gradients(padded_logps, lm, reference_logps)

    torch.testing.assert_close(logps, expected_logps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    assert len(gradients) == (28 if adapter == "lora" else len(list(lm.parameters())))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10, msg=name)
        # a key's bias shifts all of a query's scores alike, which the softmax does not see
        assert gradient.abs().max() > 1e-6 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_packed_equals_padded_in_float32(make_lm, architecture, attn):
    lm = trainable(make_lm(architecture, attn=attn), "lora")
    reference_logps = torch.zeros(CANDIDATES.shape)
    logps, loss, gradients = loss_and_gradients(packed_logps, lm, reference_logps)
    expected_logps, expected_loss, expected = loss_and_gradients(padded_logps, lm, reference_logps)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected_logps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(scale))


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_both_equal_the_definition(make_lm, architecture):
    lm = make_lm(architecture, dtype=torch.float64)
    with torch.no_grad():
        expected = one_by_one(lm, *BATCH)
        for score in (packed_logps, padded_logps):
            torch.testing.assert_close(score(lm, *BATCH), expected, rtol=1e-10, atol=1e-10)
    assert (expected[CANDIDATES == 0] == 0).all() and (expected[CANDIDATES > 0] < -0.1).all()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout_equals_padded_scoring(make_lm, data):
    """Random numbers of examples and candidates, prompts of any length."""
    n_examples, n_candidates = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))
    row = st.lists(st.integers(0, 7), min_size=n_candidates, max_size=n_candidates)
    candidates = torch.tensor(data.draw(st.lists(row, min_size=n_examples, max_size=n_examples)))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=n_examples, max_size=n_examples))
    prompt_ids = torch.randint(3, 64, (n_examples, max(lengths)))
    batch = Prompts(prompt_ids, torch.tensor(lengths)), candidates, CATALOGUE
    lm = make_lm(dtype=torch.float64)
    with torch.no_grad():
        expected = padded_logps(lm, *batch)
        torch.testing.assert_close(packed_logps(lm, *batch), expected, rtol=1e-10, atol=1e-10)


def test_candidates_do_not_influence_each_other(make_lm):
    """A candidate's value does not depend on the others, and is equal for equal texts."""
    lm = make_lm(dtype=torch.float64)
    with torch.no_grad():
        logps = packed_logps(lm, *BATCH)
        for example in range(3):
            for slot in range(5):
                one = slice(example, example + 1)
                candidate = CANDIDATES[one, slot : slot + 1]
                prompt = PROMPTS.select(torch.tensor([example]))
                alone = packed_logps(lm, prompt, candidate, CATALOGUE)
                torch.testing.assert_close(alone[0, 0], logps[example, slot], rtol=0, atol=1e-12)
    torch.testing.assert_close(logps[0, 1], logps[0, 3], rtol=0, atol=1e-12)  # repeated
    torch.testing.assert_close(logps[1, 3], logps[1, 4], rtol=0, atol=1e-12)  # same text


def test_padding_has_no_influence(make_lm):
    """Prompt padding of any content and width, and more padded candidates, change nothing."""
    lm = make_lm(dtype=torch.float64)
    wide = torch.full((3, 12), 63)
    wide[:, :7] = PROMPT_IDS
    wide[torch.arange(12) >= PROMPT_LENGTHS[:, None]] = 63
    more = torch.cat([CANDIDATES, torch.zeros(3, 2, dtype=torch.long)], dim=1)
    with torch.no_grad():
        logps = packed_logps(lm, Prompts(wide, PROMPT_LENGTHS), more, CATALOGUE)
        expected = packed_logps(lm, *BATCH)
    torch.testing.assert_close(logps[:, :5], expected, rtol=0, atol=1e-12)
    assert (logps[:, 5:] == 0).all()


def test_a_slice_of_padding_scores_zero(make_lm):
    lm = make_lm()
    nothing = torch.zeros(3, 2, dtype=torch.long)
    assert packed_logps(lm, PROMPTS, nothing, CATALOGUE).tolist() == [[0, 0]] * 3


# -------------------------------------------------------------------------------------------------
# controls: what the mask and the positions are for


def later_candidates_with_own_tokens():
    """Candidates with fed tokens after another such one, which reveal a wrong layout."""
    fed = (ITEMS.lengths[CANDIDATES] - 1).clamp(min=0)
    return (fed > 0) & (fed.cumsum(1) > fed)


def test_a_causal_mask_is_wrong(make_lm, monkeypatch):
    """Candidates attend to earlier ones: the first of an example is right, the others are wrong."""
    lm = make_lm(dtype=torch.float64)
    with torch.no_grad():
        right = packed_logps(lm, *BATCH)
        monkeypatch.setattr(
            packed_module,
            "block_mask",
            lambda segments, dtype: block_mask(segments.clamp(max=0), dtype),
        )
        error = (packed_logps(lm, *BATCH) - right).abs()
    affected = later_candidates_with_own_tokens()
    assert affected.sum() == 6
    assert (error[affected] > 0.01).all() and (error[~affected] < 1e-12).all()


def test_positions_that_run_on_are_wrong(make_lm, monkeypatch):
    lm = make_lm(dtype=torch.float64)
    with torch.no_grad():
        right = packed_logps(lm, *BATCH)

        def without_restart(*arguments):
            packed = pack(*arguments)
            columns = torch.arange(packed.input_ids.shape[1]).expand_as(packed.input_ids)
            packed.position_ids.copy_(columns)
            return packed

        monkeypatch.setattr(packed_module, "pack", without_restart)
        error = (packed_logps(lm, *BATCH) - right).abs()
    affected = later_candidates_with_own_tokens()
    assert (error[affected] > 1e-3).all() and (error[~affected] < 1e-12).all()


def test_a_boolean_mask_is_wrong_under_eager_attention(make_lm, monkeypatch):
    """True and false are added to the scores as one and zero, so the mask must be additive."""
    lm = make_lm(dtype=torch.float64, attn="eager")
    with torch.no_grad():
        right = packed_logps(lm, *BATCH)
        monkeypatch.setattr(
            packed_module, "block_mask", lambda segments, dtype: block_mask(segments, dtype) == 0
        )
        try:
            wrong = packed_logps(lm, *BATCH)
        except (RuntimeError, TypeError, ValueError):
            return  # transformers refuses it: as good
    assert (wrong - right).abs().max() > 0.01


# -------------------------------------------------------------------------------------------------
# layout


def test_the_layout_of_two_examples_by_hand():
    """Items 1 (four tokens), 3 (terminator alone), 2 (three tokens) behind prompts of 2 and 1."""
    packed = pack(
        Prompts(torch.tensor([[11, 12], [13, 0]]), torch.tensor([2, 1])),
        torch.tensor([[1, 3, 2], [2, 0, 3]]),
        ITEMS,
    )
    pad = PADDING_SEGMENT
    assert packed.input_ids.tolist() == [[11, 12, 40, 41, 42, 7, 9], [13, 7, 9, 0, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 2, 0, 0, 0, 0]]
    assert packed.segments.tolist() == [[0, 0, 1, 1, 1, 3, 3], [0, 1, 1, pad, pad, pad, pad]]
    scored = zip(packed.score_rows, packed.score_tokens, packed.score_slots, strict=True)
    assert sorted(tuple(map(int, entry)) for entry in scored) == sorted(
        [
            *[(1, 40, 0), (2, 41, 0), (3, 42, 0), (4, EOS, 0)],
            (1, EOS, 1),
            *[(1, 7, 2), (5, 9, 2), (6, EOS, 2)],
            *[(7, 7, 3), (8, 9, 3), (9, EOS, 3)],
            (7, EOS, 5),
        ]
    )


def test_the_mask_by_hand():
    """One prompt of two, candidates of one and two fed tokens, one column of padding."""
    mask = block_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]), torch.float32)
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.float32
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert mask.min() == torch.finfo(torch.float32).min


def test_the_head_runs_once_per_position(make_lm):
    """The last prompt position predicts the first token of all candidates."""
    lm = make_lm(dtype=torch.float64)
    packed = PackedExamples.of(*BATCH[:2], ITEMS)
    read = packed.inputs.score_rows.unique()
    assert packed.read.equal(read) and len(read) < len(packed.inputs.score_rows)
    assert packed.columns.flatten()[packed.places].equal(packed.read)
    width = packed.inputs.input_ids.shape[1]
    assert (packed.columns // width == torch.arange(3)[:, None]).all()
    seen = []

    def counted(hidden, *args):
        seen.append(len(hidden))
        return head_logps(hidden, *args)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(packed_module, "head_logps", counted)
        one, other = packed.logps(lm), packed.logps(lm)  # for policy and reference
    assert seen == [len(read)] * 2 and one.equal(other)


# -------------------------------------------------------------------------------------------------
# with the prompt


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_logps_of_the_prompt_come_from_the_same_pass(make_lm, architecture):
    """The reference is the prompt alone; its first token is not predicted."""
    lm = make_lm(architecture, dtype=torch.float64)
    logps, prompt_logps = packed_logps_with_prompt(lm, PROMPTS, CANDIDATES, ITEMS)
    torch.testing.assert_close(logps, packed_logps(lm, *BATCH), rtol=0, atol=1e-12)
    expected = []
    for ids, length in zip(PROMPT_IDS, PROMPT_LENGTHS, strict=True):
        prompt = ids[:length]
        token_logps = lm(input_ids=prompt[None]).logits[0].log_softmax(-1)
        expected.append(token_logps[torch.arange(length - 1), prompt[1:]].sum())
    torch.testing.assert_close(prompt_logps, torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert prompt_logps[1] == 0  # a prompt of one token


def test_gradients_with_the_prompt(make_lm):
    """Against padded scoring for the candidates and a plain pass for the prompts."""
    lm = make_lm(dtype=torch.float64)
    logps, prompt_logps = packed_logps_with_prompt(lm, PROMPTS, CANDIDATES, ITEMS)
    (2 * logps.sum() - prompt_logps.sum()).backward()
    found = {name: parameter.grad.clone() for name, parameter in lm.named_parameters()}
    lm.zero_grad()
    plain = 0.0
    for ids, length in zip(PROMPT_IDS, PROMPT_LENGTHS, strict=True):
        token_logps = lm(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
        plain = plain + token_logps[torch.arange(length - 1), ids[1:length]].sum()
    (2 * padded_logps(lm, *BATCH).sum() - plain).backward()
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("max_tokens", "sizes"),
    [
        (0, [5]),  # no limit
        (2 * 20, [5]),  # the longer row has 10 + 1 + 3 + 0 + 4 + 2 = 20 tokens
        (2 * 19, [4, 1]),
        (2 * 14, [3, 1, 1]),
        (2 * 3, [1, 1, 1, 1, 1]),  # less than the prompt: one candidate each
    ],
)
def test_candidates_are_split_by_their_longest_row(max_tokens, sizes):
    """Tokens fed: item 1 one, 2 three, 3 none, 4 four, 5 two; the prompts have 10 and 9."""
    items = ItemTokens.from_lists([[], [1] * 2, [1] * 4, [1], [1] * 5, [1] * 3])
    candidates = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 0, 0, 0]])
    parts = split_candidates(torch.tensor([10, 9]), candidates, items, max_tokens)
    assert [part.shape[1] for part in parts] == sizes
    assert torch.cat(parts, 1).equal(candidates)
