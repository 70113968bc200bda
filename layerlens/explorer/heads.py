"""The heads of attention in an explorer: what each contributes, its relevance at each token, where it looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerlens.analyzers.activation.attention.weights import attention
from layerlens.analyzers.common.parts.heads import Heads, find_heads
from layerlens.analyzers.relevance.circuits.contributions import contributions
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.errors import AxesUnknown, InputError, LayerLensError, LayerNotFound
from layerlens.inputs.inputs import Inputs
from layerlens.model.selection import InputOf
from layerlens.model.trees import as_array
from layerlens.plotting.style import Array
from layerlens.results import AttentionWeights, Contributions, Relevance
from layerlens.targets.target import Target
from layerlens.wrapped_model import WrappedModel

from .packing import BYTES, Numbers, block_size, pooled
from .plan import Plan


def heads_of(lens: WrappedModel, inputs: Inputs) -> list[Heads]:
    """Return the attentions of a model whose heads can be read; none for a model without."""
    try:
        return find_heads(lens.model, followed(lens.model, inputs, lens.forward), None, None)
    except LayerNotFound:
        return []


def sites_of(heads: Sequence[Heads]) -> list[InputOf]:
    """Return the layers whose inputs hold the heads side by side, for `layers=` of relevance."""
    return [one.taken for one in heads if one.kind != "output"]


@dataclasses.dataclass(frozen=True)
class HeadValues:
    """The heads of one sample.

    Attributes:
        contributions: direct and total, one for each target.
        tokens: relevance at each place of what the heads return, by attention and head number, `(target, place)`.
        attention: attention weights of the last query, or of all; None if they cannot be read.
    """

    contributions: list[Contributions]
    tokens: dict[tuple[str, int], Array]
    attention: AttentionWeights | None


def read_heads(
    lens: WrappedModel,
    inputs: Inputs,
    targets: Sequence[Target],
    heads: Sequence[Heads],
    relevance: Sequence[Relevance],
    plan: Plan,
    samples: int,
    notes: list[str],
) -> HeadValues | None:
    """Return the values of the heads of one sample; None where they cannot be read.

    Args:
        lens: the model.
        inputs: the sample.
        targets: what is explained.
        heads: its attentions.
        relevance: relevance of each target, with that of `sites_of(heads)`.
        plan: how much room there is.
        samples: number of samples.
        notes: what cannot be shown, which is added to.
    """
    try:
        found: list[Contributions] = []
        for target in targets:
            layers = list(dict.fromkeys(found[0].layers)) if found else None  # so that they are found once
            found.append(contributions(lens.model, inputs, layers, parts="head", target=target, forward=lens.forward))
    except LayerLensError as error:
        notes.append(f"Heads are not shown: {error}")
        return None
    known = followed(lens.model, inputs, lens.forward)
    tokens: dict[tuple[str, int], Array] = {}
    for one in heads:
        rows = [_by_head(known, one, each) for each in relevance]
        there = [row for row in rows if row is not None]
        if len(there) == len(rows):
            tokens |= {(one.label, head): np.stack([row[head] for row in there]) for head in range(one.count)}
        else:
            notes.append(f"Relevance of the heads of {one.label} by token is not shown: its places are not known.")
    count = max((array.shape[1] for array in tokens.values()), default=1)
    every = sum(one.count for one in heads) * count * count * samples <= plan.room("attention")
    weights = None
    try:
        queries = None if every else -1
        weights = attention(lens.model, inputs, queries=queries, forward=lens.forward)
        if not every:
            notes.append("Where heads look is shown from the last token alone, for which there is room.")
    except (InputError, LayerLensError) as error:
        notes.append(f"Attention weights are not shown: {error}")
    return HeadValues(found, tokens, weights)


def _by_head(known: Followed, heads: Heads, relevance: Relevance) -> Array | None:
    """The relevance at each place of each head, `(head, place)` of one sample; None where it is not known."""
    calls = relevance.layers.get(repr(heads.taken))
    if calls is None or len(calls) != 1:
        return None
    values = calls[0]
    rows: int | None
    units: int | None
    if heads.kind == "attention":
        rows, units = 1, 2  # (place, batch, unit) inside of nn.MultiheadAttention
    else:
        try:
            site = known.site(heads.path, 0)
            rows = site.batch_axis(values, heads.tensor, argument=True)
            units = site.unit_axis(values, heads.tensor, argument=True)
        except AxesUnknown:
            return None
    if (
        rows is None
        or units is None
        or values.ndim != 3
        or values.shape[rows] != 1
        or values.shape[units] % heads.count
    ):
        return None
    by_unit = as_array(values.detach().double().movedim((rows, units), (0, 2))[0])  # (place, unit)
    result: Array = by_unit.reshape(len(by_unit), heads.count, -1).sum(axis=2).T
    return result


def packed_heads(
    samples: Sequence[HeadValues | None], plan: Plan, targets: int, numbers: Numbers, notes: list[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any] | None]]:
    """Return the parts, and the values of each sample, for the page.

    Args:
        samples: values of each sample.
        plan: how much room there is.
        targets: number of targets.
        numbers: where arrays go.
        notes: what cannot be shown, which is added to.
    """
    there = [one for one in samples if one is not None]
    if not there:
        return None, [None for _ in samples]
    first = there[0].contributions[0]
    names = list(zip(first.layers, first.index, strict=True))
    parts = [
        {"name": name, "layer": layer, "head": index[0] if index else None}
        for name, (layer, index) in zip(first.items, names, strict=True)
    ]
    with_tokens = [
        place for place, (layer, index) in enumerate(names) if index and (layer, index[0]) in there[0].tokens
    ]
    room = plan.room("heads") / len(samples) / targets / max(len(with_tokens), 1)
    values: list[dict[str, Any] | None] = []
    for one in samples:
        if one is None or any(each.items != first.items for each in one.contributions):
            if one is not None:
                notes.append("The heads of a sample are not shown: its parts are others than those of the first.")
            values.append(None)
            continue
        rows = [one.tokens.get((names[place][0], names[place][1][0])) for place in with_tokens]
        known = [row for row in rows if row is not None]
        whole = bool(known) and len(known) == len(rows) and len({row.shape for row in known}) == 1
        if with_tokens and not whole:
            notes.append("Relevance of heads by token is not shown: the heads have different places.")
        sizes = known[0].shape[1:] if whole else ()
        block = block_size(sizes, int(room))
        values.append({
            "direct": numbers.add(np.stack([each.direct[:, 0].numpy() for each in one.contributions])),
            "total": numbers.add(np.stack([each.total[:, 0].numpy() for each in one.contributions])),
            "sizes": sizes,
            "block": block,
            "tokens": numbers.add(pooled(np.stack(known, axis=1), 1, block)) if whole else None,
            "rest": [
                {
                    "inputs": float(each.inputs[0]),
                    "constants": float(each.constants[0]),
                    "absorbed": float(each.absorbed[0]),
                    "score": float(each.score[0]),
                }
                for each in one.contributions
            ],
            "attention": _attention(one.attention, parts, plan, len(samples), numbers, notes),
        })  # fmt: skip
    return {"parts": parts, "withTokens": with_tokens}, values


def _attention(
    found: AttentionWeights | None, parts: Sequence[dict[str, Any]], plan: Plan, samples: int, numbers: Numbers,
    notes: list[str],
) -> dict[str, Any] | None:  # fmt: skip
    """Attention weights of the heads, `(head, query, block of keys)`, and which parts they are of."""
    if found is None:
        return None
    rows, places = [], []
    for place, part in enumerate(parts):
        layer, head = part["layer"], part["head"]
        if head is not None and layer in found.weights and head < found.weights[layer].shape[1]:
            rows.append(as_array(found.weights[layer][0, head].float()))
            places.append(place)
    if not rows or len({row.shape for row in rows}) > 1:
        why = "those of attentions over different places cannot be shown together" if rows else "no head has any"
        notes.append(f"Attention weights are not shown: {why}; lens.attention(x) has them layer by layer.")
        return None
    bare = {one["layer"] for place, one in enumerate(parts) if one["head"] is not None and place not in places}
    if bare:
        notes.append(f"Attention weights of {', '.join(sorted(bare))} are not shown: they are not known.")
    free = max(plan.room("attention"), 0.9 * plan.bytes / BYTES - numbers.count) / samples
    keys = rows[0].shape[1:]
    block = block_size(keys, int(free / (len(rows) * len(rows[0]))))
    if block > 1:
        note = f"Where heads look is summed over blocks of {block} tokens: a larger size= has room for each token"
        notes.append(f"{note}, and lens.attention(x) has them all.")
    queries = next(iter(found.queries.values()), tuple(range(rows[0].shape[0])))
    weights = numbers.add(pooled(np.stack(rows), 1, block))
    return {"parts": places, "queries": list(queries), "block": block, "weights": weights}
