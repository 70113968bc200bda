"""Attention rollout over the input: patches of an image, or tokens."""

from __future__ import annotations

import torch
from torch import nn

from layerlens.analyzers.activation.attention.rollout import attention_rollout
from layerlens.analyzers.activation.attention.weights import attention
from layerlens.axes.follow import Followed
from layerlens.axes.followed import followed
from layerlens.axes.layout import Grid, arranged, grid
from layerlens.axes.placement import placed
from layerlens.axes.provenance.axis import Axis
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.signatures import public

AXES: tuple[str, ...] = ("batch", "token")
IMAGE_AXES: tuple[str, ...] = ("batch", "height", "width")


@public
def attention_rollout_map(
    model: nn.Module,
    x: Input,
    layers: Selection = None,
    *,
    query: int | None = None,
    residual: float = 0.5,
    forward: Forward | None = None,
) -> Attribution:
    """Attribute a token of the last layer to the input tokens, or patches of an image, by what attention carries to it.

    The rollout of Abnar & Zuidema 2020 as an attribution: for an image, patches are arranged on their grid and
    enlarged to its pixels. Values, feed-forward parts and targets have no part in it: it is the same map for every
    class.

    Args:
        model: ... It has a stack of self-attention layers over the same tokens.
        x: ... An image batch `(batch, channel, height, width)`, token ids, or embeddings.
        layers: ... Attention inside them is read.
        query: token of the last layer to attribute; None for the first where an image has tokens before its
            patches (the class token), else the mean over all.
        residual: share of the skip connection, from 0 to below 1.

    Returns:
        An `Attribution` `(batch, height, width)` of an image, each pixel with the share of its patch, or
        `(batch, token)`. The score is 1, the sum of the shares of all tokens; the check `"left out"` is the share of
        tokens that are not patches.

    Raises:
        InputError: when there is no attention, layers attend to different tokens, or the patches form no grid.
        OptionError: when there is no such query.

    Source: Abnar & Zuidema 2020, ACL, eq. 1; Dosovitskiy et al. 2021, appendix D.7, for images.

    Example:
        >>> layer = nn.TransformerEncoderLayer(4, 2, batch_first=True, dropout=0.0)
        >>> result = attention_rollout_map(nn.TransformerEncoder(layer, 2), torch.rand(1, 5, 4))
        >>> result.values.shape, bool(torch.isclose(result.tensor.sum(), torch.tensor(1.0)))
        (torch.Size([1, 5]), True)
    """
    given = as_inputs(x)
    weights = attention(model, given, layers, forward=forward)
    rollout = attention_rollout(weights, residual=residual)
    tensors = given.tensors()
    name, image = next(((key, part) for key, part in tensors.items() if part.ndim == 4), ("", None))
    count = rollout.shape[1]
    if query is not None and not -count <= query < count:
        raise OptionError(f"query={query!r}, but the last layer has {count} tokens (0 to {count - 1}).")
    tokens = None
    if image is not None:
        last = weights.layers[-1].partition("#")[0].replace("(model)", "")
        found = followed(model, given, forward)
        tokens = _places(found, last, count, name, image)
    at = 0 if query is None and tokens is not None and tokens[1].places < count else query
    shares = rollout.mean(dim=1) if at is None else rollout[:, at]  # (batch, token)
    place = "the mean of all tokens" if at is None else f"token {at}"
    values, axes, left_out = shares, AXES, torch.zeros_like(shares[:, 0])
    shown = next(iter(tensors.values())) if image is None else image
    if tokens is not None:
        small = arranged(shares, (found.inputs[name][0], tokens[0]), tokens[1])[:, 0]
        left_out = shares.sum(dim=1) - small.flatten(1).sum(dim=1)
        values, axes = placed(small, tokens[1], blocks=True), IMAGE_AXES
    settings = {"query": query, "residual": residual}
    return Attribution(
        values, axes, False, "share of attention", place, "attention rollout", settings,
        torch.ones_like(left_out), {"left out": left_out},
        shown.detach().clone() if image is not None or shown.ndim == 2 else None,
    )  # fmt: skip


def _places(found: Followed, layer: str, count: int, name: str, image: torch.Tensor) -> tuple[Axis, Grid]:
    """The axis of the tokens of the layer that attends, and their places on the image.

    Raises:
        InputError: when they have none.
    """
    for site in found.calls:
        if f"{site.path}.".startswith(f"{layer}.") or not layer:
            for axes in (*site.inputs.values(), *site.outputs.values()):
                for axis in axes:
                    places = grid((axis,), name) if axis.size == count else None
                    if places is not None and len(places.axes) == 2:
                        return axis, places
    height, width = int(image.shape[2]), int(image.shape[3])
    raise InputError(
        f"the {count} tokens form no grid over an image of {height} x {width}. Take attention_rollout, and lay out "
        "its rows yourself."
    )
