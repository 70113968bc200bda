"""Maps of tokens by every method that fits a language model, with controls that know nothing of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from layerlens import Target, attention, attention_rollout, relevance, saliency

from .token_truth import Case, Model

Map = Callable[[Model, Case, Target], torch.Tensor]
"""(model, text, target) -> one number per token, `(token,)`."""


def target_of(case: Case, name: str) -> Target:
    """The score of the next token: its `"logit"`, its `"log p"`, or its `"contrast"` with the foil."""

    def score(output: Any) -> torch.Tensor:
        logits = output.logits[:, -1]
        if name == "log p":
            return logits.log_softmax(dim=-1)[:, case.answer]
        return logits[:, case.answer] - (logits[:, case.foil] if name == "contrast" else 0)

    return Target(lambda output, rows: score(output), name)


def _saliency(name: str, **options: Any) -> Map:
    def values(model: Model, case: Case, target: Target) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            x = {"input_ids": case.ids[None]}
            return saliency(model.model, x, target=target, method=name, forward=model.forward, **options).tensor[0]

    return values


def _relevance(rules: str) -> Map:
    def values(model: Model, case: Case, target: Target) -> torch.Tensor:
        x = {"input_ids": case.ids[None]}
        return relevance(model.model, x, target=target, rules=rules, forward=model.forward).tensor[0]

    return values


def _norm(model: Model, case: Case, target: Target) -> torch.Tensor:
    x = model.table[case.ids][None].requires_grad_()
    output = model.forward(model.model, inputs_embeds=x)
    (slope,) = torch.autograd.grad(target(output, torch.arange(1)).sum(), x)
    return slope[0].norm(dim=-1)


def _rollout(model: Model, case: Case, target: Target) -> torch.Tensor:
    weights = attention(model.model, {"input_ids": case.ids[None]}, forward=model.forward)
    return attention_rollout(weights)[0, -1]


def _random(model: Model, case: Case, target: Target) -> torch.Tensor:
    return torch.rand(len(case.ids), generator=torch.Generator().manual_seed(int(case.ids.sum())))


PATH = {"steps": 16, "max_steps": 16, "tolerance": math.inf}

METHODS: dict[str, Map] = {
    "leave_one_out": _saliency("leave_one_out"),
    "centred relevance, attn": _saliency("centered_relevance"),
    "centred relevance, cp": _saliency("centered_relevance", rules="cp"),
    "relevance, attn (AttnLRP)": _relevance("attn"),
    "relevance, cp (CP-LRP)": _relevance("cp"),
    "gradient norm": _norm,
    "gradient x input": _saliency("input_x_gradient"),
    "integrated gradients, 16 steps": _saliency("integrated_gradients", **PATH),
    "smooth_grad, 16 samples, abs": _saliency("smooth_grad", samples=16, magnitude=True),
    "attention rollout": _rollout,
    "control: later is more": lambda model, case, target: torch.arange(len(case.ids)).double(),
    "control: random": _random,
}

FOR_ALL_TARGETS = (
    "leave_one_out",
    "centred relevance, attn",
    "relevance, attn (AttnLRP)",
    "relevance, cp (CP-LRP)",
    "gradient x input",
)
"""Methods that are run for each target; the others for the contrast only."""
