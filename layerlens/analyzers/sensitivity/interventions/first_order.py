"""What every part is worth to first order: all of them from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import OptionError, TargetError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import map_tensors
from layerlens.targets.target import Target, as_target, main_output

from ..output_metrics import Readout
from .hook_points import Key, tapped
from .intervention_sites import Seam
from .replacements import Misfit, Source


def screened(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None,
    seams: Sequence[Seam],
    source: Source,
    draws: int,
    read: Readout,
    seed: int,
) -> torch.Tensor:
    """The change of the score to first order in the values of each part, `(parts of all seams,)`: mean over the batch.

    sum over the numbers of a part of g (v - a): g is the gradient of the score, a the value and v what replaces it,
    the mean over draws (Molchanov et al. 2017, eq. 7, with v = 0; Nanda 2023, attribution patching).

    Args:
        model: a model borrowed with gradients.
        inputs: its input.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        seams: where.
        source: of v.
        draws: of v.
        read: whose target is the score; without one it is that of the predicted class.
        seed: for models that draw numbers.

    Raises:
        OptionError: when there is no score.
        TargetError: when the score does not depend on any seam in a way that can be differentiated.
    """
    source.load(seams)
    wanted = {seam.key: seam for seam in seams}
    values: dict[Key, list[torch.Tensor]] = {}
    leaves: dict[Key, list[torch.Tensor]] = {}

    def add_leaves(key: Key, value: Any) -> Any:
        if key not in wanted or key in leaves:
            return value
        held, added = values.setdefault(key, []), leaves.setdefault(key, [])
        done: dict[int, torch.Tensor] = {}

        def add(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            leaf = torch.zeros_like(tensor, requires_grad=True)
            held.append(tensor.detach().clone())
            added.append(leaf)
            if id(tensor) not in done:
                done[id(tensor)] = tensor + leaf
            return done[id(tensor)]

        return map_tensors(value, add)

    torch.manual_seed(seed)
    with torch.enable_grad():
        with tapped(model, [key[:2] for key in wanted], add_leaves) as running:
            output = inputs.run(model, forward if running is None else running.around(forward))
        score = _score(read, output)(output, torch.arange(inputs.batch))
    flat = [leaf for added in leaves.values() for leaf in added]
    slopes: Sequence[torch.Tensor | None] = [None] * len(flat)
    if score.requires_grad:
        with backward_pass(model):
            slopes = torch.autograd.grad(score.sum(), flat, allow_unused=True)
    if all(slope is None for slope in slopes):
        raise TargetError(
            f"the score {'of the predicted class' if read.target is None else read.target.label!r} does not depend on "
            "any of the layers in a way that can be differentiated: leave the screen out."
        )
    by_leaf = iter(slopes)
    gradients = {key: [next(by_leaf) for _ in added] for key, added in leaves.items()}
    return torch.cat(
        [_worth(seam, values.get(seam.key, []), gradients.get(seam.key, []), source, draws) for seam in seams]
    ) / inputs.batch  # fmt: skip


def _score(read: Readout, output: Any) -> Target:
    if read.target is not None:
        return read.target
    if main_output(output).ndim != 2:
        raise OptionError("a first-order screen needs a score to differentiate: give target=, or leave best= out.")
    return as_target(None).resolve(output)


def _worth(
    seam: Seam, values: list[torch.Tensor], gradients: list[torch.Tensor | None], source: Source, draws: int
) -> torch.Tensor:
    """The sums of g (v - a) over each part, `(parts,)`."""
    total = torch.zeros(seam.grid.size, dtype=torch.float64)
    for place, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        parts = seam.grids[place]
        if parts is None or gradient is None:
            continue
        step = torch.zeros_like(value, dtype=torch.float64)
        try:
            for draw in range(draws):
                step += (source(seam, place, (), value, draw).double() - value.double()) / draws
        except Misfit:
            return torch.full_like(total, float("nan"))
        product = torch.where(step == 0, 0.0, gradient.double() * step)  # a gradient of infinity times no change
        total += parts.sums(product).cpu()
    return total
