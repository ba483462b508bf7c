"""List of RecBole's models that can score conversations (`classical.conversations`)."""

from __future__ import annotations

from recbole.config import Config

from recbole_multdpo.errors import ConfigError

USER_FREE = ("Pop", "Random")
ROW_MODELS = ("EASE", "ItemKNN", "SLIMElastic")


def check_conversation_model(config: Config) -> None:
    """Refuse a model that cannot score conversations.

    Raises:
        ConfigError: the model knows users only by their id.
    """
    name = config["model"]
    by_user = name == "ItemKNN" and config["knn_method"] != "item"
    if name not in (*ROW_MODELS, *USER_FREE) or by_user:
        raise ConfigError(
            f"model={name} knows users by their id, and every conversation of the test part is a "
            f"new one. Use {', '.join((*ROW_MODELS, *USER_FREE))} or LLMRec (ItemKNN with "
            "knn_method=item)."
        )
