"""The README.md of an exported model, made from its run's settings and result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.runtime.shown_text import code, markdown, terminal
from recbole_multdpo.settings.backbone_folder import SMOLLM2
from recbole_multdpo.settings.effects import declared, in_run
from recbole_multdpo.settings.information import KEY, KNOWN, LEFT_OUT, SEEN
from recbole_multdpo.settings.language_models import LLMREC
from recbole_multdpo.settings.llmrec import WITHOUT_PREFERENCES, ZERO_SHOT
from recbole_multdpo.settings.protocol import protocol_in_words

# used keys of result.json, besides those that every command needs
CARD_FIGURES = ("valid_result", "num_items", "num_users_evaluated", "test_set", "versions")

CARD = """---
{metadata}---

# {title}

A language model that recommends items of {dataset} by the probability of their titles, trained by
`recbole_multdpo` {version}.

- **Data**: {dataset}, {n_items:,} items.
- **Trained by**: {training}.
- **Shown in a prompt**: {context}.
- **Probability of a title**: `normalize_over: {normalize_over}`. {normalisation}

## Results

{protocol}; {n_users:,} users, test part `{test_set}`; figures of the run, not of this folder's own
evaluation. {known}

| metric | validation | test |
|---|---|---|
{metrics}

## Use

{loading}
catalogue = Catalogue.read(FOLDER)
{prompt}
for title, logp in catalogue.beam_search(model, prompt, k=10{exclude}):
    print(f"{{logp:8.3f}}  {{title}}")
```

`rank_catalogue.py` lies in this folder and needs torch and transformers only. Its `logp` gives the
exact log-probability of one item; `catalogue.json` holds every item's token ids and the prompt's.
Prompts are joined token ids: a prompt that is tokenised as one text may differ. The generation
settings are plain greedy ones; `top_k`, `top_p` or a temperature would change the ranking.

## Share

`hf upload YOUR_NAME/MODEL .` in this folder publishes it on the Hugging Face hub; the lines at the
top of this file are what the hub shows. First state the licence there.

## Limits

It knows the titles of its catalogue only and the tastes of the people in its data. The licences of
the data set and of the backbone hold for it too; the run does not know them.

## Citation

The method is [Mult-DPO](https://arxiv.org/abs/2606.10078)
([code of the paper](https://github.com/yaochenzhu/Mult_DPO)):

```bibtex
@misc{{zhu2026multdpo,
  title = {{Mult-DPO: Multinomial Direct Preference Optimization for Recommender Systems}},
  author = {{Zhu, Yaochen and Steck, Harald and McInerney, James and Sinha, Aditya and He, Yinhan
            and Kallus, Nathan and Li, Jundong}},
  year = {{2026}},
  eprint = {{2606.10078}},
  archivePrefix = {{arXiv}}
}}
```

## Training settings

```yaml
{settings}
```

All settings are in `config.yaml`; where the data set is at hand,
`python -m recbole_multdpo --config_files=config.yaml` trains such a model again.
"""

_OVER_CATALOGUE = (
    "A token's probability is its share among the tokens that continue some title of "
    "`catalogue.json`; the plain probability of the text, without that division, was not trained."
)
_OVER_VOCABULARY = "It is the plain probability of the title's tokens and the end token."

_LOAD_MERGED = """```python
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "."  # where this README is
sys.path.insert(0, FOLDER)
from rank_catalogue import Catalogue

