"""The catalogue of an exported model: prompts, and the probability of its titles.

`python -m recbole_multdpo.export` writes this file as `rank_catalogue.py` into the model's folder,
with the catalogue as `catalogue.json`. It needs only torch and transformers, and prefers clarity to
speed: one sequence per title, no cache. `recbole_multdpo` computes the same values faster.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from rank_catalogue import Catalogue

    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    catalogue = Catalogue.read(FOLDER)
    liked = ["Toy Story", "Fargo"]
    prompt = catalogue.history_prompt(tokenizer, liked)
    for title, logp in catalogue.beam_search(model, prompt, k=10, exclude=liked):
        print(f"{logp:8.3f}  {title}")

The probability of a title is that of its tokens, the end token included, after the prompt's token
ids. With `normalize_over: catalogue`, each token's probability is divided by the sum over all
tokens that continue some title of the catalogue there: decoding constrained to the catalogue
samples from exactly this distribution. With `normalize_over: vocabulary` it is the model's own
probability.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

FILE_NAME = "catalogue.json"
FORMAT = 1


class Catalogue:
    """Titles with their token ids, and the frame of a prompt.

    Attributes:
        items: each item's `id` (in the data files), `title` and `tokens`, the end token included.
        over_catalogue: True if probabilities are normalised over the catalogue's titles.
        frame: the prompt's fixed token ids and limits.
        next_tokens: every prefix of a title to the tokens that continue it in some title.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        """Take the content of a `catalogue.json`."""
        if content.get("format") != FORMAT:
            raise ValueError(f"catalogue of format {content.get('format')}, not {FORMAT}")
        self.items: list[dict[str, Any]] = content["items"]
        self.over_catalogue = content["normalize_over"] == "catalogue"
        self.frame: dict[str, Any] = content["prompt"]
        self.next_tokens = _followers(item["tokens"] for item in self.items)

    @classmethod
    def read(cls, folder: str | Path) -> Catalogue:
        """The catalogue of an exported folder."""
        return cls(json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8")))

    # ---- prompts ----

    def history_prompt(
        self, tokenizer: Any, liked: Sequence[str], disliked: Sequence[str] = ()
    ) -> list[int]:
        """Token ids of the prompt that shows liked titles, and disliked ones, the latest last.

        Every piece is tokenised separately and the ids are joined, as in training. A long history
        keeps its latest titles; disliked ones need the room that it leaves.
        """
        if self.frame["context"] != "history":
            raise ValueError("this model was trained on conversations: use conversation_prompt")
        before = self.frame["before_title"]
        pieces = [before + _encode(tokenizer, f" {title}") for title in liked]
        pieces = self._fitting(pieces[-self.frame["max_history"] :], self._room)
        room = self._room - sum(map(len, pieces))
        return self._joined(pieces + self._fitting(self._marked(tokenizer, disliked), room))

    def _marked(self, tokenizer: Any, disliked: Sequence[str]) -> list[list[int]]:
        """Token ids of disliked titles with their marks: one token, or those of both."""
        if not disliked:
            return []
        if "mark" not in self.frame:
            raise ValueError("this model was not trained on disliked titles (disliked_in_prompt)")
        pieces = []
        for title in disliked[-self.frame["max_disliked"] :]:
            whole = _encode(tokenizer, f"{self.frame['mark']} {title}")
            apart = self.frame["before_disliked"] + _encode(tokenizer, f" {title}")
            pieces.append(whole if len(whole) == 1 else apart)
        return pieces

    def conversation_prompt(self, tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the prompt that quotes chat messages, each with `role` and `content`."""
        if self.frame["context"] != "conversation":
            raise ValueError("this model was trained on liked titles: use history_prompt")
        pieces = []
        for message in messages:
            before = self.frame["before_turn"][message["role"]]
            said = _encode(tokenizer, f" {' '.join(message['content'].split())}")
            pieces.append(before + said[: self._room - len(before)])
        return self._joined(self._fitting(pieces, self._room))

    @property
    def _room(self) -> int:
        """Number of tokens left for titles or turns."""
        fixed = len(self.frame["head"]) + len(self.frame["tail"])
        return int(self.frame["max_prompt_tokens"]) - fixed

    @staticmethod
    def _fitting(pieces: list[list[int]], room: int) -> list[list[int]]:
        """The latest pieces that fit into `room` tokens."""
        kept: list[list[int]] = []
        for piece in reversed(pieces):
            room -= len(piece)
            if room < 0:
                break
            kept.insert(0, piece)
        return kept

    def _joined(self, pieces: list[list[int]]) -> list[int]:
        middle = [token for piece in pieces for token in piece]
        return self.frame["head"] + middle + self.frame["tail"]

    # ---- probabilities ----

    @torch.no_grad()
    def token_logps(self, model: Any, prompt: list[int], tokens: list[int]) -> list[float]:
        """Log-probability of each token of a title after the prompt, nats."""
        ids = torch.tensor([prompt + tokens], device=model.device)
        logits = model(input_ids=ids).logits[0].float()
        found = []
        for place, token in enumerate(tokens):
            row = logits[len(prompt) + place - 1]
            if self.over_catalogue:
                allowed = self.next_tokens[tuple(tokens[:place])]
                found.append(row[token] - row[allowed].logsumexp(0))
            else:
                found.append(row[token] - row.logsumexp(0))
        return [float(logp) for logp in found]

    def logp(self, model: Any, prompt: list[int], item: int) -> float:
        """Log-probability of `items[item]`, nats."""
        return sum(self.token_logps(model, prompt, self.items[item]["tokens"]))

    # ---- decoding ----

    def allowed_tokens(self, prompt: list[int], end: int) -> Callable[[int, Any], list[int]]:
        """A `prefix_allowed_tokens_fn` for `generate` that decodes only titles of the catalogue.

        Titles of the prompt are among them; `beam_search` can leave them out.

        Args:
            prompt: the prompt's token ids, the same for every sequence of the batch.
            end: the tokenizer's end token, allowed after a complete title.
        """

        def allowed(batch: int, ids: Any) -> list[int]:
            return self.next_tokens.get(tuple(ids[len(prompt) :].tolist()), [end])

        return allowed

    def mentioned(self, messages: Sequence[dict[str, str]]) -> list[str]:
        """Titles that occur in chat messages as whole words, as the catalogue writes them.

        A title inside a longer one that occurs ("Alien" in "Alien Nation") is not returned.
        """
        left = "\n".join(" ".join(message["content"].split()) for message in messages)
        found = []
        for title in sorted({item["title"] for item in self.items}, key=len, reverse=True):
            pattern = rf"(?<!\w){re.escape(title)}(?!\w)"
            if title in left and re.search(pattern, left):
                found.append(title)
                left = re.sub(pattern, "\n", left)
        return found

    @torch.no_grad()
    def beam_search(
        self,
        model: Any,
        prompt: list[int],
        k: int,
        beams: int | None = None,
        exclude: Collection[str] = (),
    ) -> list[tuple[str, float]]:
        """The k titles with the highest log-probabilities found by beam search, best first.

        Exact if none of the k best titles drops out of the beam; more `beams` (default k) make that
        less likely. `exclude` leaves out titles, such as those of the prompt: the result is the k
        best of the others (fewer if fewer are left), and their log-probabilities are the same as
        without it.

        Raises:
            ValueError: an excluded title is not in the catalogue.
        """
        if missing := set(exclude) - {item["title"] for item in self.items}:
            raise ValueError(f"no such titles in the catalogue: {', '.join(sorted(missing))}")
        others = [item for item in self.items if item["title"] not in exclude]
        end = self.items[0]["tokens"][-1]
        ids = torch.tensor([prompt], device=model.device)
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=max(beams or k, k),
            num_return_sequences=k,
            max_new_tokens=max(len(item["tokens"]) for item in self.items),
            logits_processor=[self._decoded(len(prompt), end, others)],
            length_penalty=0.0,  # a sum of log-probabilities, not their mean
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_scores=True,
        )
        titles: dict[tuple[int, ...], str] = {}
        for item in others:
            titles.setdefault(tuple(item["tokens"]), item["title"])
        answers = []
        for sequence, score in zip(found.sequences, found.sequences_scores, strict=True):
            tokens = sequence[len(prompt) :].tolist()
            complete = tuple(tokens[: tokens.index(end) + 1]) if end in tokens else ()
            if complete in titles and score > -torch.inf:
                answers.append((titles[complete], float(score)))
        return answers

    def _decoded(
        self, n_prompt: int, end: int, others: Sequence[dict[str, Any]]
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """A logits processor: the log-probabilities of `token_logps`, for `others` alone.

        Excluded titles keep their share of the probability, so that leaving them out changes no
        other title's.
        """
        kept = _followers(item["tokens"] for item in others)

        def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logps = torch.full_like(scores, -torch.inf)
            for row, begun in enumerate(ids[:, n_prompt:].tolist()):
                allowed = self.next_tokens.get(tuple(begun), [end])
                values = scores[row, allowed].float()
                if self.over_catalogue:
                    values = values.log_softmax(0)
                logps[row, allowed] = values.to(logps.dtype)
                gone = set(allowed).difference(kept.get(tuple(begun), [end]))
                logps[row, sorted(gone)] = -torch.inf
            return logps

        return process


def _followers(titles: Iterable[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Every prefix of token lists to the tokens that continue it in some list."""
    followers: dict[tuple[int, ...], set[int]] = {}
    for tokens in titles:
        for place, token in enumerate(tokens):
            followers.setdefault(tuple(tokens[:place]), set()).add(token)
    return {begun: sorted(found) for begun, found in followers.items()}


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of untrusted text: special tokens in it are read as plain characters."""
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    ids: list[int] = encoded["input_ids"]
    return ids
