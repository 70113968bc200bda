"""A layer's output on the way to the score: what it was, and the gradient there, while the input is varied."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.model.layers import Selection
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Edit
from layerlens.results import Attribution

from .leaves.layer_leaf import find_place
from .leaves.leaves import Leaf
from .scorer import Scorer, backward_pass


class Tap:
    """One call of one layer, read while a scorer runs on changed inputs; use it inside `borrowed(model)`.

    Args:
        scorer: its leaves are the inputs.
        where: the layer, or a call of it.

    Attributes:
        place: how the output is laid out.
        value: the output for the inputs as they are, `(batch, ...)`.

    Raises:
        LayerNotFound: when `where` matches no layer; SelectionError when it matches several layers or calls.
        RecordError: when that layer did not run.
    """

    def __init__(self, scorer: Scorer, where: Selection) -> None:
        self.scorer = scorer
        self.place, self.value = find_place(scorer.model, scorer.inputs, where, scorer.forward)

    def gradients(
        self, values: Mapping[str, torch.Tensor], rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The scores `(n,)`, the layer's output and the gradients of the scores at it, both `(n, ...)`.

        Args:
            values: one tensor `(n, ...)` per leaf of the scorer.
            rows: which sample of the batch each row belongs to, `(n,)`.

        Raises:
            TargetError: when the score does not depend on the output.
        """
        kept: list[torch.Tensor] = []
        with torch.enable_grad():
            score = self.scorer(values, rows, then={self.place.layer: self._cut(kept)})
        leaf = kept[0] if kept else None
        slope = None
        if leaf is not None and score.requires_grad:
            with backward_pass(self.scorer.model):
                (slope,) = torch.autograd.grad(score.sum(), leaf, allow_unused=True)
        if leaf is None or slope is None:
            raise TargetError(
                f"the score {self.scorer.target.label!r} does not depend on what layer {self.place.name!r} returned, "
                "or not in a way that can be differentiated. Choose another layer."
            )
        return score.detach(), self.place.lay(leaf.detach()), self.place.lay(slope)

    def attribution(self, values: torch.Tensor, **fields: Any) -> Attribution:
        """An `Attribution` of the layer's values, `(batch, ...)`; see `Scorer.fields`."""
        at_layer = copy.copy(self.scorer)
        at_layer.leaves = {self.place.name: Leaf(self.value, place=self.place)}
        return at_layer.attribution({self.place.name: values.to(self.value.dtype)}, **fields)

    def _cut(self, kept: list[torch.Tensor]) -> Edit:
        """Makes the graph of the call start at its output, which goes into `kept`."""
        seen = iter(range(1 << 62))

        def exchange(output: Any) -> Any:
            if next(seen) != self.place.call:
                return output
            main = next(tensor for _, tensor in named_tensors(output) if tensor.is_floating_point())
            leaf = main.detach().requires_grad_()
            kept.append(leaf)
            return self.place.exchange(self.place.lay(leaf))(output)

        return exchange
