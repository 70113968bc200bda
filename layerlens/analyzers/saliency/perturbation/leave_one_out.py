"""Leave-one-out: how much the score falls when one token of a text, or one part of a picture, is exchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize
from layerlens.analyzers.common.features.baselines import Baseline, labeled, mean_or_zero
from layerlens.analyzers.common.features.coalitions import Coalitions
from layerlens.analyzers.common.features.column_groups import NAMED, is_groups
from layerlens.analyzers.common.features.input_features import Features, Spec as FeatureSpec, features_of
from layerlens.analyzers.common.leaves.leaves import leaf_name
from layerlens.analyzers.common.messages import sample_numbers
from layerlens.analyzers.common.registry import method
from layerlens.analyzers.common.rounds import Rounds
from layerlens.analyzers.common.scorer import Scorer, scoring, warn_of_zeros
from layerlens.analyzers.common.token_inputs import text_leaves, used_places
from layerlens.errors import InputError, OptionError, check_count, check_seed
from layerlens.inputs.inputs import Forward, Input
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec


@method(
    family="perturbation",
    passes="4 forward passes (draws) per token and 1 forward pass a part of other inputs",
    needs="token ids",
    source="Li, Monroe & Jurafsky 2016",
)
def leave_one_out(
    model: nn.Module,
    x: Input,
    *,
    target: Spec = None,
    fill: Baseline = "drawn",
    features: FeatureSpec = None,
    draws: int = 4,
    until: float | None = None,
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

    Inputs of other kinds next to the text, such as a picture or a series, are left out part by part in the same way,
    each part replaced by the mean of every channel over the places. All values are falls of one score, so those of a
    patch and of a word compare. Every value of a part has the number of the part. Tokens that only hold a place for a
    picture are neither left out nor drawn.

    Args:
        model: ... It reads token ids by an `nn.Embedding`.
        x: ... Token ids `(batch, token)`, or a dict that holds them; places where a tensor `attention_mask` is 0 get 0.
        target: ... For the next token of a language model take a contrast of two tokens or a log-probability, not a
            logit.
        fill: what replaces a token. `"drawn"`: tokens of other places of the text; `"zero"`: the zero embedding; a
            whole number: the id of a reference token (mask, padding); or an embedding, such as the mean of all. For
            inputs of other kinds a dict by input name, of `"mean"` (default; `"zero"` for columns, which have no mean
            over places), `"blur"`, or any other baseline of `integrated_gradients`.
        features: which values are left out together: None for tokens, columns, and about 64 parts of a picture or a
            series; a number of parts, or another choice, for inputs of other kinds; or a dict by input name. Tokens
            can be grouped by labels where the fill is not drawn.
        draws: number of tokens drawn for each place, without repetition; a shorter text uses all its others.
        until: ... Where there are no drawn fills there is nothing to draw.

    Returns:
        An `Attribution` `(batch, token)` in units of the score, with the standard error over the draws, as a sample of
        many fills there could be (NaN where a text of two tokens has one). With other inputs a dict by input name. The
        progress bar and `cost` say the number of passes.

    Raises:
        OptionError: when an option is out of range, or the fill or the features do not fit.

    Example:
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> leave_one_out(net, torch.tensor([[3, 1, 4]]), target=0).tensor.shape
        torch.Size([1, 3])
    """
    check_count("draws", draws)
    check_seed(seed)
    with scoring(model, x, target, forward=forward, grad=False) as scorer:
        texts = text_leaves(scorer, "leave_one_out")
        fills = _fills(scorer, fill, texts)
        drawn = [name for name, one in fills.items() if isinstance(one, str) and one == "drawn"]
        coalitions = Coalitions(scorer, fills | dict.fromkeys(drawn, "zero"), batch_size)
        parts = _parts(scorer, features, texts, drawn)
        exchanges = {name: _all_exchanges(scorer, name, draws, seed) for name in drawn}
        passes = _passes(scorer, parts, exchanges)
        said = ", ".join(f"{count} for {name}" for name, count in passes.items())
        values, errors = {}, {}
        if parts is not None:
            scores = coalitions.features(parts, 1 - torch.eye(parts.count), f"leave_one_out, passes: {said}")
            drops = coalitions.score.double() - scores.double()  # (parts, batch)
            values = parts.spread(drops.T.float(), scorer.leaves)
            errors = {name: torch.zeros_like(one if name not in texts else one[..., 0]) for name, one in values.items()}
        rounds, done = Rounds("leave_one_out", "draws", draws, until if drawn else None, first=4), 0
        falls = {name: torch.zeros(len(one), dtype=torch.float64).to(one.device) for name, one in exchanges.items()}
        for most in rounds:
            for name, every in exchanges.items():
                number = every[:, 3]
                now = (number >= done) & (number < most)
                falls[name][now] = _drops(coalitions, name, every[now], f"leave_one_out, passes: {said}")
                own = number < most
                means, errors[name] = _means(falls[name][own], every[own], scorer.leaves[name].value.shape[:2])
                values[name] = means.unsqueeze(-1)
            done = most
            numbers = {name: one.sum(dim=-1) if name in texts else one for name, one in values.items()}
            rounds.look(numbers, errors, _degrees(exchanges, done))
        exchanges = {name: every[every[:, 3] < done] for name, every in exchanges.items()}
        passes = _passes(scorer, parts, exchanges)
        said = ", ".join(f"{count} for {name}" for name, count in passes.items())
        warn_of_zeros(values, "leave_one_out")
        names = {name: labeled(one) for name, one in fills.items()}
        found = scorer.attribution(
            values,
            method="leave_one_out",
            settings={
                "fill": names.popitem()[1] if len({*names.values()}) == 1 else ", ".join(map(": ".join, names.items())),
                **(rounds.settings if drawn else {"draws": None}),
                "seed": seed,
                **({} if parts is None else {"features": parts.count}),
                "batch_size": coalitions.batch_size,
            },
            score=coalitions.score,
            standard_error=errors if drawn and done > 1 else None,
            degrees=_degrees(exchanges, done),
            checks=rounds.checks(),
        )
        several = len(passes) > 1
        return dataclasses.replace(found, cost=f"{sum(passes.values())} forward passes: {said}") if several else found


