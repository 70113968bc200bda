"""The scores to raise: several targets at once, each on its own inputs, from one pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.used_tensors import tensor_of_target
from layerlens.axes.followed import followed
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import map_tensors
from layerlens.probes.export import read_units
from layerlens.probes.probe import Probe
from layerlens.probes.record import Record
from layerlens.targets.target import Target

At = tuple[Any, int]


class Objectives:
    """Scores inputs of a borrowed model by targets.

    Args:
        model: the model.
        targets: one for each group of inputs.
        forward: as in `feature_visualization`.
        extra: a layer and its call whose output is returned with the scores.
    """

    def __init__(
        self, model: nn.Module, targets: Sequence[Target], forward: Forward | None, extra: At | None = None
    ) -> None:
        self.model, self.targets, self.forward, self.extra = model, list(targets), forward, extra
        wanted = [target.at for target in targets] + ([extra] if extra is not None else [])
        self.places: list[At] = []
        for at in wanted:
            if at is not None and at not in self.places:
                self.places.append(at)
        self._tensors: list[str | None] | None = None
        # the run may stop after the only layer that is read
        self.stop = len(self.places) == 1 and self.places[0][1] == 0 and all(at is not None for at in wanted)

    def __call__(self, x: torch.Tensor, groups: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scores of `x`, `(n,)`, and the output of the layer `extra`, `(n, unit, *places)`.

        Raises:
            TargetError: when a target does not fit.
        """
        inputs, output = Inputs((x,), {}), None
        records: list[tuple[At, Record]] = []
        with contextlib.ExitStack() as stack:
            for at in self.places:
                until = frozenset({(at[0], at[1])} if self.stop and isinstance(at[0], str) else ())
                axes = functools.partial(followed, self.model, inputs, self.forward, until=until)
                probe = Probe(self.model, at[0], graph=True, stop=self.stop, followed=axes)
                records.append((at, stack.enter_context(probe)))
            output = inputs.run(self.model, self.forward)
        if self._tensors is None:  # known at the first inputs
            self._tensors = [tensor_of_target(self.model, inputs, self.forward, at) for at in self.places]
        read = [
            (at, read_units(record, at[1], tensor=name))
            for (at, record), name in zip(records, self._tensors, strict=True)
        ]

        def of(at: At | None) -> Any:
            return output if at is None else next(value for place, value in read if place == at)

        scores = x.new_zeros(len(x))
        for index in sorted(set(groups)):
            rows = torch.tensor([row for row, group in enumerate(groups) if group == index], device=x.device)
            target = self.targets[index]
            part = map_tensors(of(target.at), functools.partial(_rows, rows=rows, size=len(x)))
            own = target(part, torch.arange(len(rows), device=x.device), at=target.at)
            scores = scores.index_put((rows,), own.to(scores.dtype))
        return scores, None if self.extra is None else of(self.extra)


def _rows(tensor: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
    return tensor[rows] if tensor.ndim and len(tensor) == size else tensor


def similarity_of_copies(activations: torch.Tensor, groups: Sequence[int]) -> torch.Tensor:
    """Return the mean cosine of Gram matrices over pairs of inputs of one group: how similar their styles are.

    G = A A^T with A the activations of a layer, `(unit, place)` (Olah et al. 2017, section "Diversity").

    Args:
        activations: `(n, unit, *places)`.
        groups: index of the group of each input.
    """
    flat = activations.flatten(2) if activations.ndim > 2 else activations.unsqueeze(-1)  # (n, unit, place)
    gram = torch.nn.functional.normalize((flat @ flat.transpose(1, 2)).flatten(1), dim=1)
    cosine = gram @ gram.T  # (n, n)
    numbers = torch.tensor(list(groups), device=cosine.device)
    pairs = (numbers[:, None] == numbers[None]).triu(1)
    total: torch.Tensor = (cosine * pairs).sum() / pairs.sum().clamp_min(1)
    return total
