"""Rankers of the catalogue: `exact` for LLMRec, `beam` for D3, `grounding` for BIGRec."""

from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking.beam import BeamRanker
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.ranking.grounding import GroundingRanker
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.settings.llmrec import BIGRecSettings, D3Settings, LLMRecSettings

RANKERS: dict[type[LLMRecSettings], type[Ranker]] = {
    LLMRecSettings: ExactRanker,
    D3Settings: BeamRanker,
    BIGRecSettings: GroundingRanker,
}


def make_ranker(model: LLMRec, histories: UserItems) -> Ranker:
    """The ranker of a model that is not trained yet, without an assistant.

    Args:
        model: its settings decide.
        histories: the items that prompts show of each user, unless there are conversations.

    Raises:
        ConfigError: the backbone is not one that can rank so.
    """
    return RANKERS[type(model.settings)].of(model, histories)
