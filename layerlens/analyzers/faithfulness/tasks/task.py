"""A task whose truth is known: a model, inputs, and the right map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.saliency.saliency import saliency
from layerlens.errors import InputError
from layerlens.results import Attribution

from ..metrics.localization import pointing_game, relevance_mass


@dataclasses.dataclass(frozen=True)
class Task:
    """A model whose inner workings are known, with the map that is right by construction.

    Attributes:
        name: name of the task.
        model: model to explain, in eval mode.
        x: its inputs, `(batch, ...)`.
        target: the class to explain, one per sample, `(batch,)`.
        values: the right values, shaped like x, where there are such; None for tasks of localization.
        masks: where all evidence lies, bool `(batch, *places)`; None for tasks of values.
        why: why that is the truth.
    """

    name: str
    model: nn.Module
    x: torch.Tensor
    target: torch.Tensor
    values: torch.Tensor | None
    masks: torch.Tensor | None
    why: str

    def score(self, method: str | Callable[..., Attribution], **options: Any) -> dict[str, torch.Tensor]:
        """Score a method, each `(batch,)`.

        For tasks of values `"error"`, the largest deviation as a share of the largest right value; for tasks of
        localization `"pointing_game"` and `"relevance_mass"`.

        Args:
            method: name of a saliency method, or a function `(model, x, target=...) -> Attribution`.
            **options: options of the method.

        Raises:
            InputError: when the method's map is not shaped like x.
            OptionError: when the method or an option of it is unknown.
        """
        if isinstance(method, str):
            found = saliency(self.model, self.x, target=self.target, method=method, **options)
        else:
            found = method(self.model, self.x, target=self.target, **options)
        if self.values is None:
            if self.masks is None:
                raise InputError(f"the task {self.name!r} has neither values nor masks to compare a map with.")
            return {
                "pointing_game": pointing_game(found, self.masks),
                "relevance_mass": relevance_mass(found, self.masks),
            }
        if found.tensor.shape != self.values.shape:
            raise InputError(
                f"the task {self.name!r} needs one number per value, {tuple(self.values.shape)}; the map is "
                f"{tuple(found.tensor.shape)}."
            )
        gap = (found.tensor.double() - self.values.double()).abs().flatten(1).amax(dim=1)
        return {"error": gap / self.values.double().abs().flatten(1).amax(dim=1)}
