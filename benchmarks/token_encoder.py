"""The same test on a sentence encoder: which words make a sentence similar to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens import Target

from .token_prompts import Prompt
from .token_truth import Case, Model

PAIRS = (
    ("plays the guitar", "a musician with an instrument"),
    ("reads an old book", "somebody studies literature"),
    ("cooks a big dinner", "food is prepared in a kitchen"),
    ("repairs the broken car", "a mechanic fixes a vehicle"),
    ("feeds a small dog", "a pet gets its meal"),
    ("paints the wooden fence", "colour is put on a barrier"),
    ("kicks the red ball", "soccer is played outside"),
    ("writes a long letter", "correspondence with a friend"),
    ("buys fresh bread", "shopping at the bakery"),
    ("drives to the airport", "a trip begins with a flight"),
)
FRAMES = (
    "The tall man {} while it rains.",
    "My sister {} every Sunday.",
    "In the afternoon a teacher {} near the lake.",
    "We were told that nobody {} any more.",
    "Because of the noise, the old woman {} alone.",
)


def sentences() -> list[Prompt]:
    """Sentences, each with another one (the answer) that means something like a part of it."""
    return [Prompt("similarity", frame.format(does), like, "") for does, like in PAIRS for frame in FRAMES]


def _mean(states: torch.Tensor) -> torch.Tensor:
    return states.mean(dim=1)


class Encoder(Model):
    """A sentence encoder: the mean of its last states; the fills are its own mask token and separator.

    Args:
        model: one of transformers.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.table = model.get_input_embeddings().weight.detach()
        self.mean = self.table.mean(dim=0)
        self.space = self.table[tokenizer.mask_token_id]
        self.eos = self.table[tokenizer.sep_token_id]

    @staticmethod
    def forward(model: nn.Module, **inputs: torch.Tensor) -> Any:
        """The output."""
        return model(**inputs)

    def reference(self, case: Case) -> torch.Tensor:
        """The embedding of the other sentence, `(feature,)`."""
        with torch.no_grad():
            ids = torch.tensor([self.tokenizer(case.prompt.answer)["input_ids"]])
            return _mean(self.model(input_ids=ids).last_hidden_state)[0]

    def scores(self, case: Case, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The cosine similarity, 0 and 0, `(n, 3)`."""
        with torch.no_grad():
            states = self.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
            if mask is None:
                mean = _mean(states)
            else:
                weights = mask.to(states).unsqueeze(-1)
                mean = (states * weights).sum(1) / weights.sum(1)
            found = torch.cosine_similarity(mean, self.reference(case)[None])
        return torch.stack([found, torch.zeros_like(found), torch.zeros_like(found)], dim=1)

    def target(self, case: Case) -> Target:
        """The cosine similarity with the other sentence."""
        other = self.reference(case)[None]
        return Target(
            lambda output, rows: torch.cosine_similarity(_mean(output.last_hidden_state), other), "similarity"
        )

    def cases(self, prompts: Sequence[Prompt]) -> list[Case]:  # type: ignore[override]
        """All sentences."""
        return [Case(prompt, torch.tensor(self.tokenizer(prompt.text)["input_ids"]), 0, 0) for prompt in prompts]
