"""A chat model's answers: how likely they are without some of the sentences, and what other methods say of those."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens import Target, attention, relevance, saliency
from layerlens.targets.outputs import main_output

from .answer_contexts import Context
from .answer_forward import Quick

SHARED = 3
"""Ablations that agree in this many first sentences share what the model made of them."""


class Prompt:
    """A context as a chat model reads it, in pieces of tokens.

    Args:
        model: causal language model of `transformers`.
        tokenizer: its tokenizer, with a chat template.
        context: sentences and question.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, context: Context) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        body = f"Context:{''.join(context.sources)}\n\nQuery: {context.question}"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": body}], tokenize=False, add_generation_prompt=True
        )
        before, after = text.split("".join(context.sources))
        self.before, self.after = self.read(before), self.read(after)
        self.pieces = [self.read(source) for source in context.sources]
        if self.ids() != self.read(text):
            raise ValueError(f"the tokens of the sentences are not those of the text: {text!r}")

    def read(self, text: str) -> list[int]:
        """Tokens of a text, special tokens as the text has them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids(self, mask: Any = None) -> list[int]:
        """Tokens of the prompt with the sentences that a mask keeps."""
        kept = [True] * len(self.pieces) if mask is None else mask
        return [
            *self.before,
            *(t for piece, keep in zip(self.pieces, kept, strict=True) if keep for t in piece),
            *self.after,
        ]

    def generate(self, length: int) -> list[int]:
        """Tokens of the greedy answer, without the end."""
        ids = torch.tensor([self.ids()])
        with torch.inference_mode():
            found = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=2
            )
        new = found[0, ids.shape[1] :].tolist()
        return new[: new.index(2)] if 2 in new else new

    def odds(self, quick: Quick, masks: np.ndarray, answer: list[int]) -> np.ndarray:
        """Log-odds of every token of the answer, `(ablation, token)`."""
        found = np.zeros((len(masks), len(answer)))
        first = min(SHARED, masks.shape[1])
        keys = [tuple(mask[:first].tolist()) for mask in masks]
        wanted = torch.tensor(answer)[:, None]
        for key in sorted(set(keys)):
            rows = [row for row, own in enumerate(keys) if own == key]
            head = [*self.before, *(t for piece, keep in zip(self.pieces, key, strict=False) if keep for t in piece)]
            bodies = [self.ids(masks[row])[len(head) :] + answer for row in rows]
            with torch.inference_mode():
                hidden, _ = quick.read(bodies, quick.read([head])[1])
                for row, body, states in zip(rows, bodies, hidden, strict=True):
                    logits = quick.logits(states[len(body) - len(answer) - 1 : len(body) - 1])
                    others = logits.scatter(1, wanted, -math.inf).logsumexp(1)
                    found[row] = (logits.gather(1, wanted)[:, 0] - others).numpy()
        return found


def log_probability(odds: np.ndarray) -> np.ndarray:
    """Log-probability of an answer from the log-odds of its tokens, over the last axis."""
    return -np.logaddexp(0, -odds).sum(axis=-1)


def logit(log_p: np.ndarray) -> np.ndarray:
    """Return log p - log(1 - p), the score of ContextCite."""
    return log_p - np.log(-np.expm1(np.minimum(log_p, -1e-12)))


def score_of(answer: list[int]) -> Target:
    """The log-probability of an answer at the end of the input."""

    def score(output: Any, rows: torch.Tensor) -> torch.Tensor:
        logits = main_output(output)[:, -len(answer) - 1 : -1]
        wanted = torch.tensor(answer).expand(len(logits), -1)[..., None]
        return logits.log_softmax(dim=2).gather(2, wanted).sum(dim=(1, 2))

    return Target(score, "log p")


def maps(prompt: Prompt, answer: list[int], names: Sequence[str]) -> dict[str, np.ndarray]:
    """By method, one number per sentence."""
    x = {"input_ids": torch.tensor([prompt.ids() + answer])}
    edges = np.cumsum([len(prompt.before), *map(len, prompt.pieces)])

    def forward(model: nn.Module, **inputs: torch.Tensor) -> Any:
        return model(**inputs, use_cache=False, logits_to_keep=len(answer) + 1)

    def gradient(name: str, **options: Any) -> torch.Tensor:
        return saliency(prompt.model, x, target=score_of(answer), method=name, forward=forward, **options).tensor[0]

    def propagated(rules: str) -> torch.Tensor:
        return relevance(prompt.model, x, target=score_of(answer), rules=rules, forward=forward).tensor[0]

    def watched() -> torch.Tensor:
        length = x["input_ids"].shape[1]
        asked = list(range(length - len(answer) - 1, length - 1))
        weights = attention(prompt.model, x, heads="mean", queries=asked, forward=forward)
        return torch.stack([weights[name] for name in weights]).mean(dim=(0, 1, 2, 3))

    every: dict[str, Callable[[], torch.Tensor]] = {
        "relevance, cp": lambda: propagated("cp"),
        "relevance, attn": lambda: propagated("attn"),
        "centered relevance, attn": lambda: gradient("centered_relevance"),
        "centered relevance, cp": lambda: gradient("centered_relevance", rules="cp"),
        "gradient x input": lambda: gradient("input_x_gradient"),
        "integrated gradients": lambda: gradient("integrated_gradients", steps=4, max_steps=4, tolerance=math.inf),
        "attention": watched,
    }
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            values = every[name]().double()
            found[name] = np.array([float(values[a:b].sum()) for a, b in itertools.pairwise(edges)])
    return found
