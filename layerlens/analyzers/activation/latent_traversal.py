"""Latent traversal: change one latent at a time and look at the output of a generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.samples import rows_influence, said_once
from layerlens.errors import InputError, OptionError, check_count, choose
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.results import LatentTraversal
from layerlens.signatures import public
from layerlens.targets.outputs import main_output

Dimensions = int | Sequence[int] | torch.Tensor | None


@public
def latent_traversal(
    model: nn.Module,
    z: Input,
    dimensions: Dimensions = None,
    *,
    steps: Sequence[float] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
    move: Literal["set", "add"] = "set",
    batch_size: int = 16,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> LatentTraversal:
    """Run a generator or decoder on copies of a latent with one of its values changed.

    Args:
        model: the generator of a GAN, or the decoder of a VAE; with `forward=lambda vae, z: vae.decode(z)` a whole VAE.
        z: one latent, `(1, ...)`; a latent of several axes is counted flat.
        dimensions: numbers of the latents to change; None for all. A floating-point tensor `(direction, latent)` holds
            directions to move along instead (with `move="add"`).
        steps: values; with `move="set"` the latent is set to each of them, with `"add"` they are added to it.
        move: see `steps`. The prior of most generators has standard deviation 1.

    Returns:
        A `LatentTraversal` with the outputs `(direction, step, *output)` and the effect of each direction.

    Raises:
        InputError: when z is not one floating-point latent, or the model returns no batch of tensors.
        TargetError: when it returns no floating-point tensor.
        OptionError: when there is no such latent, or an option is out of range.

    Example:
        >>> decoder = nn.Linear(2, 3, bias=False)
        >>> _ = decoder.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 5.0]]))
        >>> latent_traversal(decoder, torch.zeros(1, 2), steps=(-1, 0, 1)).strongest(1)[0][0]
        'latent 1'
    """
    choose("move", move, ("set", "add"))
    check_count("batch_size", batch_size)
    if not steps:
        raise OptionError("steps=() changes nothing; give the values to set or to add.")
    inputs = as_inputs(z)
    tensors = inputs.tensors()
    name, latent = next(iter(tensors.items()))
    if len(tensors) > 1 or not latent.is_floating_point() or len(latent) != 1:
        raise InputError(
            f"z must be one floating-point latent (1, ...), got {describe(latent)}; pass others in forward=."
        )
    base = latent.detach().flatten()
    values = torch.tensor([float(step) for step in steps], dtype=base.dtype, device=base.device)
    names, changed = _changed(base, dimensions, values, move)
    flat = torch.cat([base[None], changed.flatten(0, 1)])
    parts: list[torch.Tensor] = []

    def run(rows: torch.Tensor) -> torch.Tensor:
        given = inputs.replace({name: rows.reshape(-1, *latent.shape[1:])})
        return _output(model, given, forward, len(rows))

    with borrowed(model, grad=False), said_once() as passes:
        if min(batch_size, len(flat)) > 1 and rows_influence(run, flat[0], flat[len(flat) // 2]):
            batch_size = 1
        for first in track(range(0, len(flat), batch_size), "latent_traversal", enabled=progress):
            parts.append(run(flat[first : first + batch_size]))
    outputs = torch.cat(parts)
    by_step = outputs[1:].reshape(*changed.shape[:2], *outputs.shape[1:])
    wide = by_step.to(torch.promote_types(by_step.dtype, torch.float32))
    spread = wide.var(dim=1, unbiased=False).flatten(1).mean(dim=1).sqrt()
    settings = {"move": move, "steps": [float(step) for step in steps], **passes}
    return LatentTraversal(names, values, move, by_step, outputs[0], spread, settings)


def _changed(
    base: torch.Tensor, dimensions: Dimensions, values: torch.Tensor, move: str
) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return names of the directions, and the latents `(direction, step, latent)`.

    Raises:
        OptionError: when a latent does not exist, or directions do not fit.
    """
    count = len(base)
    if isinstance(dimensions, torch.Tensor) and dimensions.is_floating_point():
        if dimensions.ndim != 2 or dimensions.shape[1] != count or move != "add":
            raise OptionError(
                f"directions must be (direction, {count}) and be moved along with move='add'; got "
                f"{describe(dimensions)} and move={move!r}."
            )
        moves = dimensions.to(base)
        names = tuple(f"direction {index}" for index in range(len(moves)))
        return names, base + values[None, :, None] * moves[:, None]
    listed = range(count) if dimensions is None else [dimensions] if isinstance(dimensions, int) else list(dimensions)
    numbers = [int(index) for index in listed]
    if not numbers or any(not -count <= index < count for index in numbers):
        raise OptionError(f"dimensions={dimensions!r} of a latent with {count} values (0 to {count - 1}).")
    numbers = [index % count for index in numbers]
    changed = base.repeat(len(numbers), len(values), 1)
    for row, index in enumerate(numbers):
        changed[row, :, index] = values if move == "set" else base[index] + values
    return tuple(f"latent {index}" for index in numbers), changed


def _output(model: nn.Module, inputs: Inputs, forward: Forward | None, size: int) -> torch.Tensor:
    """Return the output of the model for a batch of latents.

    Raises:
        InputError: when it is not a batch of floating-point numbers.
    """
    output = main_output(inputs.run(model, forward))
    if not output.is_floating_point() or not output.ndim or len(output) != size:
        raise InputError(f"the model returned {describe(output)} for {size} latents; a tensor (batch, ...) is needed.")
    return output.detach().clone()
