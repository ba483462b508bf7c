"""Which models are language models: LLMRec, and baselines that share its data and its training.

A baseline differs in how it ranks. It has three things:

- its settings, a class derived from LLMRec's, with the fields that only the baseline has;
- `properties/model/<name>.yaml`, read after LLMRec's file: those fields, and defaults that differ;
- its ranker in `ranking/`, with an entry in `ranking.RANKERS`.
"""

from recbole_multdpo.settings.llmrec import BIGRecSettings, D3Settings, LLMRecSettings

LLMREC = "LLMRec"
LANGUAGE_MODELS: dict[str, type[LLMRecSettings]] = {
    LLMREC: LLMRecSettings,
    "BIGRec": BIGRecSettings,
    "D3": D3Settings,
}


def owners(keys: set[str] | frozenset[str]) -> str:
    """The language models that have one of the settings: the first that has all, else a list."""
    having = [name for name, kind in LANGUAGE_MODELS.items() if keys & kind.model_fields.keys()]
    complete = [name for name in having if keys <= LANGUAGE_MODELS[name].model_fields.keys()]
    return complete[0] if complete else " and ".join(having)
