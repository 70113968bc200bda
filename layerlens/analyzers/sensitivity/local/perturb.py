"""Noise at what a layer returned, of a size relative to the layer's own spread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from layerlens.analyzers.common.calls.call_sites import Site
from layerlens.model.trees import map_tensors


class Noise:
    """Adds level std(h) e to each floating-point tensor h of an output, for several (draw, level) at once.

    The rows of the output are copies of the batch, one copy for each pair. Every sample gets the same e, which depends
    on the seed, the draw and the tensor's place in the output only. A tensor that occurs twice gets its noise once.

    Args:
        pairs: (draw, level) of each copy.
        seed: of the draws.
        batch: samples in a copy.

    Attributes:
        fired: whether the noise was added.
        constant: whether some sample's output had no spread, and so got no noise.
    """

    def __init__(self, pairs: list[tuple[int, float]], seed: int, batch: int) -> None:
        self.pairs, self.seed, self.batch = pairs, seed, batch
        self.fired = self.constant = False

    def __call__(self, site: Site, output: Any) -> Any:
        """The output with noise: new tensors, so that what the layer keeps is not written to."""
        axes: Iterator[tuple[int, int | None]] = iter(enumerate(site.axes))
        done: dict[int, torch.Tensor] = {}
        flat: list[bool] = []

        def add(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            place, axis = next(axes)
            if id(tensor) not in done:
                spread, noise = self._noise(tensor, axis, place, site.single)
                flat.append(bool((spread == 0).any()))
                done[id(tensor)] = tensor.clone().add_(noise)  # laid out in memory as it was
            return done[id(tensor)]

        noisy = map_tensors(output, add)
        self.fired, self.constant = True, self.constant or all(flat)
        return noisy

    def _noise(
        self, tensor: torch.Tensor, axis: int | None, place: int, single: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The spread of each sample, `(copies, batch, 1)`, and the noise, shaped like the tensor."""
        rows = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        wide = torch.promote_types(tensor.dtype, torch.float32)
        copies, batch = len(self.pairs), 1 if axis is None else self.batch
        samples = rows.reshape(copies, batch, -1).to(wide)  # the batch axis may hold several rows of each sample
        spread = samples.abs() if single else samples.std(dim=2, unbiased=False, keepdim=True)
        drawn = {
            draw: self._draw(draw, place, samples.shape[2]) for draw in dict.fromkeys(draw for draw, _ in self.pairs)
        }
        e = torch.stack([drawn[draw] for draw, _ in self.pairs]).unsqueeze(1).to(samples)  # (copies, 1, n)
        level = torch.tensor([level for _, level in self.pairs]).reshape(-1, 1, 1).to(samples)
        noise = (level * spread * e).reshape(rows.shape).to(tensor.dtype)
        return spread, noise.squeeze(0) if axis is None else noise.movedim(0, axis)

    def _draw(self, draw: int, place: int, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 7919 * draw + 104729 * place)
        return torch.randn(count, generator=generator)
