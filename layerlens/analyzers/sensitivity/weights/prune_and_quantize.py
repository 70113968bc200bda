"""Changes of the weights of one layer: the smallest set to zero, or all rounded to a few bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import OptionError

Block = dict[str, torch.Tensor]
"""The weight tensors of a row by name."""

Granularity = Literal["channel", "tensor"]


@dataclasses.dataclass(frozen=True)
class WeightPerturbation:
    """One way to change weights, at several levels.

    Attributes:
        measure: `"pruning"` or `"quantization"`.
        levels: share of zeros, or number of bits, of each level.
        settings: the other settings.
        series: name of each level.
        apply: `(block, level) -> block` of changed copies.
        random: `(block, level, generator) -> block` with a random change of the same size.
        text: description of the change.
    """

    measure: str
    levels: tuple[float, ...]
    settings: dict[str, Any]
    series: tuple[str, ...]
    apply: Callable[[Block, int], Block]
    random: Callable[[Block, int, torch.Generator], Block]
    text: str


def weight_names(names: list[str], parameters: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the parameters that are weights: matrices and kernels, not biases or scales of norms."""
    return [name for name in names if parameters[name].ndim >= 2]


def channel_axes(model: nn.Module) -> dict[str, int]:
    """Return the axis of the output channels, by parameter, where it is not the first: transposed convolutions."""
    axes = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            axes[f"{path}.weight" if path else "weight"] = 1
    return axes


def pruning(model: nn.Module, sparsities: tuple[float, ...], structured: bool) -> WeightPerturbation:
    """Set the share of weights with the smallest magnitude to zero; or of whole channels, with the smallest norm.

    The weights of a row are sorted together. A channel's norm is the root mean square of its weights, so that
    channels of several matrices compare.
    """
    axes = channel_axes(model)

    def scores(block: Block) -> torch.Tensor:
        if not structured:
            return torch.cat([tensor.abs().flatten().double() for tensor in block.values()])
        return torch.cat(
            [_channels(t, axes.get(name, 0)).double().square().mean(dim=1).sqrt() for name, t in block.items()]
        )

    def set_to_zero(block: Block, chosen: torch.Tensor) -> Block:
        pruned, start = {}, 0
        for name, tensor in block.items():
            axis = axes.get(name, 0)
            count = tensor.shape[axis] if structured else tensor.numel()
            zeroed = chosen[start : start + count]
            start += count
            shape = [count if place == axis else 1 for place in range(tensor.ndim)] if structured else tensor.shape
            pruned[name] = tensor.masked_fill(zeroed.reshape(shape), 0.0)
        return pruned

    def prune_first(block: Block, order: torch.Tensor, level: int) -> Block:
        chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        chosen[order[: round(sparsities[level] * len(order))]] = True
        return set_to_zero(block, chosen)

    def random(block: Block, level: int, generator: torch.Generator) -> Block:
        count = len(scores(block))
        device = next(iter(block.values())).device
        return prune_first(block, torch.randperm(count, generator=generator).to(device), level)

    what = "channels" if structured else "weights"
    return WeightPerturbation(
        "pruning",
        sparsities,
        {"structured": structured},
        tuple(f"{100 * share:g} % of {what} zero" for share in sparsities),
        lambda block, level: prune_first(block, scores(block).argsort(stable=True), level),
        random,
        f"the smallest {what} of one layer at a time set to zero",
    )


def quantization(model: nn.Module, bits: tuple[int, ...], granularity: Granularity) -> WeightPerturbation:
    """Round every weight w to s round(w / s), s = max |w| / (2^(bits - 1) - 1), over its channel or tensor.

    Symmetric uniform rounding to nearest (Krishnamoorthi 2018, sec. 2.2).
    """
    axes = channel_axes(model)

    def rounded(name: str, tensor: torch.Tensor, level: int) -> torch.Tensor:
        axis = axes.get(name, 0)
        over = [place for place in range(tensor.ndim) if place != axis or granularity == "tensor"]
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        scale = wide.abs().amax(dim=over, keepdim=True) / (2 ** (bits[level] - 1) - 1)
        return torch.where(scale > 0, (wide / scale).round() * scale, wide).to(tensor.dtype)

    def random(block: Block, level: int, generator: torch.Generator) -> Block:
        changed = {}
        for name, tensor in block.items():
            change = (rounded(name, tensor, level) - tensor).flatten()
            order = torch.randperm(len(change), generator=generator).to(change.device)
            changed[name] = tensor + change[order].reshape(tensor.shape)
        return changed

    return WeightPerturbation(
        "quantization",
        bits,
        {"granularity": granularity},
        tuple(f"{bit} bits" for bit in bits),
        lambda block, level: {name: rounded(name, tensor, level) for name, tensor in block.items()},
        random,
        f"weights of one layer at a time rounded, one scale for each {granularity}",
    )


def check_levels(sparsities: object, bits: object) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return sparsities and bits as tuples, checked.

    Raises:
        OptionError: when they are out of range.
    """
    try:
        shares = tuple(float(share) for share in sparsities)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise OptionError(f"sparsities must be shares from 0 to 1, one or more, got {sparsities!r}.") from error
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise OptionError(f"sparsities must be shares from 0 to 1, one or more, got {sparsities!r}.")
    listed = tuple(bits) if isinstance(bits, (tuple, list, range)) else ()
    if not listed or not all(isinstance(bit, int) and not isinstance(bit, bool) and 2 <= bit <= 16 for bit in listed):
        raise OptionError(f"bits must be whole numbers from 2 to 16, one or more, got {bits!r}.")
    return shares, listed


def _channels(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Reshape weights to `(channels, weights)`."""
    return tensor.movedim(axis, 0).flatten(1)