def _fills(scorer: Scorer, fill: Baseline, texts: list[str]) -> dict[str, Baseline]:
    """Return the fill of every leaf.

    Raises:
        OptionError: when one is unknown, or is for an input that is not there.
    """
    given = fill if isinstance(fill, Mapping) else dict.fromkeys(texts, fill)
    given = {leaf_name(scorer.inputs, scorer.leaves, name, "input name in fill="): one for name, one in given.items()}
    for name, one in given.items():
        if isinstance(one, str) and name in texts and one not in ("drawn", "zero"):
            others = {other: one for other in scorer.leaves if other not in texts}
            raise OptionError(
                f"unknown fill {one!r}. Known: 'drawn', 'zero', a token id, an embedding."
                + f" For other inputs give a dict by input name: fill={others}." * bool(others)
            )
        if isinstance(one, str) and one == "drawn" and name not in texts:
            raise OptionError(f"fill='drawn' is for token ids; for input {name!r} give 'mean', 'blur' or 'zero'.")
    return mean_or_zero(scorer) | dict.fromkeys(texts, "drawn") | given


def _parts(scorer: Scorer, spec: FeatureSpec, texts: list[str], drawn: list[str]) -> Features | None:
    """Return what is left out together; None where every token has drawn fills and nothing else is left out.

    Raises:
        OptionError: when it does not fit, or groups tokens whose fill is drawn.
    """
    if not isinstance(spec, Mapping):
        spec = dict.fromkeys([name for name in scorer.leaves if name not in texts] or texts, spec)
    if not is_groups(spec):
        spec = {leaf_name(scorer.inputs, scorer.leaves, name, NAMED): one for name, one in spec.items()}
        given = {name: one for name, one in spec.items() if one is not None}
        if len(drawn) == len(scorer.leaves) and not given:
            return None
        spec = {**dict.fromkeys(drawn, torch.tensor(-1)), **given}
    parts = features_of(scorer, spec)
    if grouped := [name for name in drawn if bool((parts.labels[name] >= 0).any())]:
        raise OptionError(
            f"fill='drawn' exchanges single tokens, so those of {grouped[0]!r} cannot be grouped by features=. Give "
            f"one fill for all, fill={{{grouped[0]!r}: 'zero'}}, or the id of a reference token instead of 'zero'."
        )
    return parts


def _passes(scorer: Scorer, parts: Features | None, exchanges: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of passes for each input, per sample."""
    labels = {} if parts is None else parts.labels
    batch = len(scorer.rows)
    counts = {name: len(torch.unique(one[one >= 0])) for name, one in labels.items()}
    return counts | {name: -(-len(one) // batch) for name, one in exchanges.items()}


def _all_exchanges(scorer: Scorer, name: str, draws: int, seed: int) -> torch.Tensor:
    """Return the exchanges of every sample, see `_exchanges`."""
    used = used_places(scorer, name)
    shape = scorer.leaves[name].value.shape[:2]
    used = torch.ones(shape, dtype=torch.bool, device=scorer.rows.device) if used is None else used
    return torch.cat([_exchanges(row, kept, draws, seed) for row, kept in enumerate(used)])


def _exchanges(row: int, used: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Which place gets the token of which other place, `(exchanges, 4)`: row, place, source, number of the draw.

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
    columns = [
        torch.full_like(sources, row),
        places.unsqueeze(1).expand_as(sources),
        sources,
        torch.arange(sources.shape[1], device=places.device).expand_as(sources),
    ]
    return torch.stack(columns, dim=-1).flatten(0, 1)


def _drops(coalitions: Coalitions, name: str, exchanges: torch.Tensor, said: str) -> torch.Tensor:
    """S(x) - S(x changed) for each exchange, in double precision."""
    whole, drops = coalitions.ends, []
    with torch.no_grad():
        for part in track(torch.split(exchanges, coalitions.batch_size), said):
            rows, places, others = part[:, :3].unbind(dim=1)
            values = {other: value[rows] for other, value in whole.items()}
            values[name][torch.arange(len(rows), device=rows.device), places] = whole[name][rows, others]
            drops.append(coalitions.score[rows].double() - coalitions.scorer(values, rows).double())
    return torch.cat(drops)


def _degrees(exchanges: Mapping[str, torch.Tensor], draws: int) -> int:
    """Return the degrees of freedom of the errors: one below the fewest draws of a place."""
    counts = [torch.unique(one[:, :2], dim=0, return_counts=True)[1].min() for one in exchanges.values()]
    return max(1, min([draws, *map(int, counts)]) - 1)


def _means(drops: torch.Tensor, exchanges: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the drops at each place `(batch, token)`, and its standard error."""
    where = exchanges[:, 0] * shape[1] + exchanges[:, 1]
    sums, squares, counts = (
        torch.zeros(shape.numel(), dtype=drops.dtype, device=drops.device).index_add_(0, where, part)
        for part in (drops, drops.square(), torch.ones_like(drops))
    )
    means = sums / counts.clamp_min(1)
    spread = (squares / counts.clamp_min(1) - means.square()).clamp_min(0) / (counts - 1).clamp_min(1)
    error = torch.where(counts == 1, torch.nan, spread.sqrt())  # one draw does not say how draws differ
    return means.reshape(shape).float(), error.reshape(shape).float()
