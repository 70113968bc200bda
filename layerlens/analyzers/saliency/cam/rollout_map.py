"""Attention rollout over the input: patches of an image, or tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.activation.attention.rollout import attention_rollout
from layerlens.analyzers.activation.attention.weights import attention
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import Attribution
from layerlens.signatures import public

from .grid import Grid, grid_of

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
    rollout = attention_rollout(attention(model, given, layers, forward=forward), residual=residual)
    tensors = given.tensors()
    image = next((part for part in tensors.values() if part.ndim == 4), None)
    count = rollout.shape[1]
    if query is not None and not -count <= query < count:
        raise OptionError(f"query={query!r}, but the last layer has {count} tokens (0 to {count - 1}).")
    grid = None if image is None else _grid(count, image)
    at = 0 if query is None and grid is not None and grid.extra else query
    shares = rollout.mean(dim=1) if at is None else rollout[:, at]  # (batch, token)
    place = "the mean of all tokens" if at is None else f"token {at}"
    values, axes, left_out = shares, AXES, torch.zeros_like(shares[:, 0])
    shown = next(iter(tensors.values())) if image is None else image
    if image is not None and grid is not None:
        left_out = shares[:, : grid.extra].sum(dim=1)
        small = grid.view(shares.unsqueeze(-1))  # (batch, 1, height, width)
        values, axes = F.interpolate(small, size=image.shape[2:], mode="nearest")[:, 0], IMAGE_AXES
    settings = {"query": query, "residual": residual}
    return Attribution(
        values, axes, False, "share of attention", place, "attention rollout", settings,
        torch.ones_like(left_out), {"left out": left_out},
        shown.detach().clone() if image is not None or shown.ndim == 2 else None,
    )  # fmt: skip


def _grid(count: int, image: torch.Tensor) -> Grid:
    """Where the tokens lie on an image.

    Raises:
        InputError: when they form no grid.
    """
    height, width = int(image.shape[2]), int(image.shape[3])
    grid = grid_of((len(image), count, 1), ("batch", "token", "feature"), (height, width))
    if grid is None:
        raise InputError(
            f"the {count} tokens form no grid over an image of {height} x {width}. Take attention_rollout, and lay out "
            "its rows yourself."
        )
    return grid