model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER)"""
_LOAD_ADAPTER = """```python
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = "."  # where this README is
sys.path.insert(0, FOLDER)
from rank_catalogue import Catalogue

base = AutoModelForCausalLM.from_pretrained(f"{FOLDER}/base")  # after supervised fine-tuning
model = PeftModel.from_pretrained(base, f"{FOLDER}/adapter").eval()
tokenizer = AutoTokenizer.from_pretrained(f"{FOLDER}/base")"""


_PROMPT_OF_TITLES = """liked = {}
prompt = catalogue.history_prompt(tokenizer, liked)"""
_PROMPT_OF_TALK = """messages = [{"role": "user", "content": "What do you recommend?"}]
prompt = catalogue.conversation_prompt(tokenizer, messages)"""


def model_card(
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    titles: Sequence[str],
    *,
    adapter: bool,
    license_id: str | None = None,
    language: str = "en",
) -> str:
    """The card's text.

    Args:
        settings: the run's settings.
        result: its `result.json`.
        titles: some titles of the catalogue, for the example.
        adapter: True if base model and adapter are separate folders.
        license_id: the hub's name of a licence, such as `mit`; None for one that is not known.
        language: code of the titles' language, such as `en`.
    """
    loss = str(result.get("loss"))
    on_conversations = settings["context"] == "conversation"
    named = json.dumps(list(map(terminal, titles)), ensure_ascii=False)
    return CARD.format(
        title=markdown(f"LLMRec {loss} on {result['dataset']}"),
        metadata=_metadata(settings, result, adapter, license_id, language),
        dataset=markdown(result["dataset"]),
        version=markdown(result["versions"].get("recbole_multdpo")),
        n_items=result["num_items"],
        protocol=markdown(_sentence(protocol_in_words(settings, result.get("candidate_lists")))),
        training=_training(loss),
        context="a conversation" if on_conversations else "titles that a user liked",
        normalize_over=settings["normalize_over"],
        normalisation=(
            _OVER_CATALOGUE if settings["normalize_over"] == "catalogue" else _OVER_VOCABULARY
        ),
        n_users=result["num_users_evaluated"],
        test_set=code(result["test_set"]),
        known=" ".join(
            note
            for note in (KNOWN.get(result.get(KEY, ""), ""), LEFT_OUT.get(result.get(SEEN, ""), ""))
            if note
        ),
        metrics=_metric_rows(result),
        loading=_LOAD_ADAPTER if adapter else _LOAD_MERGED,
        prompt=_PROMPT_OF_TALK if on_conversations else _PROMPT_OF_TITLES.format(named),
        exclude=_exclude(settings, on_conversations),
        settings="\n".join(
            f"{name}: {terminal(settings[name])}" for name in _training_settings(settings)
        ),
    )


def _exclude(settings: Mapping[str, Any], on_conversations: bool) -> str:
    """The argument that leaves out what the run's own ranking leaves out."""
    if not on_conversations:
        return ", exclude=liked"
    keeps = settings.get("mentioned_items") == "keep"
    return "" if keeps else ", exclude=catalogue.mentioned(messages)"


def _training_settings(settings: Mapping[str, Any]) -> list[str]:
    """The settings that the card names, of those that had an effect on the run."""
    run = in_run(settings)
    return [
        key
        for key, acting in declared(LLMREC).items()
        if acting.on_card and key in settings and not acting.failing(run)
    ]


def _training(loss: str) -> str:
    if loss == ZERO_SHOT:
        return "nothing but its pretraining"
    if loss in WITHOUT_PREFERENCES:
        return "supervised fine-tuning"
    return f"supervised fine-tuning, then `{code(loss)}` on set-wise preferences"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _metadata(
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    adapter: bool,
    license_id: str | None,
    language: str,
) -> str:
    """The hub's metadata as lines of YAML: licence, origin, and results with their protocol."""
    from huggingface_hub import EvalResult, ModelCardData

    loss, dataset = str(result.get("loss")), terminal(result["dataset"])
    arguments = {
        "protocol": terminal(protocol_in_words(settings, result.get("candidate_lists"))),
        KEY: terminal(result.get(KEY, "train")),
        "test_set": terminal(result["test_set"]),
    }
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Recommendation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            dataset_args=arguments,
            metric_type=terminal(name),
            metric_name=terminal(name),
            metric_value=value,
        )
        for name, value in result["test_result"].items()
        if value is not None and _is_reported(name, settings)
    ]
    base = _hub_id(str(settings.get("backbone")))
    data = ModelCardData(
        language=terminal(language),
        license="other" if license_id is None else terminal(license_id),
        license_name="that-of-data-set-and-backbone" if license_id is None else None,
        library_name="peft" if adapter else "transformers",
        tags=["recommendation", "recbole", "recbole-multdpo", "dpo", terminal(loss)],
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        datasets=[dataset],
        pipeline_tag="text-generation",
        model_name=f"LLMRec {terminal(loss)}",
        eval_results=results,
    )
    return f"{data.to_yaml()}\n"


def _is_reported(name: str, settings: Mapping[str, Any]) -> bool:
    """True for metrics at the cut-off of `valid_metric`, which are few; all if it has none."""
    cutoff = str(settings.get("valid_metric", "")).partition("@")[2]
    return not cutoff or name.endswith(f"@{cutoff}")


def _hub_id(backbone: str) -> str | None:
    """The backbone's name on the hub; None for `tiny` and for a local folder."""
    if backbone == SMOLLM2:
        return "HuggingFaceTB/SmolLM2-135M-Instruct"
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", backbone) and not Path(backbone).exists()
    return backbone if is_id else None


def _metric_rows(result: Mapping[str, Any]) -> str:
    valid = result["valid_result"] or {}
    return "\n".join(
        f"| {markdown(name)} | {'-' if valid.get(name) is None else valid[name]} | {value} |"
        for name, value in result["test_result"].items()
    )
