"""Attention weights of any model, including fused kernels that never store them."""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from layerlens.errors import InputError, OptionError, choose
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.inputs.sequences import InputSequence, resized, sequences
from layerlens.model.borrowed import borrowed
from layerlens.model.call_tracking import Running
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import Layers, Selection
from layerlens.probes.function_probe import function_name
from layerlens.results import AttentionWeights
from layerlens.signatures import public

from .written_softmax import Softmaxes

Positions = int | slice | Sequence[int] | None
"""Some positions: one, a slice, or several; negative ones count from the end. None for all."""

_FUSED = inspect.signature(F.multi_head_attention_forward)
_HIDDEN = ("attention", "attn", "transformer_encoder_layer")
"""Parts of the names of functions that compute attention without returning its weights."""


@public
def attention(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    heads: Literal["each", "mean"] = "each",
    queries: Positions = None,
    keys: Positions = None,
    forward: Forward | None = None,
) -> AttentionWeights:
    """Return the weights of every attention in a model: softmax(q k^T / sqrt(d) + mask), one matrix per head.

    The model runs once, in eval mode and without gradients. Where it calls
    `F.scaled_dot_product_attention` (whichever kernel answers), the weights are computed from the same arguments;
    where it writes attention out, they are the softmax over the last axis that values are multiplied with, by `@`,
    `bmm` or `einsum`; `nn.MultiheadAttention` is asked to return them too. Its fast path, which hides a
    whole encoder layer, is off during the run. A softmax over features that is multiplied with a matrix, as in linear
    attention, is taken for attention; weights that are mixed after the softmax are not found.

    Args:
        layers: ... Attention inside them counts.
        heads: `"each"`, or `"mean"` over heads, which leaves one.
        queries: queries to keep: one, a slice, or several positions; None for all. Memory and time of fused
            attention then depend on the queries kept, so that long texts fit: batch x heads x queries x keys each.
        keys: keys to keep, in the same way; rows then sum to less than 1.

    Raises:
        InputError: when no attention was found, or one whose weights are unknown, such as `flex_attention`.
        LayerNotFound: when the selection matches no layer.
        OptionError: when there are no such queries or keys.

    Source: Vaswani et al. 2017, eq. 1.

    Example:
        >>> encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        >>> attention(encoder, torch.ones(1, 3, 4))["self_attn"].shape
        torch.Size([1, 2, 3, 3])
    """
    choose("heads", heads, ("each", "mean"))
    inside = None if layers is None else set(Layers(model).select(layers))
    given = as_inputs(x)
    result = AttentionWeights(type(model).__name__, {}, {}, heads=heads)

    def watched(inputs: Inputs, result: AttentionWeights, queries: Positions, keys: Positions) -> _AttentionWatch:
        running = Running(model)
        watch = _AttentionWatch(running, inside, result, queries, keys, _batch(inputs))
        with borrowed(model, grad=False), layers_called(), running, watch:
            inputs.run(model, running.around(forward))
        return watch

    watch = watched(given, result, queries, keys)
    if watch.hidden:
        calls = ", ".join(f"{layer or 'the model'} calls {name}" for layer, name in watch.hidden.items())
        raise InputError(
            f"{calls}: a kernel that does not return its weights. Load the model with another attention (in "
            "transformers: attn_implementation='sdpa' or 'eager'), or select other layers."
        )
    if not result.weights:
        where = "" if inside is None else " inside the selected layers"
        raise InputError(
            f"no attention was found in {type(model).__name__}{where}: neither F.scaled_dot_product_attention, nor "
            "nn.MultiheadAttention, nor a softmax over the last axis that is multiplied with values."
        )
    found = sequences(given)
    if len(found) > 1:  # such as source and answer
        sizes = [(str(one), *_sizes_with_another_length(given, one, watched)) for one in found if one.ids is not None]
        for layer, own in watch.sizes.items():
            known = [(name, more, other[layer]) for name, more, other in sizes if layer in other]
            along = [[name for name, more, other in known if other[axis] == own[axis] + more] for axis in (0, 1)]
            if len(known) == len(sizes) and all(len(names) < 2 for names in along):
                result.inputs[layer] = (next(iter(along[0]), None), next(iter(along[1]), None))
    return result


def _sizes_with_another_length(
    given: Inputs, sequence: InputSequence, watched: Callable[..., _AttentionWatch]
) -> tuple[int, dict[str, tuple[int, int]]]:
    """By how many places an input was made longer, and the numbers of queries and keys of each attention then."""
    inputs, more = resized(given, sequence)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watch = watched(inputs, AttentionWeights("", {}, {}), 0, 0)
    except Exception:  # whatever the model raises for an input that it does not take
        return more, {}
    return more, watch.sizes


def _batch(given: Inputs) -> int | None:
    """Return the number of samples, or None if the inputs disagree."""
    sizes = {tensor.shape[0] for tensor in given.tensors().values() if tensor.ndim}
    return sizes.pop() if len(sizes) == 1 else None


