"""What a language model does without a token: the truth that maps of tokens are held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .token_prompts import Prompt

FILLS = ("mean", "zero", "space", "eos", "drawn", "masked", "deleted")
"""What stands in the place of a token: the mean embedding of the vocabulary, no embedding, the tokens of a space and of
the end of a text, tokens drawn from the other prompts, nothing that others can attend to, or nothing at all."""

DRAWS = 4
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt as its model reads it.

    Attributes:
        prompt: the text.
        ids: its tokens, `(token,)`.
        answer: token of the answer.
        foil: token of the foil.
    """

    prompt: Prompt
    ids: torch.Tensor
    answer: int
    foil: int


class Model:
    """A causal language model, from embeddings to what the last token says.

    Args:
        model: one of transformers.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.table: torch.Tensor = model.get_input_embeddings().weight.detach()
        self.mean = self.table.mean(dim=0)
        self.space = self.table[tokenizer(" ")["input_ids"][-1]]
        self.eos = self.table[tokenizer.eos_token_id]

    @staticmethod
    def forward(model: nn.Module, **inputs: torch.Tensor) -> Any:
        """The output at the last token only: the head is a fifth of the work."""
        return model(**inputs, use_cache=False, logits_to_keep=1)

    def logits(self, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of the next token, `(n, vocabulary)`, at `(n, token, feature)`."""
        return self.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, logits_to_keep=1).logits[
            :, -1
        ]

    def scores(self, case: Case, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Logit of the answer, of the foil, and log-sum-exp, `(n, 3)`."""
        found = []
        with torch.no_grad():
            for start in range(0, len(embeddings), 32):
                part = slice(start, start + 32)
                logits = self.logits(embeddings[part], None if mask is None else mask[part])
                found.append(torch.cat([logits[:, [case.answer, case.foil]], logits.logsumexp(1, keepdim=True)], dim=1))
        return torch.cat(found)

    def cases(self, prompts: Sequence[Prompt]) -> Iterator[Case]:
        """The prompts that the model completes rightly, with answers of one token."""
        for prompt in prompts:
            answer, foil = (self.tokenizer(text)["input_ids"] for text in (prompt.answer, prompt.foil))
            ids = torch.tensor(self.tokenizer(prompt.text)["input_ids"])
            if len(answer) == len(foil) == 1:
                with torch.no_grad():
                    top = int(self.logits(self.table[ids][None]).argmax())
                if top == answer[0]:
                    yield Case(prompt, ids, answer[0], foil[0])


def without(
    model: Model, ids: torch.Tensor, spans: Sequence[Sequence[int]], fill: str, pool: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The text without each of the sets of tokens: embeddings `(spans (x draws), token, feature)` and a mask or None.

    Args:
        model: whose embeddings.
        ids: the text.
        spans: sets of places of equal size.
        fill: one of `FILLS`.
        pool: token ids to draw from.
        seed: of the draws.
    """
    whole = model.table[ids]
    places = torch.tensor([list(span) for span in spans])  # (span, size)
    rows = torch.arange(len(places)).unsqueeze(1)
    if fill == "deleted":
        kept = torch.ones(len(places), len(ids), dtype=torch.bool)
        kept[rows, places] = False
        return whole.expand(len(places), -1, -1)[kept].reshape(len(places), -1, whole.shape[1]), None
    if fill == "masked":
        mask = torch.ones(len(places), len(ids), dtype=torch.long)
        mask[rows, places] = 0
        mask[:, -1] = 1  # the place that answers has to see something
        return whole.expand(len(places), -1, -1), mask
    if fill == "drawn":
        generator = torch.Generator().manual_seed(seed)
        drawn = pool[torch.randint(len(pool), (DRAWS, *places.shape), generator=generator)]
        copies = whole.repeat(DRAWS, len(places), 1, 1)
        copies[torch.arange(DRAWS)[:, None, None], rows, places] = model.table[drawn]
        return copies.flatten(0, 1), None
    copies = whole.repeat(len(places), 1, 1)
    copies[rows, places] = {"mean": model.mean, "zero": torch.zeros_like(model.mean)}.get(
        fill, getattr(model, fill, model.mean)
    )
    return copies, None


def truth(model: Model, case: Case, pool: torch.Tensor, *, window: int = 1) -> dict[str, torch.Tensor]:
    """By fill, the scores without each run of `window` tokens, `(token - window + 1, 3)`; `"base"` those with all."""
    spans = [tuple(range(start, start + window)) for start in range(len(case.ids) - window + 1)]
    found = {"base": model.scores(case, model.table[case.ids][None])}
    for fill in FILLS:
        scores = model.scores(case, *without(model, case.ids, spans, fill, pool))
        found[fill] = scores.reshape(-1, len(spans), 3).mean(dim=0)
    return found


def drops(found: dict[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    """By fill, how much the score falls without each token: of the `"logit"`, its `"log p"`, or the `"contrast"`."""

    def score(values: torch.Tensor) -> torch.Tensor:
        answer, foil, total = values.double().unbind(-1)
        return {"logit": answer, "log p": answer - total, "contrast": answer - foil}[target]

    return {fill: score(found["base"]) - score(values) for fill, values in found.items() if fill != "base"}
