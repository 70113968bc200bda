"""First-order effects of all parts, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from layerlens.analyzers.common.parts.hook_points import Key, hooked
from layerlens.analyzers.common.scorer import backward_pass
from layerlens.analyzers.common.statistics import spearman
from layerlens.errors import OptionError, TargetError
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import map_tensors
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Target, as_target

from ..model_run import ModelRun
from ..output_metrics import Readout
from .intervention_sites import InterventionSite
from .replacements import Misfit, Replacement


def first_order_effects(
    run: ModelRun, sites: Sequence[InterventionSite], replacement: Replacement, draws: int, readout: Readout
) -> torch.Tensor:
    """Return the first-order change of the score when each part is replaced, `(parts of all sites,)`: batch means.

    It is the sum of g (v - a) over the values of a part: g is the gradient of the score, a the value and v what
    replaces it, the mean over draws (Molchanov et al. 2017, eq. 7, with v = 0; Nanda 2023, attribution patching).
    Without a target the score is that of the predicted class.

    Raises:
        OptionError: when there is no score.
        TargetError: when the score has no gradient at any site.
    """
    replacement.load(sites)
    wanted = {site.key: site for site in sites}
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

    seed_torch(run.seed)
    with torch.enable_grad():
        with hooked(run.model, [key[:2] for key in wanted], add_leaves) as running:
            output = run.inputs.run(run.model, run.forward if running is None else running.around(run.forward))
        score = _score(readout, output)(output, torch.arange(run.batch)).sum()
    flat = [leaf for added in leaves.values() for leaf in added]
    slopes: Sequence[torch.Tensor | None] = [None] * len(flat)
    if score.requires_grad:
        with backward_pass(run.model):
            slopes = torch.autograd.grad(score, flat, allow_unused=True)
    if all(slope is None for slope in slopes):
        raise TargetError(
            f"the score {'of the predicted class' if readout.target is None else readout.target.label!r} has no "
            "gradient at any of the layers: leave the screen out."
        )
    by_leaf = iter(slopes)
    gradients = {key: [next(by_leaf) for _ in added] for key, added in leaves.items()}
    effects = [
        _part_effects(site, values.get(site.key, []), gradients.get(site.key, []), replacement, draws) for site in sites
    ]
    return torch.cat(effects) / run.batch


def largest(effects: torch.Tensor, count: int | None) -> list[int]:
    """Return the numbers of the parts with the largest effects, in order of execution; all for None."""
    order = effects.abs().nan_to_num(nan=float("inf")).argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())


def agreement(effects: torch.Tensor | None, values: torch.Tensor, *, signed: bool) -> dict[str, torch.Tensor]:
    """Return first-order effects and their rank correlation with measured values, where there was a screen."""
    if effects is None:
        return {}
    sized = effects if signed else effects.abs()
    correlation = spearman(sized.unsqueeze(0), values.unsqueeze(0)).reshape(())
    return {"first order": effects, "rank correlation": correlation}


def _score(readout: Readout, output: object) -> Target:
    """Choose the score to differentiate.

    Raises:
        OptionError: when there is none.
    """
    if readout.target is not None:
        return readout.target
    if main_output(output).ndim != 2:
        raise OptionError("a first-order screen needs a score to differentiate: give target=, or leave count= out.")
    return as_target(None).resolve(output)


def _part_effects(
    site: InterventionSite,
    values: list[torch.Tensor],
    gradients: list[torch.Tensor | None],
    replacement: Replacement,
    draws: int,
) -> torch.Tensor:
    """Sum g (v - a) over each part, `(parts,)`."""
    total = torch.zeros(site.grid.size, dtype=torch.float64)
    for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        parts = site.grids[index]
        if parts is None or gradient is None:
            continue
        step = torch.zeros_like(value, dtype=torch.float64)
        try:
            for draw in range(draws):
                step += (replacement(site, index, (), value, draw).double() - value.double()) / draws
        except Misfit:
            return torch.full_like(total, float("nan"))
        product = torch.where(
            step == 0, 0.0, gradient.double() * step
        )  # not NaN where an infinite gradient meets no change
        total += parts.sums(product).cpu()
    return total