class _AttentionWatch(TorchFunctionMode):
    """Reads the weights of every attention while a model runs."""

    def __init__(
        self,
        running: Running,
        inside: set[str] | None,
        result: AttentionWeights,
        queries: Positions,
        keys: Positions,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.hidden: dict[str, str] = {}
        self._running, self._inside, self._result, self._batch = running, inside, result, batch
        self._queries, self._keys, self._mean = queries, keys, result.heads == "mean"
        self._softmaxes = Softmaxes()
        self._counts: Counter[str] = Counter()
        self.sizes: dict[str, tuple[int, int]] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        kinds: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        frame = self._running.frame
        if frame is None or not self._is_inside_selection(frame.layer):
            return result
        name = function_name(function)
        if function is F.scaled_dot_product_attention:
            count = args[0].shape[-2] if args else kwargs["query"].shape[-2]
            chosen = positions(self._queries, count, "queries")
            self._add(frame.layer, fused_weights(*args, **{**kwargs, "queries": chosen}), name, count)
        elif function is F.multi_head_attention_forward:
            asked = _FUSED.bind(*args, **kwargs).arguments
            asked |= {"need_weights": True, "average_attn_weights": False, "training": False}
            weights = function(**asked)[1]
            self._add(frame.layer, weights if weights.ndim == 4 else weights.unsqueeze(0), "MultiheadAttention")
        elif any(part in name for part in _HIDDEN):
            self.hidden.setdefault(frame.layer, name)
        else:
            weights = self._softmaxes.follow(name, args, kwargs, result)
            if weights is not None:
                self._add(frame.layer, weights, "softmax and product")
        return result

    def _is_inside_selection(self, layer: str) -> bool:
        chosen = self._inside
        return chosen is None or "" in chosen or any(f"{layer}.".startswith(f"{path}.") for path in chosen)

    def _add(self, layer: str, weights: torch.Tensor, how: str, query_count: int | None = None) -> None:
        """Store the requested weights; `query_count` is given if only a part of the queries was computed."""
        place = layer or "(model)"
        index = self._counts[place]
        self._counts[place] += 1
        name = f"{place}#{index}" if index else place
        weights = with_four_axes(weights.detach(), self._batch)
        self.sizes[name] = query_count or weights.shape[-2], weights.shape[-1]
        chosen = positions(self._queries, self.sizes[name][0], "queries")
        if chosen is not None:
            weights = weights if query_count is not None else weights[..., chosen, :]
            self._result.queries[name] = tuple(chosen)
        chosen = positions(self._keys, weights.shape[-1], "keys")
        if chosen is not None:
            weights = weights[..., chosen]
            self._result.keys[name] = tuple(chosen)
        if self._mean:
            weights = weights.mean(dim=1, keepdim=True)
        self._result.weights[name], self._result.how[name] = weights, how


def positions(part: Positions, count: int, what: str) -> list[int] | None:
    """Return the requested positions among `count`; None for all.

    Raises:
        OptionError: when there are none, or one is outside.
    """
    if part is None:
        return None
    if isinstance(part, slice):
        given = list(range(count)[part])
    else:
        given = [operator.index(place) for place in (part if isinstance(part, Iterable) else [part])]
    if not given or any(not -count <= place < count for place in given):
        raise OptionError(f"{what}={part!r}: an attention has {count} {what}; give positions among them.")
    return [place % count for place in given]


def with_four_axes(weights: torch.Tensor, batch: int | None) -> torch.Tensor:
    """Return weights as `(batch, head, query, key)`: folded heads are unfolded, windows count as samples."""
    if weights.ndim == 3:
        folded = batch is not None and weights.shape[0] % batch == 0
        return weights.reshape(batch, -1, *weights.shape[1:]) if folded and batch else weights.unsqueeze(1)
    return weights[None, None] if weights.ndim == 2 else weights.flatten(0, -4)


def fused_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    queries: list[int] | None = None,
) -> torch.Tensor:
    """Compute the weights that `F.scaled_dot_product_attention` uses and does not return, `(batch, head, query, key)`.

    They are computed in float32 or the dtype of the query, whichever is wider, without dropout. Rows with every key
    masked are 0, as the kernel's output is. `queries` are the rows to compute; None for all.
    """
    rows = torch.arange(query.shape[-2], device=query.device)
    if queries is not None:
        rows = rows[queries]
        query = query[..., queries, :]
        if attn_mask is not None and attn_mask.ndim > 1 and attn_mask.shape[-2] != 1:
            attn_mask = attn_mask[..., queries, :]
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(-1, -2)).to(wide) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        seen = rows[:, None] >= torch.arange(key.shape[-2], device=query.device)  # (query, key)
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    masked = (scores == -math.inf).all(dim=-1, keepdim=True)  # softmax would return NaN
    return torch.softmax(scores, dim=-1).masked_fill(masked, 0.0).to(query.dtype)
