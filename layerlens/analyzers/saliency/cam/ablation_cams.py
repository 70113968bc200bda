"""Class activation maps without gradients: one run of the model for each unit of a layer, several at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.batch_size import BatchSize, first_score
from layerlens.analyzers.common.registry import method
from layerlens.axes.placement import placed, spread
from layerlens.errors import OptionError, check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Selection
from layerlens.model.selection import InputOf
from layerlens.model.tensors import exchanged, tensors_of
from layerlens.probes.probe import Probe
from layerlens.progress import track
from layerlens.results import Attribution
from layerlens.targets.target import Spec

from .class_map import class_map
from .layer_choice import Options, Reshape
from .layer_view import LayerView

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(samples of the batch, unit for each) -> scores."""


@method(family="cam", passes="1 forward per unit of the layer", needs="a layer with places", source="Wang et al. 2020")
def score_cam(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    relu: bool = True,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    grid: tuple[int, ...] | None = None,
    reshape: Reshape | None = None,
    units: int | None = None,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Weight the units of a layer by the scores of the input masked by each, and add them up.

    w = softmax over k of S(X o H_k), H_k = A_k enlarged to the input and scaled to [0, 1] (Wang et al. 2020). The
    score of a blank input, which the paper takes off, is the same for all units and leaves the softmax as it is.
    Units whose map is constant have no mask, and no part in it. Token ids are masked in their embeddings. No gradient
    is used, except to choose the layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> score_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    runs = _UnitRuns("score_cam", units, batch_size)
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    return class_map(
        "score_cam", lambda view: _by_masked_score(view, runs), model, x, target, options, forward,
        gradient=False, settings={"units": units, "batch_size": batch_size},
    )[0]  # fmt: skip


def _by_masked_score(view: LayerView, runs: _UnitRuns) -> torch.Tensor:
    activations, leaves = view.activations, view.scorer.values()
    flat = activations.flatten(2)
    low, high = flat.amin(dim=2), flat.amax(dim=2)  # (batch, unit)

    def scores(rows: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        mask = placed(activations[rows, units], view.grid)  # (n, *size), within the range of the map
        shape = (-1, *[1] * (mask.ndim - 1))
        bottom, top = mask.flatten(1).amin(dim=1).reshape(shape), mask.flatten(1).amax(dim=1).reshape(shape)
        mask = (mask - bottom) / (top - bottom)
        values = {name: leaf[rows] for name, leaf in leaves.items()}
        masked = values[view.grid.input]
        values[view.grid.input] = masked * spread(mask, view.grid, masked.ndim).to(masked.dtype)
        return view.scorer(values, rows)

    masked_scores, ran = runs.scores(view, scores, high > low)
    weights = masked_scores.masked_fill(~ran, -torch.inf).softmax(dim=1).nan_to_num(0.0)
    return weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations


@method(
    family="cam", passes="1 forward per unit of the layer", needs="a layer with places", source="Desai & Ramaswamy 2020"
)
def ablation_cam(
    model: nn.Module,
    x: Input,
    layer: Selection = None,
    *,
    target: Spec = None,
    call: int | None = None,
    relu: bool = True,
    aug_smooth: bool = False,
    eigen_smooth: bool = False,
    grid: tuple[int, ...] | None = None,
    reshape: Reshape | None = None,
    units: int | None = None,
    batch_size: BatchSize = "auto",
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Attribution:
    """Weight the units of a layer by the part of the score that is lost when each is set to zero, and add them up.

    w_k = (S - S_k) / |S|, S_k being the score with unit k zero at every place (Desai & Ramaswamy 2020; the paper
    divides by S, which inverts a map where S is below 0). Class tokens and registers stay. Units that are zero
    already lose nothing and are not run. No gradient is used, except to choose the layer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> ablation_cam(net, torch.rand(1, 1, 8, 8), target=0, relu=False).values.shape
        torch.Size([1, 8, 8])
    """
    runs = _UnitRuns("ablation_cam", units, batch_size)
    options = Options(layer, call, relu, aug_smooth, eigen_smooth, grid, reshape)
    return class_map(
        "ablation_cam", lambda view: _by_lost_score(view, runs), model, x, target, options, forward,
        gradient=False, settings={"units": units, "batch_size": batch_size},
    )[0]  # fmt: skip


def _by_lost_score(view: LayerView, runs: _UnitRuns) -> torch.Tensor:
    """The weighted units.

    Raises:
        OptionError: when a function computes the units from the layer's output, which cannot be undone.
    """
    activations, (path, call, name) = view.activations, view.place
    module = None if view.of_input else view.scorer.model.get_submodule(path)
    edited = InputOf(f"{path}#{call}") if view.of_input else f"{path}#{call}"

    def scores(rows: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        places = rows if view.scorer.apart({}, rows) else torch.arange(len(rows), device=rows.device)

        def edit(output: Any) -> Any:
            changed = tensors_of(module, output)[name].clone(memory_format=torch.contiguous_format)
            entries = _entries(view, changed)[places, units]
            changed.view(-1)[entries] = 0  # other tokens stay
            return exchanged(module, output, {name: changed})

        with Probe(view.scorer.model, (), edits={edited: edit}):
            return view.scorer({}, rows)

    ablated, ran = runs.scores(view, scores, activations.flatten(2).ne(0).any(dim=2))
    score = view.score.to(ablated.dtype).unsqueeze(1)
    size = torch.where(score == 0, torch.ones_like(score), score.abs())
    weights = torch.where(ran, (score - ablated) / size, torch.zeros_like(ablated))
    return weights.reshape(*weights.shape, *[1] * (activations.ndim - 2)) * activations


def _entries(view: LayerView, tensor: torch.Tensor) -> torch.Tensor:
    """Number of the entry of a tensor that each unit at each place is, `(samples, unit, *places)`."""
    numbers = torch.arange(tensor.numel(), device=tensor.device)
    found = view.view(numbers.reshape(tensor.shape))
    if found.dtype != numbers.dtype or len(torch.unique(found)) != found.numel():
        raise OptionError(
            "ablation_cam must put the layer's output back, but reshape= computes; it may only rearrange."
        )
    return found


@dataclasses.dataclass(frozen=True)
class _UnitRuns:
    """The runs of a method, one for each unit.

    Attributes:
        method: name of the method.
        units: number of units, those that vary most over the places; None for all.
        batch_size: runs per pass.
    """

    method: str
    units: int | None
    batch_size: BatchSize

    def __post_init__(self) -> None:
        if self.units is not None:
            check_count("units", self.units, also="None")
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size, also="'auto'")

    def scores(self, view: LayerView, scores: Scores, matters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the score of each run and which units were run, both `(batch, unit)`.

        Args:
            view: the layer in the run on the input as it is.
            scores: makes the scores of samples of the batch with a unit each.
            matters: which units can make a difference, `(batch, unit)`.

        Raises:
            OptionError: when a score is not finite.
        """
        if self.units is not None:
            spread = view.activations.flatten(2).var(dim=2, correction=0).masked_fill(~matters, -1.0)
            best = spread.topk(min(self.units, spread.shape[1]), dim=1).indices
            matters = matters & torch.zeros_like(matters).scatter(1, best, True)
        pairs = matters.nonzero()  # (n, 2): sample, unit
        result = torch.zeros(matters.shape, dtype=view.activations.dtype, device=matters.device)
        if not len(pairs):
            return result, matters
        whole = view.scorer.values()
        _, at_once = first_score(view.scorer, whole, self.batch_size, gradient=False)
        both = {name: torch.cat([value, torch.zeros_like(value)]) for name, value in whole.items()}
        if max(at_once, len(matters)) > 1 and view.scorer.apart(both, view.scorer.rows.repeat(2)):
            at_once = 1
        with torch.no_grad():
            for start in track(range(0, len(pairs), at_once), self.method):
                rows, units = pairs[start : start + at_once].unbind(dim=1)
                result[rows, units] = scores(rows, units).to(result.dtype)
        if not bool(result.isfinite().all()):
            raise OptionError(f"{self.method}: the score is not finite with some units of layer {view.path!r}.")
        return result, matters
