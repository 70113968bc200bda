"""Parameters as further ends of relevance: what of the score passes each weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerlens.errors import OptionError
from layerlens.model.layers import matching_names
from layerlens.model.placement import need_weights


class Parameters:
    """The parameters of a borrowed model whose relevance is wanted; they require gradients from here on.

    Args:
        model: a borrowed model.
        patterns: names or globs; none for no parameter.

    Raises:
        LayerNotFound: when a pattern matches no parameter.
        OptionError: when one that matches holds no floating-point numbers.
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str]) -> None:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self._named: dict[str, nn.Parameter] = {}
        if patterns:
            need_weights(model, "the relevance of parameters (parameters=)")
            known = dict(model.named_parameters())
            for name in matching_names(patterns, known, "parameter", type(model).__name__):
                self._named[name] = known[name]
        for name, parameter in self._named.items():
            if not parameter.is_floating_point():
                raise OptionError(f"parameter {name!r} holds {parameter.dtype}, so no relevance can pass it.")
            parameter.requires_grad_(True)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The parameters, as further inputs of `torch.autograd.grad`."""
        return list(self._named.values())

    def relevance(self, multipliers: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """R = w g by name, summed over the batch; 0 where the score does not depend on the parameter."""
        pairs = zip(self._named.items(), multipliers, strict=True)
        return {
            name: torch.zeros_like(parameter) if g is None else parameter.detach() * g for (name, parameter), g in pairs
        }
