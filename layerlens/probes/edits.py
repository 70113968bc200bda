"""Changes of the outputs of layers: scaled, set, patched, resampled, in whole or in part.

lens.run(x, edits={"blocks.3.attn": zero(heads=2), "blocks.4#1": scale(0.5), "rnn/h_n": zero()})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from layerlens.errors import OptionError, warn
from layerlens.model.selection import split_tensor
from layerlens.model.tensors import changeable, choices, exchanged, refuse_several
from layerlens.model.trees import describe
from layerlens.signatures import public_class

from .edit_site import Site
from .record import Record

Indices: TypeAlias = int | Sequence[int] | None


@public_class
@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a layer's output that is changed; all given conditions must hold.

    Attributes:
        samples: samples of the batch.
        units: channels or features.
        positions: tokens or time steps; negative ones count from the end.
        heads: heads of an attention, which is the layer, lies in it, or has it as its output projection: a head or a
            list of heads; or `(which, number of heads)`, which is checked.
        mask: a boolean tensor that broadcasts to the output.
    """

    samples: Indices = None
    units: Indices = None
    positions: Indices = None
    heads: int | Sequence[int] | tuple[int | Sequence[int], int] | None = None
    mask: torch.Tensor | None = None

    @property
    def needs_axes(self) -> bool:
        """Whether it names entries of an axis."""
        return any(one is not None for one in (self.samples, self.units, self.positions, self.heads))

    def of_heads(self, count: int, where: str) -> Part:
        """Return the part with `heads` as (which, number of heads).

        Raises:
            OptionError: when `heads` states another number, or there is no such head.
        """
        heads = self.heads
        if isinstance(heads, tuple) and len(heads) == 2 and isinstance(heads[1], int):
            if heads[1] != count:
                raise OptionError(f"{where} has {count} heads, not {heads[1]}: give heads={heads[0]!r}.")
            heads = heads[0]
        which = [heads] if isinstance(heads, int) else list(heads or ())
        for head in which:
            if isinstance(head, bool) or not isinstance(head, int) or not -count <= head < count:
                raise OptionError(f"there is no head {head!r} in {where}: it has {count} (0 to {count - 1}).")
        return dataclasses.replace(self, heads=([head % count for head in which], count))

    def of(self, tensor: torch.Tensor, site: Site) -> torch.Tensor | None:
        """Return the part as a boolean mask that broadcasts to `tensor`; None for all of it.

        Raises:
            OptionError: when an index is out of range, or the output has no such axis.
        """
        masks = []
        for what, indices in (("sample", self.samples), ("unit", self.units), ("position", self.positions)):
            if indices is not None:
                if site.ragged and what == "position" and any(k < 0 for k in _listed(indices)):
                    raise OptionError(
                        f"samples of {site.name!r} have different lengths: count positions= from the start."
                    )
                masks.append(_mask_along(indices, site.axis_of(tensor, what), tensor, what, site))
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

    Where a layer returns several tensors all of floating point are changed, or the one that is named (`"rnn/h_n"`). A
    part must mean the same in each of them. Nested (ragged) tensors are changed as dense ones.

    Attributes:
        name: description of the change.
        function: `(tensor, site) -> tensor` that broadcasts to the tensor. Of a nested tensor it gets a dense one,
            which is NaN where a sample has ended.
        part: the part that is changed.
        keeps: whether the numbers stay as they are, as in copies at which something is read.
        by_sample: whether the function asks for the axis of samples.
    """

    name: str
    function: Callable[[torch.Tensor, Site], torch.Tensor] = dataclasses.field(repr=False)
    part: Part = dataclasses.field(default=Part(), repr=False)
    keeps: bool = False
    by_sample: bool = dataclasses.field(default=False, repr=False)

    @property
    def needs_axes(self) -> bool:
        """Whether the axes of the output must be known."""
        return self.by_sample or self.part.needs_axes

    def apply(self, output: object, site: Site) -> Any:
        """Return the changed output of one call, or the tensors that are named.

        Raises:
            OptionError: when the change or its part does not fit the output.
            SelectionError: when the layer returned no tensor of that name, or several tensors of which the part does
                not fit every one.
        """
        owner = None if site.arguments else site.module
        found = changeable(owner, output, site.tensors, site.path)
        if not found:
            raise OptionError(f"layer {site.path!r} returned {describe(output)}, which has no tensor to change.")
        if site.arguments and len(found) > 1:
            refuse_several(site.path, found, "and one is needed here", verb="took")
        new: dict[str, torch.Tensor] = {}
        counts: set[int] = set()
        for name, tensor in found.items():
            at = dataclasses.replace(site, tensor=name, ragged=tensor.is_nested)
            try:
                if self.part.units is not None:
                    counts.add(tensor.size(at.axis_of(tensor, "unit")))
                new[name] = self._changed_nested(tensor, at) if tensor.is_nested else self._changed(tensor, at)
            except OptionError as error:
                if len(found) == 1:
                    raise
                refuse_several(site.path, found, f"of which {name!r} cannot be changed alike: {error}", error)
        if len(counts) > 1:
            refuse_several(site.path, found, f"with {' and '.join(map(str, sorted(counts)))} units")
        return exchanged(owner, output, new)

    def _changed(self, tensor: torch.Tensor, site: Site) -> torch.Tensor:
        new = self.function(tensor, site).to(dtype=tensor.dtype, device=tensor.device)
        try:
            new = new.expand_as(tensor)
        except RuntimeError as error:
            raise OptionError(
                f"{self.name}: {describe(new)} does not fit what layer {site.path!r} returned, {describe(tensor)}."
            ) from error
        mask = self.part.of(tensor, site)
        return new.clone() if mask is None else torch.where(mask, new, tensor)

    def _changed_nested(self, tensor: torch.Tensor, site: Site) -> torch.Tensor:
        dense = torch.nested.to_padded_tensor(tensor, torch.nan)
        changed = self._changed(dense, site)
        missing = changed.isnan() & ~dense.isnan()
        if bool(missing.any()):
            warn(
                f"{self.name}: samples of {site.name!r} have different lengths; what would take a value from behind "
                "the end of another sample keeps its own. Name positions= that all samples have."
            )
        parts = zip(torch.where(missing, dense, changed), tensor.unbind(), strict=True)
        cut = [row[tuple(map(slice, part.shape))] for row, part in parts]
        if tensor.layout is torch.jagged:
            ragged: int = tensor._ragged_idx  # type: ignore[attr-defined]
            lengths = [part.shape[ragged - 1] for part in cut]
            about = {"jagged_dim": ragged, "min_seqlen": min(lengths), "max_seqlen": max(lengths)}
            return torch.nested.nested_tensor_from_jagged(torch.cat(cut, ragged - 1), tensor.offsets(), **about)  # type: ignore[attr-defined]
        return torch.nested.as_nested_tensor(cut)


def scale(factor: float, **part: Any) -> Change:
    """Multiply by a factor.

    Args:
        factor: 0 removes, 1 changes nothing.
        part: as in `Part`: `samples`, `units`, `positions`, `heads`, `mask`.

    Example:
        >>> from torch import nn
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
        layer: layer, or a tensor of one (`"rnn/h_n"`), to take; None for the same that is changed.
        call: call to take the output of; None for the same call.
        part: as in `Part`.
    """

    def recorded(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        index = site.call if call is None else call
        path, picked = (site.path, "") if layer is None else split_tensor(layer, {*source.selected, *source.aliases})
        calls = [found for found in source.calls(path) if found.index == index]
        if not calls:
            raise OptionError(f"patch: call {index} of layer {path!r} is not in the record.")
        values = calls[0].tensors
        name = picked or site.tensor
        names = list(values) if len(values) == 1 and (layer or not name) and not picked else values.named(name)
        if len(names) != 1:
            raise OptionError(
                f"patch: call {index} of layer {path!r} recorded {choices(path, values) or 'no tensor'}, and "
                f"{site.name!r} is changed; take one with patch(record, layer=...)."
            )
        value = values[names[0]]
        if not value.is_nested:
            return value
        padded: torch.Tensor = torch.nested.to_padded_tensor(value, torch.nan)
        if not site.ragged and bool(padded.isnan().any()):
            raise OptionError(
                f"patch: samples of {path!r} have different lengths in the record, and {site.name!r} not."
            )
        return padded

    return Change("patch(record)", recorded, Part(**part))


def mean(source: Record | None = None, **part: Any) -> Change:
    """Set to the mean over the batch (mean ablation), of a reference run or of the output itself.

    Args:
        source: record of the reference run; None for the batch itself, which must then have two samples or more.
        part: as in `Part`.
    """

    def averaged(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        values = tensor if source is None else patch(source).function(tensor, site)
        axis = site.axis_of(values, "sample")
        if source is None and values.shape[axis] < 2:
            raise OptionError("mean: the mean of one sample is the sample itself; give a reference, mean(record).")
        return values.nanmean(dim=axis, keepdim=True) if site.ragged else values.mean(dim=axis, keepdim=True)

    return Change("mean()" if source is None else "mean(record)", averaged, Part(**part), by_sample=True)


def resample(seed: int = 0, **part: Any) -> Change:
    """Replace each sample's output by that of another sample of the batch (resampling ablation).

    Args:
        seed: seed of the order.
        part: as in `Part`.
    """

    def moved(tensor: torch.Tensor, site: Site) -> torch.Tensor:
        axis = site.axis_of(tensor, "sample")
        count = tensor.shape[axis]
        if count < 2:
            raise OptionError("resample: a batch of one has no other sample to take from.")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        taken = torch.empty_like(order)
        taken[order] = order.roll(1)
        return tensor.index_select(axis, taken.to(tensor.device))

    return Change(f"resample(seed={seed})", moved, Part(**part), by_sample=True)


def _listed(indices: Indices) -> list[int]:
    return [indices] if isinstance(indices, int) else list(indices or ())


def _mask_along(indices: Indices, axis: int, tensor: torch.Tensor, what: str, site: Site) -> torch.Tensor:
    size = tensor.shape[axis] if tensor.ndim else 0
    wanted = _listed(indices)
    for index in wanted:
        if isinstance(index, bool) or not isinstance(index, int) or not -size <= index < size:
            at, more = "", ""
            if site.call:
                at = f" in its call {site.call}"
                more = (
                    f" Name the calls to change: {site.path + '#0'!r} is the first, such as the prompt of generate()."
                )
            raise OptionError(
                f"there is no {what} {index!r} in layer {site.path!r}{at}: it has {size} (0 to {size - 1}).{more}"
            )
    mask = torch.zeros(size, dtype=torch.bool, device=tensor.device)
    mask[wanted] = True
    shape = [1] * tensor.ndim
    shape[axis] = size
    return mask.reshape(shape)


def _heads(heads: object, tensor: torch.Tensor, site: Site) -> torch.Tensor:
    """Return the mask of heads, given as (which, number of heads)."""
    assert isinstance(heads, tuple)
    which, count = heads
    along = site.axis(tensor, "head")
    if along is not None:
        return _mask_along(which, along, tensor, "head", site)
    axis = site.axis_of(tensor, "unit")
    width = tensor.shape[axis] // count
    units = [unit for head in which for unit in range(head * width, (head + 1) * width)]
    return _mask_along(units, axis, tensor, "unit", site)


def _fitting(mask: torch.Tensor, tensor: torch.Tensor, site: Site) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        raise OptionError(f"mask must be a boolean tensor, got {describe(mask)}.")
    try:
        return mask.to(tensor.device).expand_as(tensor)
    except RuntimeError as error:
        raise OptionError(
            f"mask {describe(mask)} does not fit what layer {site.path!r} returned, {describe(tensor)}."
        ) from error
