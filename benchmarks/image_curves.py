"""What a map of an image is worth: the class's probability while its places are removed and put in, with three fills.

The numbers of one map are `POINTS` probabilities, so that areas, ROAD and sufficiency are made from what was stored.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.common.features.baselines import blur
from layerlens.analyzers.faithfulness.metrics.place_ranks import ranks
from layerlens.analyzers.faithfulness.metrics.road import impute

from .image_readers import Part

SHARES = (0.03, 0.1, 0.2, 0.4, 0.7)
"""Shares of the places that are removed, or alone kept: few, for more pictures settle more than more points."""

FILLS = ("mean", "blur", "neighbors")
"""The mean colour, a blur, and what is around the removed places, by a pyramid of averages."""

ROAD = (0.1, 0.2, 0.4)
"""Shares of the places that ROAD removes (Rong et al. 2022)."""

POINTS = 2 * len(FILLS) * len(SHARES) + len(ROAD)
FEW = 3
"""Shares up to .2: sufficiency is the mean fall of the probability when these alone are kept."""


@functools.lru_cache(maxsize=8)
def faster(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same function of pictures `(n, channel, height, width)`, faster on a CPU.

    By OpenVINO, if its package is there, in less than half the time, and the same to 1e-5; else by a copy with its
    channels last. In bfloat16 it is faster still, but moves the difference of two maps by up to .02 on a picture.
    """
    if isinstance(model, Part):
        whole = faster(model.network)  # once for all of its parts
        return lambda x: model.read(whole(x))
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())  # no faster by OpenVINO
    if recurrent or importlib.util.find_spec("openvino") is None:
        last: Any = copy.deepcopy(model)
        last.to(memory_format=torch.channels_last)
        return lambda x: last(x.contiguous(memory_format=torch.channels_last))
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    by_size: dict[torch.Size, Any] = {}

    def run(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] not in by_size:
            converted = openvino.convert_model(copy.deepcopy(model), example_input=x)
            by_size[x.shape[1:]] = openvino.Core().compile_model(converted, "CPU", options)
        return torch.from_numpy(by_size[x.shape[1:]](x.numpy())[0])

    return run


def probabilities(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes probabilities of the output of a model: its own `probabilities`, or a softmax."""
    own: Any = getattr(model, "probabilities", None)
    return own or functools.partial(torch.softmax, dim=1)


class Curves:
    """The curves of maps of one picture.

    Args:
        model: a classifier.
        x: `(1, channel, height, width)`.
        target: its class.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, target: int) -> None:
        self.model, self.probabilities = faster(model), probabilities(model)
        self.x, self.target = x, target
        self.fills = {"mean": x.mean(dim=(2, 3), keepdim=True).expand_as(x), "blur": blur(x, (2, 3))}
        self.ends = self.probability(torch.cat([x, *self.fills.values()]))

    def probability(self, x: torch.Tensor) -> torch.Tensor:
        """The probabilities of the class, `(n,)`, 16 pictures at a time."""
        with torch.inference_mode():
            parts = [self.probabilities(self.model(part)) for part in x.split(16)]
        return torch.cat(parts)[:, self.target].clone()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The probabilities `(POINTS,)` for a map, which may be coarser than the picture."""
        values = values.detach().double().reshape(1, -1, *values.shape[-2:]).sum(dim=1, keepdim=True)
        values = F.interpolate(values, self.x.shape[2:], mode="bilinear")  # the same values at the same size
        rank = ranks(values.flatten(1)).reshape(values.shape)
        first = torch.cat([rank < round(share * rank.numel()) for share in SHARES])  # the most important
        gone = torch.cat([~first, first])  # inserted, then deleted
        made = [torch.where(gone, fill, self.x) for fill in self.fills.values()]
        made.append(around(self.x.expand(len(gone), -1, -1, -1), gone))
        removed = torch.cat([rank < round(share * rank.numel()) for share in ROAD])
        grain = 0.01 * self.x.std() * torch.randn(self.x.shape, generator=torch.Generator().manual_seed(0))
        images = self.x.expand(len(removed), -1, -1, -1)
        made.append(torch.where(removed, impute(images, removed, tolerance=1e-2) + grain, images))
        return self.probability(torch.cat(made))


def around(x: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Fill what is gone by what is around it: by the mean of what is left in the smallest square that has any."""
    kept = (~gone).to(x)
    values, weights = x * kept, kept
    found, filled = torch.zeros_like(x), torch.zeros_like(kept)
    size = x.shape[2:]
    while True:
        mean = values / weights.clamp_min(1e-6)
        known = (weights > 0).to(x)
        if values.shape[2:] == size:
            found, filled = mean * known, known
        else:
            share = F.interpolate(known, size, mode="bilinear")
            value = F.interpolate(mean * known, size, mode="bilinear") / share.clamp_min(1e-6)
            new = (share > 0).to(x) * (1 - filled)
            found, filled = found + new * value, (filled + new).clamp_max(1)
        if bool(filled.all()) or min(values.shape[2:]) == 1:
            return found
        values, weights = (F.avg_pool2d(part, 2, ceil_mode=True) for part in (values, weights))


def gains(curves: torch.Tensor, ends: torch.Tensor) -> dict[str, torch.Tensor]:
    """The numbers of the tables by name, each `(...)`, from curves `(..., POINTS)` and ends `(..., 3)`."""
    count = len(SHARES)
    body = curves[..., : 2 * len(FILLS) * count].unflatten(-1, (len(FILLS), 2, count))
    full = ends[..., :1]
    empty = torch.stack([ends[..., 1], ends[..., 2], ends[..., 1]], dim=-1)  # with all gone neighbors leave the mean
    full = full.expand(empty.shape)
    points = torch.tensor([0.0, *SHARES, 1.0], dtype=curves.dtype)
    inserted = torch.cat([empty[..., None], body[..., 0, :], full[..., None]], dim=-1)
    deleted = torch.cat([full[..., None], body[..., 1, :], empty[..., None]], dim=-1)
    insertion, deletion = (torch.trapezoid(part, points, dim=-1) for part in (inserted, deleted))  # (..., fills)
    return {
        "gain": (insertion - deletion).mean(dim=-1),
        **{f"insertion {fill}": insertion[..., place] for place, fill in enumerate(FILLS)},
        **{f"deletion {fill}": deletion[..., place] for place, fill in enumerate(FILLS)},
        "ROAD": curves[..., -len(ROAD) :].mean(dim=-1),
        "sufficiency": full[..., 0] - body[..., 0, :FEW].mean(dim=(-1, -2)),
    }
