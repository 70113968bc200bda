"""Random logit: a map must change when another class is explained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.statistics import spearman
from layerlens.errors import TargetError, check_seed
from layerlens.inputs.inputs import Forward, Input, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.signatures import public
from layerlens.targets.target import Spec, Target, as_target

from ..explaining import Explain, as_explain, flat_map


@public
def random_logit(
    model: nn.Module,
    x: Input,
    method: str | Explain = "gradient",
    *,
    target: Spec = None,
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool | None = None,
    **options: Any,
) -> torch.Tensor:
    """Measure how similar a map is to that of another class, drawn for each sample, `(batch,)`; lower is better.

    Spearman's rank correlation of the values, by `layerlens`; Sixt et al. 2020, sec. 5, and `RandomLogit` in Quantus
    take the structural similarity of images. A map that is the same for every class does not explain the class.

    Args:
        method: name of a saliency method, or a function `(model, x, target=..., forward=...) -> Attribution`.
        **options: options of the method.

    Raises:
        InputError: when the input does not fit the model.
        TargetError: when the target is not one of several classes, or does not fit the output.

    Example:
        >>> random_logit(nn.Linear(6, 3), torch.randn(2, 6), "gradient", target=0).shape
        torch.Size([2])
    """
    check_seed(seed)
    explain, inputs = as_explain(method, options), as_inputs(x)
    with borrowed(model, grad=False), torch.no_grad():
        output = inputs.run(model, forward)
        aim = as_target(target).on(inputs).resolve(output)
        rows = torch.arange(inputs.batch)
        several = aim.at is None
        own = aim(output) if several else torch.zeros(inputs.batch)
        scores = aim.all_scores(output, rows.to(own.device)) if several else own.unsqueeze(1)
    other = scores != own.unsqueeze(1)
    if scores.ndim != 2 or scores.shape[1] < 2 or bool(other.all(dim=1).any()) or not bool(other.any(dim=1).all()):
        raise TargetError(
            f"random_logit explains another class instead, and {aim.label!r} is not the score of one of several "
            "classes. Give a class, such as target=3."
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(scores.shape[1], generator=generator).to(scores.device).expand(scores.shape)
    chosen = drawn.masked_fill(~other, -1).argmax(dim=1)

    def score(output: object, rows: torch.Tensor) -> torch.Tensor:
        every = aim.all_scores(output, rows)
        return every.gather(1, chosen.to(every.device)[rows].unsqueeze(1)).squeeze(1)

    maps = [
        flat_map(explain(model, inputs, target=one, forward=forward)) for one in (aim, Target(score, "another class"))
    ]
    return spearman(maps[0], maps[1])
