"""Changes of the outputs of layers: scaled, set, patched, resampled, in whole or in part.

lens.run(x, edits={"blocks.3.attn": zero(heads=(2, 12)), "blocks.4#1": scale(0.5)})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from layerlens.axes.names import batch_axis, place_axis, unit_axis
from layerlens.errors import OptionError, check_count
from layerlens.model.trees import describe, first_tensor, map_tensors
from layerlens.signatures import public_class

from .record import Record

Indices: TypeAlias = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Site:
    """The call of a layer whose output is changed.

    Attributes:
        path: path of the layer.
        call: number of the call, from 0.
        module: the layer.
    """

    path: str
    call: int
    module: nn.Module


@public_class
@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a layer's (first) output tensor that is changed; all given conditions must hold.

    Attributes:
        samples: samples of the batch.
        units: channels or features.
        positions: tokens or time steps; negative ones count from the end.
        heads: (which, number of heads): features in that many equal groups.
        mask: a boolean tensor that broadcasts to the output.
    """

    samples: Indices = None
    units: Indices = None
    positions: Indices = None
    heads: tuple[int | Sequence[int], int] | None = None
    mask: torch.Tensor | None = None

    def of(self, tensor: torch.Tensor, site: Site) -> torch.Tensor | None:
        """Return the part as a boolean mask that broadcasts to `tensor`; None for all of it.

        Raises:
            OptionError: when an index is out of range, or the output has no such axis.
        """
        masks = []
        if self.samples is not None:
            masks.append(_mask_along(self.samples, batch_axis(site.module, tensor), tensor, "sample", site))
        if self.units is not None:
            masks.append(_mask_along(self.units, unit_axis(site.module, tensor), tensor, "unit", site))
        if self.positions is not None:
            axis = place_axis(site.module, tensor)
            if axis is None:
                raise OptionError(
                    f"layer {site.path!r} returned {describe(tensor)}, which has no axis of tokens or time steps: give "
                    "mask=, a boolean tensor that broadcasts to the output."
                )
            masks.append(_mask_along(self.positions, axis, tensor, "position", site))
        if self.heads is not None:
            masks.append(_heads(self.heads, tensor, site))
        if self.mask is not None:
            masks.append(_fitting(self.mask, tensor, site))
        whole: torch.Tensor | None = None
        for mask in masks:
            whole = mask if whole is None else whole & mask
        return whole


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a part of a layer's output, as made by `scale`, `zero`, `replace`, `patch` and the others.

    In a nested output only the first tensor is changed.

    Attributes:
        name: description of the change.
        function: `(tensor, site) -> tensor` that broadcasts to the first tensor.
        part: the part that is changed.
    """

    name: str
    function: Callable[[torch.Tensor, Site], torch.Tensor] = dataclasses.field(repr=False)
    part: Part = dataclasses.field(default=Part(), repr=False)

    def apply(self, output: object, site: Site) -> Any:
        """Return the changed output of one call.

        Raises:
            OptionError: when the change or its part does not fit the output.
        """
        tensor = first_tensor(output)
        if tensor is None:
            raise OptionError(f"layer {site.path!r} returned {describe(output)}, which has no tensor to change.")
        new = self.function(tensor, site).to(dtype=tensor.dtype, device=tensor.device)
        try:
            new = new.expand_as(tensor)
        except RuntimeError as error:
            raise OptionError(
                f"{self.name}: {describe(new)} does not fit what layer {site.path!r} returned, {describe(tensor)}."
            ) from error
        mask = self.part.of(tensor, site)
        changed = new.clone() if mask is None else torch.where(mask, new, tensor)
        return map_tensors(output, lambda part: changed if part is tensor else part)


def scale(factor: float, **part: Any) -> Change:
    """Multiply by a factor.

    Args:
        factor: 0 removes, 1 changes nothing.
        part: as in `Part`: `samples`, `units`, `positions`, `heads`, `mask`.

    Example:
        >>> from layerlens import Lens
        >>> lens = Lens(nn.Sequential(nn.Identity(), nn.Flatten()))
        >>> lens.run(torch.ones(1, 3), edits={"0": scale(2.0, units=[0, 2])})
        tensor([[2., 1., 2.]])
    """
    return Change(f"scale({factor:g})", lambda tensor, site: tensor * factor, Part(**part))


def zero(**part: Any) -> Change:
    """Set to 0 (zero ablation), including values that are not finite.

    Args:
        **part: as in `Part`.
    """
    return Change("zero()", lambda tensor, site: tensor.new_zeros(()), Part(**part))


def replace(value: float | torch.Tensor, **part: Any) -> Change:
    """Set to a number, or to a tensor that broadcasts to the output.

    Args:
        value: a number or tensor.
        **part: as in `Part`.
    """
    fixed = torch.as_tensor(value)
    return Change(f"replace({describe(fixed) if fixed.ndim else value})", lambda tensor, site: fixed, Part(**part))


def add(value: float | torch.Tensor, **part: Any) -> Change:
    """Add a number, or a tensor that broadcasts to the output: steering, when it is a direction of features.

    Args:
        value: a number or tensor.
        **part: as in `Part`.
    """
    step = torch.as_tensor(value)
    return Change(f"add({describe(step) if step.ndim else value})", lambda t, site: t + step.to(t), Part(**part))


def patch(source: Record, *, layer: str | None = None, call: int | None = None, **part: Any) -> Change:
    """Replace by the output recorded in another run (activation patching, Meng et al. 2022; Wang et al. 2022).

    Args:
        source: record of a run whose outputs have the same shape, or of one sample for all.
        layer: layer to take the output of; None for the layer that is changed.
        call: call to take the output of; None for the same call.
        part: as in `Part`.
    """

    def recorded(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        index = site.call if call is None else call
        calls = [found for found in source.calls(layer or site.path) if found.index == index]
        if not calls:
            raise OptionError(f"patch: call {index} of layer {layer or site.path!r} is not in the record.")
        value = first_tensor(calls[0].output)
        if value is None:
            raise OptionError(f"patch: call {index} of layer {layer or site.path!r} recorded no tensor.")
        return value

    return Change("patch(record)", recorded, Part(**part))


def mean(source: Record | None = None, **part: Any) -> Change:
    """Set to the mean over the batch (mean ablation), of a reference run or of the output itself.

    Args:
        source: record of the reference run; None for the batch itself, which must then have two samples or more.
        part: as in `Part`.
    """

    def averaged(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        values = tensor if source is None else patch(source).function(tensor, site)
        axis = batch_axis(site.module, values)
        if source is None and values.shape[axis] < 2:
            raise OptionError("mean: the mean of one sample is the sample itself; give a reference, mean(record).")
        return values.mean(dim=axis, keepdim=True)

    return Change("mean()" if source is None else "mean(record)", averaged, Part(**part))


def resample(seed: int = 0, **part: Any) -> Change:
    """Replace each sample's output by that of another sample of the batch (resampling ablation).

    Args:
        seed: seed of the order.
        part: as in `Part`.
    """

    def moved(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        axis = batch_axis(site.module, tensor)
        count = tensor.shape[axis]
        if count < 2:
            raise OptionError("resample: a batch of one has no other sample to take from.")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        taken = torch.empty_like(order)
        taken[order] = order.roll(1)
        return tensor.index_select(axis, taken.to(tensor.device))

    return Change(f"resample(seed={seed})", moved, Part(**part))


def _mask_along(indices: Indices, axis: int, tensor: torch.Tensor, what: str, site: Site) -> torch.Tensor:
    size = tensor.shape[axis] if tensor.ndim else 0
    wanted = [indices] if isinstance(indices, int) else list(indices or ())
    for index in wanted:
        if isinstance(index, bool) or not isinstance(index, int) or not -size <= index < size:
            raise OptionError(f"there is no {what} {index!r} in layer {site.path!r}: it has {size} (0 to {size - 1}).")
    mask = torch.zeros(size, dtype=torch.bool, device=tensor.device)
    mask[wanted] = True
    shape = [1] * tensor.ndim
    shape[axis] = size
    return mask.reshape(shape)


def _heads(heads: tuple[int | Sequence[int], int], tensor: torch.Tensor, site: Site) -> torch.Tensor:
    if not isinstance(heads, tuple) or len(heads) != 2:
        raise OptionError(f"heads must be (which, number of heads), such as (2, 12), got {heads!r}.")
    which, count = heads
    check_count("the number of heads", count)
    axis = unit_axis(site.module, tensor)
    size = tensor.shape[axis]
    if size % count:
        raise OptionError(f"the {size} features of layer {site.path!r} cannot be split into {count} equal heads.")
    wanted = [which] if isinstance(which, int) else list(which)
    for head in wanted:
        if not -count <= head < count:
            raise OptionError(f"there is no head {head} of {count} in layer {site.path!r} (0 to {count - 1}).")
    width = size // count
    return _mask_along(
        [w for head in wanted for w in range((head % count) * width, (head % count + 1) * width)],
        axis,
        tensor,
        "feature",
        site,
    )


def _fitting(mask: torch.Tensor, tensor: torch.Tensor, site: Site) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        raise OptionError(f"mask must be a boolean tensor, got {describe(mask)}.")
    try:
        return mask.to(tensor.device).expand_as(tensor)
    except RuntimeError as error:
        raise OptionError(
            f"mask {describe(mask)} does not fit what layer {site.path!r} returned, {describe(tensor)}."
        ) from error
