"""Superpixels: patches of an image that are alike in color and place."""

from __future__ import annotations

import torch

from layerlens.errors import InputError, check_count
from layerlens.model.trees import describe


def superpixels(images: torch.Tensor, count: int = 64, *, compactness: float = 0.3, steps: int = 8) -> torch.Tensor:
    """Cut each image into about `count` patches of similar color: k-means over color and place from a grid of seeds.

    Each pixel joins one of the nine seeds of the grid around it, by |color - color'|^2 / variance + compactness
    |place - place'|^2 / cell^2; seeds then move to the mean of their pixels.

    Args:
        images: `(batch, channel, height, width)`.
        count: about how many patches: they start as the cells of a grid of nearly square cells.
        compactness: how much place weighs against color; larger gives squarer patches.
        steps: steps of the k-means.

    Returns:
        Labels `(batch, height, width)` int64, from 0 without gaps.

    Raises:
        InputError: when it is not a batch of images.
        OptionError: when count is not a whole number of at least 1.

    Source: Achanta et al. 2012, SLIC superpixels, without the pass that joins stray pixels.

    Example:
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[..., 4:] = 1
        >>> labels = superpixels(image, 4)
        >>> labels.shape, bool(labels[0, 0, 0] != labels[0, 0, 7])
        (torch.Size([1, 8, 8]), True)
    """
    check_count("count", count)
    check_count("steps", steps)
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"superpixels are of images (batch, channel, height, width), got {describe(images)}.")
    return torch.stack([_segment_image(image.detach().double().cpu(), count, compactness, steps) for image in images])


def _segment_image(image: torch.Tensor, count: int, compactness: float, steps: int) -> torch.Tensor:
    height, width = image.shape[1:]
    rows = max(1, min(height, round((count * height / width) ** 0.5)))
    columns = max(1, min(width, round(count / rows)))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([(y + 0.5) * rows / height, (x + 0.5) * columns / width]).double()  # in cells
    color = image / image.std().clamp_min(1e-12)
    points = torch.cat([color, compactness**0.5 * place]).flatten(1).T  # (pixels, features)
    home_row, home_column = (place[0].long().clamp_max(rows - 1), place[1].long().clamp_max(columns - 1))
    near = torch.stack(
        [
            (home_row + down).clamp(0, rows - 1) * columns + (home_column + right).clamp(0, columns - 1)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
        ],
        dim=-1,
    ).flatten(0, 1)  # (pixels, 9)
    labels = (home_row * columns + home_column).flatten()
    for _ in range(steps):
        size = torch.zeros(rows * columns).double().index_add_(0, labels, torch.ones(len(labels)).double())
        seeds = torch.zeros(rows * columns, points.shape[1]).double().index_add_(0, labels, points)
        seeds = torch.where(size[:, None] > 0, seeds / size.clamp_min(1)[:, None], torch.inf)
        distance = (points[:, None] - seeds[near]).square().sum(dim=-1)
        labels = near.gather(1, distance.argmin(dim=1, keepdim=True)).squeeze(1)
    numbered: torch.Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbered.reshape(height, width)
