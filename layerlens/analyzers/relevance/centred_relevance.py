"""Relevance of tokens beyond what the mean token of their text would get in their place."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.token_inputs import token_leaves, used_tokens
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .linear.rules import DIRECT
from .propagation.propagation import Propagation
from .rules.rulebook import Rulebook, as_rulebook


@method(
    family="relevance",
    passes="1 gradient",
    needs="token ids",
    source="Achtibat et al. 2024, centred",
)
def centred_relevance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    rules: str | Rulebook = "attn",
    forward: Forward | None = None,
) -> Attribution:
    """Relevance of each token, less that of the mean embedding of the text in its place, in one backward pass.

    R_t = sum over features of g_t (x_t - m): g_t is the multiplier that relevance propagation gives the embedding x_t
    (R = x g, see `relevance`), and m the mean of the embeddings of the text. It is what the rules say of the exchange
    of the token by an average one, as leave-one-out asks. What all embeddings have in common, which the first token,
    that many heads attend to, gets much of, falls out. The best of the methods of one pass on language models in
    docs/language-models.md; `leave_one_out` is more faithful where its passes can be paid.

    Args:
        model: any module that reads token ids by an `nn.Embedding`.
        x: its input: token ids `(batch, token)`, or a dict that holds them. Places where a tensor `attention_mask` is 0
            get 0 and are not in the mean.
        target: what to score, as in `layerlens.as_target`; None is the predicted class. For the next token of a
            language model take a contrast of two tokens, or a log-probability, rather than a bare logit.
        rules: a rulebook, or its name, as in `relevance`; one whose first layer has a rule of its own is refused.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        An `Attribution` `(batch, token)` in units of the score. Its sum is not the score; the check
        `"conservation gap"` is that of the relevance before centring.

    Raises:
        InputError: when the input holds no token ids.
        OptionError: when the rulebook does not give multipliers at the input.
        TargetError: when the target does not fit the output.
        RelevanceError: when no relevance can reach the input.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> centred_relevance(net, torch.tensor([[3, 1, 4]]), target=0).tensor.shape
        torch.Size([1, 3])
    """
    if rules != "auto" and any(isinstance(rule, DIRECT) for _, rule in as_rulebook(rules).linear):
        raise OptionError(
            f"centred_relevance needs multipliers at the input, and the rulebook {as_rulebook(rules).name!r} has a "
            "rule for the first layer that gives none. Take 'attn', 'cp' or 'epsilon'."
        )
    with borrowed(model):
        propagation = Propagation(
            model, x, [target], rules=rules, layers=(), through=None, parameters=(), strict=False, forward=forward
        )
        scorer = propagation.scorer
        token_leaves(scorer, "centred_relevance")
        (result,) = propagation.results()
        (multipliers,) = propagation.multipliers
        values = {}
        for name, leaf in scorer.leaves.items():
            passed = multipliers[name]
            used = used_tokens(scorer, name).unsqueeze(-1).to(leaf.value)  # (batch, token, 1)
            mean = (leaf.value * used).sum(dim=1, keepdim=True) / used.sum(dim=1, keepdim=True).clamp_min(1)
            centred = (leaf.value - mean) * used
            values[name] = torch.zeros_like(leaf.value) if passed is None else centred * passed
        return scorer.attribution(
            values,
            method="centred_relevance",
            settings=result.settings,
            score=result.score,
            checks={"conservation gap": result.checks["conservation gap"]},
        )
