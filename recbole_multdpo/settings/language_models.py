"""Registry of the language models: LLMRec, and baselines that share its data and training.

A baseline differs in its ranking. It consists of:

- its settings, a subclass of LLMRec's with the baseline's own fields;
- `properties/model/<name>.yaml`, read after LLMRec's file: these fields, and defaults that differ;
- its ranker in `ranking/`, with an entry in `ranking.RANKERS`.
"""

from recbole_multdpo.settings.llmrec import BIGRecSettings, D3Settings, LLMRecSettings

LLMREC = "LLMRec"
LANGUAGE_MODELS: dict[str, type[LLMRecSettings]] = {
    LLMREC: LLMRecSettings,
    "BIGRec": BIGRecSettings,
    "D3": D3Settings,
}


def models_with(keys: set[str] | frozenset[str]) -> str:
    """Names of the language models with these settings: the first with all, else those with any."""
    having = [name for name, kind in LANGUAGE_MODELS.items() if keys & kind.model_fields.keys()]
    complete = [name for name in having if keys <= LANGUAGE_MODELS[name].model_fields.keys()]
    return complete[0] if complete else " and ".join(having)
