"""Numbers of one training step: what a layer returned, and how its parameters moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.tracing import tracing
from layerlens.errors import AxesUnknown
from layerlens.inputs.inputs import Inputs
from layerlens.model.call_tracking import on_enter
from layerlens.model.layers import LayerPath, Layers

HEALTH = ("constant units", "zeros", "activation mean", "activation std")


@dataclasses.dataclass
class OutputSums:
    """Sums over the calls of a layer in one step; small tensors on the layer's device, read at the end.

    Attributes:
        low: smallest value of each unit so far; None where units are not known, or differ between calls.
        high: largest value of each unit.
        zeros: number of values that were 0.
        mean: mean of all values, float64.
        spread: sum of squared differences from the mean, float64.
        count: number of values.
        rows: number of samples of the first call.
    """

    low: torch.Tensor | None
    high: torch.Tensor | None
    zeros: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    count: int
    rows: int

    def add(self, other: OutputSums) -> None:
        """Add another call of the same step."""
        if self.low is not None and self.high is not None and other.low is not None and other.high is not None:
            same = self.low.shape == other.low.shape
            self.low = torch.minimum(self.low, other.low) if same else None
            self.high = torch.maximum(self.high, other.high) if same else None
        whole = self.count + other.count
        gap = other.mean - self.mean  # Chan, Golub & LeVeque 1983, eq. 2.1
        self.spread = self.spread + other.spread + gap.square() * (self.count * other.count / whole)
        self.mean = self.mean + gap * (other.count / whole)
        self.zeros, self.count = self.zeros + other.zeros, whole

    def numbers(self) -> dict[str, float]:
        """Return the numbers by quantity."""
        constant = float("nan")
        if self.low is not None and self.high is not None:
            constant = float((self.low == self.high).double().mean())
        found = (constant, float(self.zeros) / self.count, float(self.mean), float((self.spread / self.count).sqrt()))
        return dict(zip(HEALTH, found, strict=True))


class FirstAxes:
    """The axes of what layers return during a training, followed once, when the model is first called with gradients.

    Where the loop calls modules inside of the model instead, each of the outermost is followed.

    Args:
        model: the model.

    Attributes:
        unknown: layer, or tensor of it -> why its axes are not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._calls: dict[LayerPath, list[CallSite]] = {}
        self._known: dict[tuple[LayerPath, str, torch.Size], tuple[int | None, int | None]] = {}
        self._outermost: list[LayerPath] = []
        self.unknown: dict[str, str] = {}

    def attach(self) -> list[RemovableHandle]:
        """Attach the hooks that follow the first call; none once the model was followed."""
        if "" in self._outermost:
            return []
        wrapper = nn.parallel.DistributedDataParallel  # it would wait for the other processes
        layers = {path: module for path, module in Layers(self._model).items() if not isinstance(module, wrapper)}
        return on_enter(layers, self._enter)

    def _enter(self, path: LayerPath, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if tracing() or not torch.is_grad_enabled() or any(f"{path}.".startswith(_inside(o)) for o in self._outermost):
            return
        self._outermost.append(path)
        try:
            sites = followed(module, Inputs(args, kwargs)).calls
        except Exception as error:  # the training runs on, whatever the model refuses in eval mode
            self.unknown[path or "(model)"] = f"{type(error).__name__}: {error}"
            return
        for site in sites:
            whole = _inside(path) + site.path if site.path else path
            self._calls.setdefault(whole, []).append(dataclasses.replace(site, path=whole))

    def place(self, path: LayerPath) -> int:
        """Return the place, in the order of execution, of the first call of a layer, or inside it.

        A layer without calls, whose parameters are read by the layer around it, has its place; -1 if that is unknown.
        """
        found = (at for at, called in enumerate(self._calls) if called == path or called.startswith(_inside(path)))
        place = next(found, -1)
        return self.place(path.rpartition(".")[0]) if place < 0 and path else place

    def of(self, path: LayerPath, name: str, tensor: torch.Tensor) -> tuple[int | None, int | None]:
        """Return the axes of samples and of units of the tensor `name` of any call of a layer; None if there is none.

        Raises:
            AxesUnknown: when they are not known, or differ between calls.
        """
        key = (path, name, tensor.shape)
        if key not in self._known:
            sites = self._calls.get(path, ())
            found = {(site.batch_axis(tensor, name), site.unit_axis(tensor, name)) for site in sites}
            if len(found) != 1:
                why = "differ between its calls" if found else "were not followed: it did not run when they were"
                raise AxesUnknown(f"the axes of layer {path!r} {why}.")
            self._known[key] = found.pop()
        return self._known[key]


def _inside(path: LayerPath) -> str:
    return f"{path}." if path else ""


def output_sums(tensor: torch.Tensor, samples: int | None, units: int | None, *, known: bool) -> OutputSums | None:
    """Return the sums of a tensor that a layer returned; None if it has no numbers.

    Args:
        tensor: the tensor.
        samples: axis of samples; None if there is none.
        units: axis of units; None for a single unit.
        known: whether the axes are known.
    """
    if not tensor.is_floating_point() or tensor.ndim < 1 or not tensor.numel():
        return None
    values = tensor.detach()
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    count, others = wide.numel(), [place for place in range(wide.ndim) if place != units]
    several = known and count > (1 if units is None else wide.shape[units])
    low, high = (wide.amin(others), wide.amax(others)) if several else (None, None)
    mean = wide.mean()
    spread = (wide - mean).square_().mean() * count  # a tenth of the time of var_mean on a CPU
    zeros = count - torch.count_nonzero(values)
    rows = 0 if samples is None else tensor.shape[samples]
    return OutputSums(low, high, zeros, mean.double(), spread.double(), count, rows)


def parameters_by_layer(model: nn.Module, parameters: Iterable[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """Return by path each module's own parameters among `parameters`; a shared one belongs to the first module."""
    wanted = {id(parameter) for parameter in parameters}
    found: dict[str, list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in wanted:
                wanted.discard(id(parameter))
                found.setdefault(path or "(model)", []).append(parameter)
    return found


def norms(groups: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
    """Return the Euclidean norm of all tensors of each group together, `(groups,)`; NaN where there are none."""
    found = []
    for tensors in groups.values():
        parts = [torch.linalg.vector_norm(part.detach(), dtype=torch.promote_types(part.dtype, torch.float32)).cpu()
                 for part in tensors]  # fmt: skip
        found.append(torch.stack([part.double() for part in parts]).norm() if parts else torch.tensor(float("nan")))
    return torch.stack([norm.double() for norm in found])


class ParameterUpdates:
    """Norms of gradients, weights and updates by layer.

    Args:
        parameters: path of a layer -> its own parameters.
    """

    def __init__(self, parameters: dict[str, list[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._before: dict[str, list[torch.Tensor]] = {}

    @property
    def begun(self) -> bool:
        """Whether a step is being measured."""
        return bool(self._before)

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the parameters before a step."""
        self._before = {path: [one.detach().clone() for one in own] for path, own in self._parameters.items()}

    @torch.no_grad()
    def gradients(self) -> dict[str, float]:
        """Return ||dL/dW|| by layer; NaN where there is no gradient."""
        found = {
            path: [one.grad.coalesce().values() if one.grad.is_sparse else one.grad for one in own
                   if one.grad is not None]
            for path, own in self._parameters.items()
        }  # fmt: skip
        return dict(zip(found, norms(found).tolist(), strict=True))

    @torch.no_grad()
    def end(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return ||W|| before the step, and ||W' - W|| / ||W||, by layer."""
        before, self._before = self._before, {}
        moved = {
            path: [new.detach() - old for new, old in zip(self._parameters[path], own, strict=True)]
            for path, own in before.items()
        }
        sizes, change = norms(before), norms(moved)
        ratio = torch.where(change == 0, 0.0, change / sizes)
        return dict(zip(moved, sizes.tolist(), strict=True)), dict(zip(moved, ratio.tolist(), strict=True))

    def forget(self) -> None:
        """Drop what is remembered."""
        self._before = {}
