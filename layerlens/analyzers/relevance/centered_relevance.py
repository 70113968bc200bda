"""The relevance of tokens beyond that of the mean token of their text."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import baselines, mean_or_zero
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.token_inputs import text_leaves, used_places
from layerlens.errors import OptionError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .book import Bookkeeper, book
from .plan import make_plan
from .record import record
from .rules.linear import FIRST_LAYER_RULES
from .rules.rulebook import Rulebook, as_rulebook
from .sweep import sweep


@method(
    family="relevance",
    passes="1 gradient",
    needs="token ids",
    source="Achtibat et al. 2024, centered",
)
def centered_relevance(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    rules: str | Rulebook = "attn",
    forward: Forward | None = None,
) -> Attribution:
    """Attribute to each token its relevance beyond that of the text's mean embedding, in one backward pass.

    R_t = sum over features of g_t (x_t - m): g_t is the multiplier that relevance propagation gives the embedding x_t
    (R = x g, see `relevance`), and m the mean of the embeddings of the text. It is what the rules predict for
    replacing the token by an average one, as leave-one-out asks. What all embeddings have in common, much of which
    goes to the first token, which many heads attend to, drops out. The best one-pass method on language models in
    docs/language-models.md; `leave_one_out` is more faithful where you can pay for its passes.

    A picture or a series next to the text is centered by the mean of each channel over its places, as `leave_one_out`
    replaces its parts; the columns of a table, which have no mean over places, keep their relevance.

    Args:
        model: ... It reads token ids by an `nn.Embedding`.
        x: token ids `(batch, token)`, or a dict that holds them. Tokens where a tensor `attention_mask` is 0 get 0 and
            are not in the mean.
        target: ... For the next token of a language model take a contrast of two tokens, or a log-probability, rather
            than a bare logit.
        rules: ... A rulebook with a rule for the first layer is refused.

    Returns:
        An `Attribution` `(batch, token)` in units of the score; with other inputs a dict by input name. Its sum is not
        the score; the check `"conservation gap"` is measured before centering.

    Raises:
        InputError: if the input holds no token ids.
        OptionError: if the rulebook does not give multipliers at the input.
        TargetError: if the target does not fit the output.
        RelevanceError: if no relevance can reach the input.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> centered_relevance(net, torch.tensor([[3, 1, 4]]), target=0).tensor.shape
        torch.Size([1, 3])
    """
    if rules != "auto" and any(isinstance(rule, FIRST_LAYER_RULES) for _, rule in as_rulebook(rules).linear):
        raise OptionError(
            f"centered_relevance needs multipliers at the input, and the rulebook {as_rulebook(rules).name!r} has a "
            "rule for the first layer that gives none. Take 'attn', 'cp' or 'epsilon'."
        )
    with borrowed(model):
        recording = record(model, x, [target], rules=rules, forward=forward)
        plan, bookkeeper, scorer = make_plan(recording), Bookkeeper.of(recording), recording.scorer
        texts = text_leaves(scorer, "centered_relevance")
        (swept,) = sweep(recording, plan, bookkeeper)
        result = book(recording, plan, bookkeeper, swept, 0)
        values, centers = {}, baselines(scorer, mean_or_zero(scorer))[0]
        for (name, leaf), multiplier in zip(scorer.leaves.items(), swept.ends, strict=True):
            if name not in texts:
                centered = leaf.value - centers[name]
                values[name] = torch.zeros_like(centered) if multiplier is None else centered * multiplier
                continue
            tokens = used_places(scorer, name)
            used = torch.ones_like(leaf.value[..., :1]) if tokens is None else tokens.unsqueeze(-1).to(leaf.value)
            mean = (leaf.value * used).sum(dim=1, keepdim=True) / used.sum(dim=1, keepdim=True).clamp_min(1)
            centered = (leaf.value - mean) * used
            values[name] = torch.zeros_like(leaf.value) if multiplier is None else centered * multiplier
        return scorer.attribution(
            values,
            method="centered_relevance",
            settings=result.settings,
            score=result.score,
            checks={"conservation gap": result.checks["conservation gap"]},
        )
