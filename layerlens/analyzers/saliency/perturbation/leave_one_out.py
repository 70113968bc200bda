"""Leave-one-out: how much the score falls when one token of a text is exchanged."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.features.baselines import Baseline, baselines
from layerlens.analyzers.common.messages import sample_numbers
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.scorer import Leaves, Scorer, scoring, warn_of_zeros
from layerlens.analyzers.common.token_inputs import token_leaves
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@method(
    family="perturbation",
    passes="4 forward passes (draws) per token",
    needs="token ids",
    source="Li, Monroe & Jurafsky 2016",
)
def leave_one_out(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    fill: Baseline = "drawn",
    draws: int = 4,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Measure how much the score falls when each token of a text is exchanged for another one.

    R_t = S(x) - mean over fills f of S(x with f instead of t) (Li, Monroe & Jurafsky 2016, eq. 4, of scores and
    not of log-probabilities). The embedding of the token is exchanged; its position stays.

    Nothing is approximated, but what is asked depends on the fill: docs/language-models.md measures by how much. By
    default other tokens of the same text replace it, which are more natural to a model than an embedding of zeros.

    Args:
        model: ... It reads token ids by an `nn.Embedding`.
        x: ... Token ids `(batch, token)`, or a dict that holds them; places where a tensor `attention_mask` is 0 get 0.
        target: ... For the next token of a language model take a contrast of two tokens or a log-probability, not a
            logit.
        fill: what replaces a token. `"drawn"`: tokens of other places of the text; `"zero"`: the zero embedding; a
            whole number: the id of a reference token (mask, padding); or an embedding, such as the mean of all.
        draws: number of tokens drawn for each place, without repetition; a shorter text uses all its others.

    Returns:
        An `Attribution` `(batch, token)` in units of the score, with the standard error over the draws.

    Raises:
        OptionError: when an option is out of range, or the fill does not fit.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> leave_one_out(net, torch.tensor([[3, 1, 4]]), target=0).tensor.shape
        torch.Size([1, 3])
    """
    check_count("draws", draws)
    check_seed(seed)
    if isinstance(fill, str) and fill not in ("drawn", "zero"):
        raise OptionError(f"unknown fill {fill!r}. Known: 'drawn', 'zero', a token id, an embedding.")
    with scoring(model, x, target, forward=forward, grad=False) as scorer:
        token_leaves(scorer, "leave_one_out")
        whole = {name: leaf.value for name, leaf in scorer.leaves.items()}
        score, batch = first_score(scorer, whole, batch_size, gradient=False)
        drawn = isinstance(fill, str) and fill == "drawn"
        fills, label = ({}, "drawn") if drawn else baselines(scorer, fill)
        drop_means, errors = {}, {}
        for name in whole:
            used = torch.ones(whole[name].shape[:2], dtype=torch.bool, device=scorer.rows.device)
            if drawn:
                exchanges = torch.cat([_exchanges(row, kept, draws, seed) for row, kept in enumerate(used)])
            else:
                row, place = used.nonzero().unbind(dim=1)
                exchanges = torch.stack([row, place, place], dim=1)
            drops = _drops(scorer, whole, name, fills.get(name), exchanges, score, batch)
            drop_means[name], errors[name] = _means(drops, exchanges, whole[name].shape[:2])
        warn_of_zeros(drop_means, "leave_one_out")
        return scorer.attribution(
            {name: value.unsqueeze(-1) for name, value in drop_means.items()},
            method="leave_one_out",
            settings={"fill": label, "draws": draws if drawn else None, "seed": seed, "batch_size": batch},
            score=score,
            standard_error=errors if drawn and draws > 1 else None,
        )


def _exchanges(row: int, used: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Which place gets the token of which other place, `(exchanges, 3)`: row, place, source.

    Raises:
        InputError: when the text is one token.
    """
    places = used.nonzero().flatten()
    count = len(places)
    if count < 2:
        raise InputError(
            f"sample {sample_numbers([row])[0]} is a text of {count} token(s), so no other token can replace it. "
            "Give fill='zero' or the id of a reference token."
        )
    order = torch.rand(count, count - 1, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :draws]
    own = torch.arange(count).unsqueeze(1)
    sources = places[(order + (order >= own)).to(places.device)]  # (count, draws): never the place itself
    return torch.stack(
        [torch.full_like(sources, row), places.unsqueeze(1).expand_as(sources), sources], dim=-1
    ).flatten(0, 1)


def _drops(
    scorer: Scorer,
    whole: Leaves,
    name: str,
    fill: torch.Tensor | None,
    exchanges: torch.Tensor,
    score: torch.Tensor,
    batch: int,
) -> torch.Tensor:
    """S(x) - S(x changed) for each exchange, in double precision."""
    source = whole[name] if fill is None else fill
    drops = []
    with torch.no_grad():
        for part in track(torch.split(exchanges, batch), "leave_one_out"):
            rows, places, others = part.unbind(dim=1)
            values = {other: value[rows] for other, value in whole.items()}
            values[name][torch.arange(len(rows), device=rows.device), places] = source[rows, others]
            drops.append(score[rows].double() - scorer(values, rows).double())
    return torch.cat(drops)


def _means(drops: torch.Tensor, exchanges: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the drops at each place `(batch, token)`, and its standard error."""
    where = exchanges[:, 0] * shape[1] + exchanges[:, 1]
    sums, squares, counts = (
        torch.zeros(shape.numel(), dtype=drops.dtype, device=drops.device).index_add_(0, where, part)
        for part in (drops, drops.square(), torch.ones_like(drops))
    )
    means = sums / counts.clamp_min(1)
    spread = (squares / counts.clamp_min(1) - means.square()).clamp_min(0) / (counts - 1).clamp_min(1)
    return means.reshape(shape).float(), spread.sqrt().reshape(shape).float()
