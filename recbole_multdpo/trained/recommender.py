"""Recommendations with a finished run, from Python.

    from recbole_multdpo import Recommender

    recommender = Recommender.load("saved/my-run")
    for answer in recommender.for_users(["1", "2"], k=5):
        print(answer.user, [item.title for item in answer.recommendations])

For a user of the data set this is the ranking of the run's test: training and validation items are
excluded, and the prompt shows the same history. Items that the user has rated below `val_interval`
are excluded too, whenever that was and whatever the run's `seen_items` says: nobody wants to be
recommended what they already know and dislike. `Recommender.load(folder, seen_items="positives")`
ranks as a test with that value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor
from tqdm import tqdm

from recbole_multdpo.classical.conversations import row_scores
from recbole_multdpo.classical.general_recommender.sequentialrules import recency_rows
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.conversation_text import ROLES, Message
from recbole_multdpo.data.item_text import clean_text
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.runs.unchanged import check_split
from recbole_multdpo.scoring.topk import TopK, stable_topk
from recbole_multdpo.settings.conversation_models import ROW_MODELS, USER_FREE
from recbole_multdpo.settings.language_models import LLMREC
from recbole_multdpo.trained.lookup import TitleIndex, find_users
from recbole_multdpo.trained.run import TrainedRun, load_run

BATCH_USERS = 32


@dataclass(frozen=True)
class Item:
    """An item of the catalogue: its id in the data files and its text."""

    id: str
    title: str


@dataclass(frozen=True)
class Recommendation:
    """One place of a ranking.

    Attributes:
        rank: from 1.
        id: the item's id in the data files.
        title: the item's text.
        score: see `Recommender.score_name`.
        in_test: True if the user liked it in the test part; None for typed input.
    """

    rank: int
    id: str
    title: str
    score: float
    in_test: bool | None


def one_per_text(ranked: Sequence[Recommendation]) -> list[tuple[Recommendation, int]]:
    """The recommendations with the number of items of their text; a text is at its best place.

    Data sets have several ids for one title. A list of ids is what is tested; people read titles.
    """
    first: dict[str, Recommendation] = {}
    counts: dict[str, int] = {}
    for item in ranked:
        before = first.setdefault(item.title, item)
        if item.in_test and not before.in_test:
            first[item.title] = replace(before, in_test=True)
        counts[item.title] = counts.get(item.title, 0) + 1
    return [(item, counts[title]) for title, item in first.items()]


@dataclass(frozen=True)
class Query:
    """Input of one ranking, in inner ids.

    Attributes:
        user: inner id in the data set; None for typed input.
        shown: items of the prompt, the latest last, or items mentioned in the conversation.
        said: the turns of a conversation; None for histories.
        excluded: items that are not recommended.
        test: the user's items in the test part; None for typed input.
        disliked: low-rated items that the prompt shows, or that EASE reads; none where neither
            does.
    """

    user: int | None
    shown: np.ndarray
    said: list[Message] | None
    excluded: np.ndarray
    test: np.ndarray | None
    disliked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Answer:
    """The recommendations for one user, list of titles or conversation.

    Attributes:
        user: id in the data files; None for typed input.
        history: the items shown in the prompt, or the user's items known to the model.
        conversation: the turns shown in the prompt; None for histories.
        recommendations: best first.
        disliked: low-rated items that the prompt shows, or that were typed.
    """

    user: str | None
    history: list[Item]
    conversation: list[Message] | None
    recommendations: list[Recommendation]
    disliked: list[Item] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Recommender:
    """Ranks the whole catalogue with the model of a finished run.

    Attributes:
        run: the run.
        titles: the catalogue's titles, for typed text.
    """

    def __init__(
        self, run: TrainedRun, seen_items: Literal["positives", "rated"] = "rated"
    ) -> None:
        """Prepare a loaded run; `load` loads one from its folder.

        Args:
            run: the run.
            seen_items: items that users of the data set are not recommended, besides those of
                training and validation: with `rated`, all that they have rated low.

        Raises:
            ConfigError: the model is sequential, context-aware or a decision tree.
        """
        kind = run.config["MODEL_TYPE"]
        if kind in (ModelType.SEQUENTIAL, ModelType.CONTEXT, ModelType.DECISIONTREE):
            raise ConfigError(
                f"model={run.result['model']}: recommendations of {kind.name.lower()} models are "
                "not supported; use a run of LLMRec or of a model for general recommendation, "
                "such as EASE or BPR."
            )
        self.run = run
        names = run.dataset.field2id_token[run.dataset.iid_field]
        self.titles = TitleIndex(run.titles, [str(name) for name in names])
        self._is_lm = run.config.settings is not None
        shown = (0,) if run.config["test_information"] == "train" else (0, 1)
        self._shown, self._known, self._test = (run.items_of(*n) for n in (shown, (0, 1), (2,)))
        low = run.dataset.low_ratings
        if seen_items == "rated" and low is not None:
            self._known = self._known.union(low.all(run.dataset.user_num))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        seen_items: Literal["positives", "rated"] = "rated",
        **options: Any,
    ) -> Recommender:
        """Load a run folder; further arguments, and errors, are those of `load_run`."""
        return cls(load_run(folder, **options), seen_items)

    @property
    def score_name(self) -> str:
        """Human-readable name of the score."""
        if self.run.result["model"] != LLMREC:
            return f"score of {self.run.result['model']}"
        if self.run.model.catalogue.normalised:
            return "log-probability among the catalogue's titles, nats"
        return "log-probability of the title's text, nats"

    @property
    def is_probability(self) -> bool:
        """True if scores are log-probabilities that sum to 1 over the catalogue."""
        return self.run.result["model"] == LLMREC and self.run.model.catalogue.normalised

    def popular_titles(self) -> list[str]:
        """The catalogue's texts, those with most training rows first."""
        items = self.run.items_of(0).items
        counts = np.bincount(items, minlength=len(self.run.titles))[1:]
        order = np.argsort(-counts, kind="stable") + 1
        return list(dict.fromkeys(self.run.titles[item] for item in order.tolist()))

    def some_users(self, n: int) -> list[str]:
        """Ids of the first n users of the test part, as examples."""
        users = np.flatnonzero(self._test.counts)[:n]
        return [str(self.user_name(int(user))) for user in users]

    def for_users(
        self, users: Sequence[str | int], k: int = 10, *, show_progress: bool = False
    ) -> Iterator[Answer]:
        """Recommendations for users of the data set, in the given order.

        The ranking is that of the run's test, but for `seen_items`; `in_test` marks its hits.

        Args:
            users: ids as in the data files.
            k: length of the lists.
            show_progress: show a bar on stderr.

        Raises:
            DataError: a user is not in the data set.
            ConfigError: k is not between 1 and the size of the catalogue.
        """
        self.check_k(k)
        return self._answers(self.user_queries(users), k, show_progress)

    def for_titles(self, liked: Sequence[str], k: int = 10, disliked: Sequence[str] = ()) -> Answer:
        """Recommendations for liked titles, the latest last.

        Args:
            liked: titles as in the catalogue.
            k: length of the list.
            disliked: titles that are not recommended and speak against others, to a model that was
                trained with `disliked_in_prompt` or `low_rating_weight`.

        Raises:
            DataError: a title is not in the catalogue; the message names the nearest ones.
            ConfigError: the model knows users by id only, was trained on conversations, or was not
                told of disliked items.
        """
        self.check_k(k)
        return next(self._answers([self.titles_query(liked, disliked)], k, False))

    def for_conversation(self, messages: Sequence[Message], k: int = 10) -> Answer:
        """Recommendations that continue a conversation.

        Mentioned items are excluded if the run was trained with `mentioned_items: exclude`. Models
        of RecBole see only the mentioned items.

        Raises:
            ConfigError: the run was not trained on conversations.
            DataError: there is no message, or a role is unknown; for a model of RecBole, no title
                of the catalogue is mentioned.
        """
        self.check_k(k)
        return next(self._answers([self.conversation_query(messages)], k, False))

    # ---- input ----

    def user_queries(self, users: Sequence[str | int]) -> list[Query]:
        """Input for users of the data set, as in the run's test; see `for_users`."""
        check_split(self.run.folder, self.run.changed)
        dataset = self.run.dataset
        where = f"{self.run.config['dataset']} as the run in {self.run.folder} filtered it"
        known = dataset.field2id_token[dataset.uid_field]
        found = np.array(find_users([str(user) for user in users], known, where), dtype=np.int64)
        if self.run.on_conversations:
            shown = [dataset.conversations.mentioned.history(user) for user in found]
        elif self._is_lm:
            shown = self.run.ranker.shown_histories(found)
        else:
            shown = [self._shown.history(user) for user in found]
        low = self.run.model.shown_disliked(found, shown) if self._is_lm else None
        return [
            Query(
                user,
                items,
                self._said(user),
                self._seen(user),
                self._test.history(user),
                items[:0] if low is None else low[row],
            )
            for row, (user, items) in enumerate(zip(found.tolist(), shown, strict=True))
        ]

    def titles_query(self, liked: Sequence[str], disliked: Sequence[str] = ()) -> Query:
        """Input for liked titles; see `for_titles`."""
        items = np.array(self.titles.find_all(liked), dtype=np.int64)
        low = np.array(self.titles.find_all(disliked) if disliked else [], dtype=np.int64)
        shown = items
        if self._is_lm:
            if self.run.on_conversations:
                raise ConfigError(
                    f"the run in {self.run.folder} was trained on conversations: give one instead "
                    "of titles."
                )
            shown = self.run.model.prompts.kept(items, self.run.model.settings.ranking_history)
        if len(low) and not self.reads_disliked:
            raise ConfigError(
                f"the run in {self.run.folder} was not told what users dislike. Leave the disliked "
                "titles out, or train with --disliked_in_prompt=32 (EASE: --low_rating_weight=0.6)."
            )
        both = np.union1d(items, low).tolist()
        excluded = np.array(self.titles.same_text(both), dtype=np.int64)
        if self._is_lm:
            low = self.run.model.prompts.kept_disliked(low, shown)
        return Query(None, shown, None, excluded, None, low)

    @property
    def reads_disliked(self) -> bool:
        """True if low ratings are an input of the model: titles may be named as disliked."""
        model = self.run.model
        return (
            model.disliked if self._is_lm else getattr(model, "low_similarity", None)
        ) is not None

    def conversation_query(self, messages: Sequence[Message]) -> Query:
        """Input for a conversation; see `for_conversation`."""
        said = _cleaned(messages)
        text = "\n".join(message["content"] for message in said)
        mentioned = np.array(self.titles.mentioned_in(text), dtype=np.int64)
        if self._is_lm and not self.run.on_conversations:
            raise ConfigError(
                f"the run in {self.run.folder} was trained on histories of titles, not on "
                "conversations: give liked titles."
            )
        name = self.run.result["model"]
        if not self._is_lm and len(mentioned) == 0 and name not in USER_FREE:
            raise DataError(
                f"{name} sees mentioned titles only, and the conversation mentions none as the "
                "catalogue writes it."
            )
        keep = self.run.on_conversations and self.run.config["mentioned_items"] == "keep"
        named = [] if keep else self.titles.same_text(mentioned.tolist())
        return Query(None, mentioned, said, np.array(named, dtype=np.int64), None)

    def _seen(self, user: int) -> np.ndarray:
        """Items excluded for a user."""
        seen = self._known.history(user)
        excluded = self.run.dataset.excluded if self.run.on_conversations else None
        if excluded is not None:
            seen = np.union1d(seen, excluded.history(user))
        return np.setdiff1d(seen, self._test.history(user))

    def _said(self, user: int) -> list[Message] | None:
        if not self.run.on_conversations:
            return None
        conversations = self.run.dataset.conversations
        turns = (conversations.turns[turn] for turn in conversations.of(user).tolist())
        return [Message(role=role, content=text) for role, text in turns]

    # ---- ranking ----

    def prompts(self, queries: Sequence[Query]) -> Prompts:
        """A language model's prompts."""
        model = self.run.model
        if not self.run.on_conversations:
            low = None if model.disliked is None else [query.disliked for query in queries]
            return model.history_prompts([query.shown for query in queries], low)
        said = [query.said or () for query in queries]
        return model.conversation_prompts([[(m["role"], m["content"]) for m in s] for s in said])

    def _rank(self, queries: Sequence[Query], k: int) -> TopK:
        """The k best items of each query; all queries are of the data set, or all typed."""
        excluded = torch.zeros(len(queries), self.run.dataset.item_num, dtype=torch.bool)
        for row, query in enumerate(queries):
            excluded[row, torch.from_numpy(query.excluded)] = True
        excluded = excluded.to(self.run.config["device"])
        if self._is_lm:
            return self.run.ranker.rank(self.prompts(queries), excluded, k)
        users = [query.user for query in queries]
        if users[0] is None and self.run.result["model"] not in USER_FREE:
            scores = self._scores_of_rows(
                [query.shown for query in queries], [query.disliked for query in queries]
            )
        else:
            scores = self._scores_of_users([user or 0 for user in users])
        scores = scores.to(excluded.device).float().masked_fill(excluded, -torch.inf)
        scores[:, 0] = -torch.inf
        return TopK(*stable_topk(scores, k), torch.zeros(len(queries), dtype=torch.long))

    @torch.no_grad()
    def _scores_of_users(self, users: list[int]) -> Tensor:
        """Scores of a model of RecBole for users of the data set, [B, n_items]."""
        dataset, model = self.run.dataset, self.run.model
        interaction = Interaction({dataset.uid_field: torch.tensor(users)})
        interaction = interaction.to(self.run.config["device"])
        try:
            scores = model.full_sort_predict(interaction)
        except NotImplementedError:  # such as NeuMF, which scores pairs; one user's at a time
            items = torch.arange(dataset.item_num, device=self.run.config["device"])
            pairs = interaction.repeat_interleave(len(items))
            pairs.update(Interaction({dataset.iid_field: items.repeat(len(users))}))
            starts = range(0, len(pairs), len(items))
            scores = torch.cat([model.predict(pairs[at : at + len(items)]) for at in starts])
        return scores.view(len(users), -1)

    def _scores_of_rows(self, histories: list[np.ndarray], disliked: list[np.ndarray]) -> Tensor:
        """Scores of a model of RecBole for new users with these items, [B, n_items]."""
        name, model = self.run.result["model"], self.run.model
        readers = (*ROW_MODELS, "SequentialRules")
        if name not in readers or name == "ItemKNN" and model.method != "item":
            raise ConfigError(
                f"{name} knows users by their id in the data set and has none for a new user. "
                f"Give users, or use a run of LLMRec or of {', '.join((*readers, *USER_FREE))} "
                "(ItemKNN with knn_method=item)."
            )
        n_items = self.run.dataset.item_num
        recency = getattr(model, "recency", 1.0)
        scores = row_scores(model, recency_rows(histories, n_items, recency))
        if self.reads_disliked:
            scores = scores + recency_rows(disliked, n_items) @ model.low_similarity
        return torch.from_numpy(scores)

    # ---- answers ----

    def check_k(self, k: int) -> None:
        """Refuse a k that is not between 1 and the size of the catalogue."""
        n_items = self.run.dataset.item_num - 1
        if not 1 <= k <= n_items:
            raise ConfigError(f"k={k} must be between 1 and the {n_items} items of the catalogue.")

    def item(self, inner_id: int) -> Item:
        """The item with this inner id."""
        return Item(self.run.item_name(inner_id), self.run.titles[inner_id])

    def user_name(self, user: int | None) -> str | None:
        """A user's id in the data files; None for typed input."""
        names = self.run.dataset.field2id_token[self.run.dataset.uid_field]
        return None if user is None else str(names[user])

    def _answers(self, queries: list[Query], k: int, show_progress: bool) -> Iterator[Answer]:
        # None: no bar without a terminal
        hidden = None if show_progress else True
        with tqdm(total=len(queries), unit="user", disable=hidden) as bar:
            for start in range(0, len(queries), BATCH_USERS):
                batch = queries[start : start + BATCH_USERS]
                topk = self._rank(batch, k)
                for query, items, scores in zip(
                    batch, topk.items.tolist(), topk.scores.tolist(), strict=True
                ):
                    yield self._answer(query, items, scores)
                    bar.update()

    def _answer(self, query: Query, items: list[int], scores: list[float]) -> Answer:
        recommendations = [
            Recommendation(
                rank,
                self.run.item_name(item),
                self.run.titles[item],
                score,
                None if query.test is None else bool(item in query.test),
            )
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
            if item  # fewer items than k may be left
        ]
        history = [self.item(item) for item in query.shown.tolist()]
        disliked = [self.item(item) for item in query.disliked.tolist()]
        user = self.user_name(query.user)
        return Answer(user, history, query.said, recommendations, disliked)


def _cleaned(messages: Sequence[Message]) -> list[Message]:
    """The non-empty messages, each on one line.

    Raises:
        DataError: a role is unknown, or no message is left.
    """
    unknown = {message["role"] for message in messages}.difference(ROLES)
    if unknown:
        names = ", ".join(map(repr, sorted(unknown)))
        raise DataError(f"unknown role {names}; allowed: {', '.join(ROLES)}")
    said = [Message(role=m["role"], content=clean_text(m["content"])) for m in messages]
    said = [message for message in said if message["content"]]
    if not said:
        raise DataError("the conversation is empty; type at least one message")
    return said
