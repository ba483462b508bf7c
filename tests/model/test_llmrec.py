"""LLMRec: RecBole's hooks agree with each other, and the reference is the policy at step 0."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_multdpo.data.sampler import NegativeSampler
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses.sets import NEGATIVE_LEVEL
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.scoring import packed
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.text import dump_settings
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import N_ITEMS, toy_arguments, toy_model, write_toy


def test_recbole_hooks_and_rankers_agree(data_path: Path, tmp_path: Path) -> None:
    _, _, model = toy_model(data_path, tmp_path)
    model.eval()
    users = torch.tensor([1, 5, 9])
    full = model.full_sort_predict(Interaction({"user_id": users})).view(3, N_ITEMS + 1)
    assert torch.isneginf(full[:, 0]).all()

    # pairs in no particular order, one user twice
    pairs = Interaction(
        {"user_id": torch.tensor([9, 1, 9, 5]), "item_id": torch.tensor([3, 30, 1, 7])}
    )
    expected = torch.stack([full[2, 3], full[0, 30], full[2, 1], full[1, 7]])
    torch.testing.assert_close(model.predict(pairs), expected, atol=1e-4, rtol=1e-5)

    excluded = torch.zeros(3, N_ITEMS + 1, dtype=torch.bool)
    excluded[0, full[0].argmax()] = True
    topk = make_ranker(model, model.histories).topk(users, excluded, 5)
    values, items = full.masked_fill(excluded, -torch.inf).topk(5)
    torch.testing.assert_close(topk.scores, values, atol=1e-4, rtol=1e-5)
    assert torch.equal(topk.items, items)


def test_a_history_of_tiny_takes_a_token_per_title(data_path: Path, tmp_path: Path) -> None:
    """Its tokens are those of the items; a list has a line end and a dash before each."""
    _, _, model = toy_model(data_path, tmp_path)
    _, _, listed = toy_model(data_path, tmp_path, "--history_format=list")
    history = np.array([3, 1, 30])
    for each, n_before in ((model, 0), (listed, 2)):
        ids = each.history_prompts([history]).ids[0].tolist()
        frame = each.prompts.frame_ids()
        assert len(frame["before_title"]) == n_before
        shown = ids[len(frame["head"]) : len(ids) - len(frame["tail"])]
        assert len(shown) == 3 * (n_before + 1)
        assert shown[n_before :: n_before + 1] == each.catalogue.items.ids[history, 0].tolist()


def test_tiny_has_no_tokens_for_parts_of_titles_that_are_whole(
    data_path: Path, tmp_path: Path
) -> None:
    """Its other tokens are bytes and words of the frame; without title tokens, of titles too."""

    def merges(*arguments: str) -> set[str]:
        _, _, model = toy_model(data_path, tmp_path, "--tiny_vocab_size=2000", *arguments)
        assert sum(len(ids) for ids in model.prompts.frame_ids().values()) < 20
        tokens = set(model.tokenizer.get_vocab()) - set(model.tokenizer.get_added_vocab())
        return {token.strip("Ġ") for token in tokens if len(token) > 1}

    word = "Blue"  # of titles, not of the frame
    assert word not in merges()
    assert word in merges("--tiny_title_tokens=False")


def test_a_run_of_before_titles_alone_keeps_its_list(data_path: Path, tmp_path: Path) -> None:
    """Its settings do not have `history_format`; tokenizer and prompt are those of a list."""
    config, dataset, listed = toy_model(data_path, tmp_path, "--history_format=list")
    settings = config.to_dict()
    assert settings.pop("history_format") == "list"
    (tmp_path / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
    loaded = load_config([], run_folder=tmp_path)
    model = LLMRec(loaded, load_parts(loaded)[1][0])
    assert model.prompt == listed.prompt
    assert model.backbone.fingerprint == listed.backbone.fingerprint
    assert toy_model(data_path, tmp_path)[2].backbone.fingerprint != listed.backbone.fingerprint


def test_scoring_in_small_chunks_changes_nothing(data_path: Path, tmp_path: Path) -> None:
    _, _, model = toy_model(data_path, tmp_path, "--score_batch_tokens=150")
    _, _, whole = toy_model(data_path, tmp_path)
    candidates = torch.arange(N_ITEMS + 1).expand(4, -1)
    prompts = model.user_prompts(torch.tensor([1, 2, 3, 4]), model.histories)
    torch.testing.assert_close(
        model.score(prompts, candidates), whole.score(prompts, candidates), atol=1e-4, rtol=1e-5
    )


def test_a_recurrent_backbone_is_scored_exactly_by_the_padded_twin(
    data_path: Path, tmp_path: Path, make_tokenizer
) -> None:
    """Everywhere: pairs, catalogue, ranking, batches; the packed scorer is the control."""
    tokenizer = make_tokenizer()
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "lfm2",
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
            initializer_range=0.3,
        )
    )
    save_backbone(lm, tokenizer, tmp_path / "lfm2")
    own = [f"--backbone={tmp_path / 'lfm2'}", "--scorer=padded", "--ranker=exhaustive"]
    arguments = toy_arguments(data_path, tmp_path / "run", *own, "--normalize_over=vocabulary")
    config = load_config([text for text in arguments if not text.startswith("--tiny_")])
    parts = load_parts(config)[1]
    model = LLMRec(config, parts[0]).eval()
    users, asked = torch.tensor([1, 5]), torch.tensor([3, 17])
    items = model.catalogue.items
    prompts = model.user_prompts(users, model.histories)

    @torch.no_grad()
    def direct(prompt_ids, prompt_length, item):  # type: ignore[no-untyped-def]
        prompt = prompt_ids[:prompt_length]
        text = items.ids[item, : items.lengths[item]]
        logps = model.lm(input_ids=torch.cat([prompt, text])[None]).logits[0].log_softmax(-1)
        return logps[torch.arange(len(text)) + len(prompt) - 1, text].sum()

    expected = torch.stack(
        [
            torch.stack([direct(ids, length, item) for item in range(1, N_ITEMS + 1)])
            for ids, length in zip(prompts.ids, prompts.lengths, strict=True)
        ]
    )
    close = {"atol": 1e-3, "rtol": 1e-5}
    pairs = Interaction({"user_id": users, "item_id": asked})
    torch.testing.assert_close(model.predict(pairs), expected[[0, 1], asked - 1], **close)
    full = model.full_sort_predict(Interaction({"user_id": users})).view(2, -1)
    torch.testing.assert_close(full[:, 1:], expected, **close)
    torch.testing.assert_close(model.score_all(prompts)[:, 1:], expected, **close)
    topk = make_ranker(model, model.histories).topk(users, None, 5)
    torch.testing.assert_close(topk.scores, expected.topk(5).values, **close)
    batch = next(iter(train_loader(config, model, parts[0], "mult_dpo", 2)))
    logps = model._scorer(batch)(model.lm)
    for row in range(2):
        for slot in (batch.candidates[row] > 0).nonzero()[:, 0].tolist():
            item = batch.candidates[row, slot]
            found = direct(batch.prompts.ids[row], batch.prompts.lengths[row], item)
            torch.testing.assert_close(logps[row, slot], found, **close)
    every_item = torch.arange(1, 31).expand(2, -1)
    wrong = packed.packed_logps(model.lm, prompts, every_item, model.catalogue)
    assert (wrong - expected).abs().max() > 0.1


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_log_ratio_is_zero_when_preference_training_starts(
    data_path: Path, tmp_path: Path, finetune: str
) -> None:
    config, parts, model = toy_model(
        data_path, tmp_path, f"--finetune={finetune}", *_lora(finetune)
    )
    loader = train_loader(config, model, parts[0], "mult_dpo", 8)
    loader.set_epoch(0)
    batch = next(iter(loader))

    # a "fine-tuned" policy that differs from the backbone
    base_logps = model._scorer(batch)(model.lm).detach()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tuned_logps = model._scorer(batch)(model.lm).detach()
    assert not torch.allclose(tuned_logps, base_logps, atol=1e-2)

    model.start_preference_stage("mult_dpo")
    output = model.step(batch)
    assert torch.equal(output.policy_logps, output.reference_logps)
    torch.testing.assert_close(output.policy_logps, tuned_logps, atol=1e-3, rtol=1e-4)
    # Eq. 14 at s = 0: N log(N + M) - log N!
    positives, candidates = (batch.levels > 0).sum(1).double(), (batch.levels >= 0).sum(1)
    expected = positives * candidates.double().log() - torch.lgamma(positives + 1)
    torch.testing.assert_close(output.losses.double(), expected, atol=1e-4, rtol=1e-5)

    # training moves the policy and leaves the reference alone
    output.losses.mean().backward()
    with torch.no_grad():
        for parameter in model.lm.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    moved = model.step(batch)
    assert torch.equal(moved.reference_logps, output.reference_logps)
    assert not torch.allclose(moved.policy_logps, moved.reference_logps, atol=1e-3)


def test_levels_come_from_ratings(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(
        data_path, tmp_path, "--loss=lipo_bt", "--level_thresholds=[5, 4]"
    )
    batch = next(iter(train_loader(config, model, parts[0], "mult_dpo", 8)))
    assert set(batch.levels.unique().tolist()) == {-1, 0, 1, 2} - {-1} | (
        {-1} if (batch.candidates == 0).any() else set()
    )
    ratings = {
        (u, i): r
        for u, i, r in zip(
            *(parts[0].inter_feat[f].tolist() for f in ("user_id", "item_id", "rating")),
            strict=True,
        )
    }
    for user, items, levels in zip(
        batch.user_ids.tolist(), batch.candidates.tolist(), batch.levels.tolist(), strict=True
    ):
        for item, level in zip(items, levels, strict=True):
            if level > 0:
                assert level == {5.0: 2, 4.0: 1}[ratings[user, item]]


def test_two_losses_see_the_same_examples(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(data_path, tmp_path)
    many = next(iter(train_loader(config, model, parts[0], "mult_dpo", 8)))
    one = next(iter(train_loader(config, model, parts[0], "s_dpo", 8)))
    assert torch.equal(many.user_ids, one.user_ids)
    assert torch.equal(many.prompts.ids, one.prompts.ids)
    assert torch.equal(many.candidates[:, 0], one.candidates[:, 0])
    assert ((one.levels > 0).sum(1) == 1).all()


def test_an_item_with_the_text_of_a_known_one_is_no_negative(tmp_path: Path) -> None:
    data_path = write_toy(tmp_path / "data")
    items = data_path / "toy" / "toy.item"
    header, *rows = items.read_text(encoding="utf-8").splitlines()
    cells = [row.split("\t") for row in rows]
    half = len(cells) // 2  # two items share every text
    texts = [cell[1:] for cell in cells[:half]] * 2
    rows = ["\t".join([cell[0], *text]) for cell, text in zip(cells, texts, strict=True)]
    items.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    config, parts, model = toy_model(data_path, tmp_path / "run", "--num_negatives=20")
    leaf = model.catalogue.trie.leaf_of_item

    def drawn_twins(known: UserItems) -> int:
        users = np.arange(1, len(known.counts))
        negatives = NegativeSampler(known, len(leaf)).sample(users, 20, seed=0, epoch=0)
        return sum(
            len({*leaf[row].tolist()} & {*leaf[model.histories.history(user)].tolist()})
            for user, row in zip(users.tolist(), negatives, strict=True)
        )

    assert drawn_twins(model.histories) > 0  # control: what the draw would do by item numbers
    for batch in train_loader(config, model, parts[0], "mult_dpo", 8):
        for user, candidates, levels in zip(
            batch.user_ids.tolist(), batch.candidates, batch.levels, strict=True
        ):
            known = {*leaf[model.histories.history(user)].tolist()}
            negatives = leaf[candidates[levels == NEGATIVE_LEVEL]].tolist()
            assert negatives and not known & {*negatives}


def _lora(finetune: str) -> list[str]:
    return ["--lora_r=4"] if finetune == "lora" else []


@pytest.mark.parametrize("longrope", [False, True], ids=["positions", "longrope"])
def test_prompts_longer_than_the_models_context_are_refused(
    data_path: Path, tmp_path: Path, make_lm, make_tokenizer, longrope: bool
) -> None:
    """A folder made for 256 positions; the limit that the message names is accepted."""
    lm, tokenizer = make_lm(), make_tokenizer()
    if longrope:  # above 256 tokens the longest row changes the frequencies of its whole batch
        factors = [1.0] * (lm.config.hidden_size // lm.config.num_attention_heads // 2)
        lm.config.max_position_embeddings = 1024
        lm.config.rope_parameters = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "short_factor": factors,
            "long_factor": [4 * factor for factor in factors],
            "original_max_position_embeddings": 256,
        }
    lm.resize_token_embeddings(len(tokenizer))
    save_backbone(lm, tokenizer, tmp_path / "backbone")

    def load(*extra: str):  # type: ignore[no-untyped-def]
        own = [f"--backbone={tmp_path / 'backbone'}", "--normalize_over=vocabulary"]
        config_of = toy_arguments(data_path, tmp_path / "run", *own, *extra)
        config = load_config([text for text in config_of if not text.startswith("--tiny_")])
        return LLMRec(config, load_parts(config)[1][0])

    many = ["--max_history=500"]
    with pytest.raises(ConfigError, match="was made for 256.*--max_prompt_tokens to at most") as e:
        load(*many)
    limit = re.search(r"at most (\d+)", str(e.value))
    assert limit is not None
    assert load(*many, f"--max_prompt_tokens={limit[1]}").prompts.longest(500) <= int(limit[1])
    load("--max_history=3")  # short prompts need no limit


def one_example(data_path: Path, tmp_path: Path, budget: int, *extra: str):  # type: ignore[no-untyped-def]
    """(model, batch of one example); titles of several tokens, a policy off its reference."""
    settings = ["--tiny_title_tokens=False", "--num_negatives=12", *extra]
    config, parts, model = toy_model(
        data_path, tmp_path, f"--max_tokens_per_batch={budget}", *settings
    )
    loader = train_loader(config, model, parts[0], "mult_dpo", 1)
    loader.set_epoch(0)
    if "--sft_on_prompt=True" not in extra:
        model.start_preference_stage("mult_dpo")
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.lm.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model, next(iter(loader))


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("--normalize_over=vocabulary",),
        ("--finetune=lora", "--lora_r=2"),
        ("--sft_on_prompt=True", "--normalize_over=vocabulary"),
    ],
    ids=["full", "vocabulary", "lora", "sft_on_prompt"],
)
def test_an_example_beyond_the_budget_is_computed_in_parts(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    """Loss and every gradient are those of the example at once, and no forward is too long."""
    lengths: list[int] = []
    pack = packed.pack

    def counted(*arguments):  # type: ignore[no-untyped-def]
        found = pack(*arguments)
        lengths.append(found.input_ids.numel())
        return found

    monkeypatch.setattr(packed, "pack", counted)

    def step(budget: int):  # type: ignore[no-untyped-def]
        # gradients, and their rounding in float32, grow with beta; the tolerances are those of 1
        arguments = ("--beta=1", *extra)
        model, batch = one_example(data_path, tmp_path / str(budget), budget, *arguments)
        lengths.clear()
        output = model.step(batch)
        trained = [p for p in model.lm.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(output.losses.sum(), trained)
        return output.losses.detach(), gradients, batch, list(lengths)

    losses, gradients, batch, whole = step(0)
    budget = int(batch.prompts.lengths.max()) + 12
    parted_losses, parted_gradients, _, parts = step(budget)
    assert max(whole) > budget >= max(parts) and len(parts) > 2 * len(whole)
    torch.testing.assert_close(parted_losses, losses, rtol=1e-5, atol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients)
    for ours, expected in zip(parted_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
