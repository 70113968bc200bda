"""What replaces a part: zeros, means, values of other samples or of another input, or random directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, cast

import torch

from layerlens.analyzers.common.calls.measured_calls import floating
from layerlens.analyzers.common.parts.grid import Cut, narrow, split
from layerlens.analyzers.common.parts.hook_points import Key, hooked
from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import Samples, batches, grouped
from layerlens.inputs.inputs import Input, Inputs, as_inputs
from layerlens.model.borrowed import seed_torch
from layerlens.model.trees import describe

from ..model_run import ModelRun
from .intervention_sites import InterventionSite


class Misfit(Exception):
    """The new value does not fit the part that it replaces."""


class Replacement(Protocol):
    """Makes the new values of parts."""

    def load(self, sites: Sequence[InterventionSite]) -> None:
        """Prepare for some sites; what was held for others is dropped."""

    def __call__(self, site: InterventionSite, index: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Return a replacement that broadcasts to `old`.

        Args:
            site: where to replace.
            index: index of the floating-point tensor of the site.
            cut: the part of that tensor.
            old: the part, for one copy of the batch.
            draw: index of the draw.

        Raises:
            Misfit: when the replacement does not fit.
        """


class Zero:
    """Zeros."""

    def load(self, sites: Sequence[InterventionSite]) -> None:
        """Do nothing."""

    def __call__(self, site: InterventionSite, index: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Return zero."""
        return old.new_zeros(())


@dataclasses.dataclass
class RecordedValues:
    """The values of other samples at the same place.

    Attributes:
        run: the model and how it is run.
        batches: yields batches of those samples; their values are held side by side, or averaged.
        orders: for each draw, the sample that each sample of the batch gets, `(batch,)`.
        average: whether to average over all samples.
    """

    run: ModelRun
    batches: Callable[[], Iterable[Inputs]]
    orders: list[torch.Tensor]
    average: bool = False
    held: dict[Key, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    count: int = 0

    def load(self, sites: Sequence[InterventionSite]) -> None:
        """Run on the samples and hold their values at the sites."""
        self.held, self.count = {}, 0
        wanted = {site.key: site for site in sites}
        for inputs in self.batches():
            self._record(inputs, wanted)
            self.count += inputs.batch
        if self.average:
            for key, tensors in self.held.items():
                self.held[key] = [tensor / self.count for tensor in tensors]
            self.count = 1

    def _record(self, inputs: Inputs, wanted: dict[Key, InterventionSite]) -> None:
        batch = inputs.batch

        def note(key: Key, value: Any) -> Any:
            if key in wanted:
                new_tensors = [
                    self._sum_or_copy(tensor.detach(), axis, batch)
                    for tensor, axis in zip(floating(value), wanted[key].axes, strict=False)
                ]
                before = self.held.get(key)
                self.held[key] = (
                    new_tensors if before is None else self._join(key, before, new_tensors, wanted[key].axes)
                )
            return value

        model, forward = self.run.model, self.run.forward
        seed_torch(self.run.seed)
        with hooked(model, [key[:2] for key in wanted], note) as running:
            inputs.run(model, forward if running is None else running.around(forward))

    def _sum_or_copy(self, tensor: torch.Tensor, axis: int | None, batch: int) -> torch.Tensor:
        if not self.average:
            return tensor.clone()
        wide = tensor.double()
        if axis is None:
            return wide * batch
        return split(wide, axis, batch).sum(dim=axis) if tensor.shape[axis] % batch == 0 else wide

    def _join(
        self, key: Key, before: list[torch.Tensor], new_tensors: list[torch.Tensor], axes: tuple[int | None, ...]
    ) -> list[torch.Tensor]:
        joined = []
        for old, new, axis in zip(before, new_tensors, axes, strict=False):
            rest = (slice(None) if k == axis and not self.average else size for k, size in enumerate(old.shape))
            if old.ndim != new.ndim or any(
                not isinstance(r, slice) and r != n for r, n in zip(rest, new.shape, strict=True)
            ):
                raise InputError(
                    f"layer {key[1]!r} returned {describe(old)} for some samples of the reference and {describe(new)} "
                    "for others; give samples of one shape."
                )
            joined.append(old + new if self.average else old if axis is None else torch.cat([old, new], dim=axis))
        return joined

    def __call__(self, site: InterventionSite, index: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Return the values of the samples of this draw.

        Raises:
            Misfit: when they do not fit.
        """
        held, axis = self.held.get(site.key), site.axes[index]
        if held is None or len(held) <= index:
            raise Misfit("did not run there")
        if axis is None:
            new = narrow(held[index], cut)
        else:
            rows = held[index].shape[axis]
            if rows % self.count or (site.unsplittable and rows != self.count):
                raise Misfit("its samples cannot be separated there")
            samples = narrow(split(held[index], axis, self.count), cut, axis)
            order = self.orders[draw % len(self.orders)].to(samples.device)
            new = samples.index_select(axis, order).flatten(axis, axis + 1)
        if new.shape != old.shape:
            raise Misfit(f"is {tuple(new.shape)} there and {tuple(old.shape)} here")
        return new.to(old)


@dataclasses.dataclass
class RandomDirection:
    """A change in a random direction, of the size that another replacement makes: the null of an intervention.

    Attributes:
        replacement: that other replacement.
        batch: number of samples in a copy.
        seed: seed of the directions.
    """

    replacement: Replacement
    batch: int
    seed: int

    def load(self, sites: Sequence[InterventionSite]) -> None:
        """Load the other replacement."""
        self.replacement.load(sites)

    def __call__(self, site: InterventionSite, index: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Return old + ||new - old|| e / ||e||, e ~ N(0, I), sample by sample; all samples get the same e."""
        axis = site.axes[index]
        wide = torch.promote_types(old.dtype, torch.float32)
        step = (self.replacement(site, index, cut, old, draw) - old).to(wide)
        step = step.unsqueeze(0) if axis is None else split(step, axis, self.batch).movedim(axis, 0)
        generator = torch.Generator().manual_seed(self.seed + 15485863 * (draw + 1) + 7919 * index)
        e = torch.randn(step.shape[1:], generator=generator).to(step)
        length = step.flatten(1).norm(dim=1) / e.norm().clamp_min(torch.finfo(wide).tiny)
        moved = length.reshape(-1, *[1] * e.ndim) * e
        moved = moved.squeeze(0) if axis is None else moved.movedim(0, axis).flatten(axis, axis + 1)
        new: torch.Tensor = old + moved.to(old.dtype)
        return new


def same_sample(batch: int, sample: int) -> torch.Tensor:
    """Return an order that gives one sample to all samples of a batch."""
    return torch.full((batch,), sample)


def other_samples(batch: int, draws: int, seed: int) -> list[torch.Tensor]:
    """Return orders that give each sample another one of its batch: at most `batch - 1`, all different.

    On a random circle of all samples, each gets the one that is s steps before it, with another s for each draw.
    """
    generator = torch.Generator().manual_seed(seed)
    circle = torch.randperm(batch, generator=generator)
    shifts = torch.randperm(batch - 1, generator=generator)[:draws] + 1
    orders = []
    for shift in shifts.tolist():
        order = torch.empty_like(circle)
        order[circle] = circle.roll(shift)
        orders.append(order)
    return orders


Value = Literal["zero", "mean", "resample"]
VALUES = ("zero", "mean", "resample")


def choose_replacement(run: ModelRun, value: Value, reference: Samples | None, draws: int) -> tuple[Replacement, int]:
    """Choose what makes the new values, and return the number of their draws.

    Raises:
        InputError: when there is no reference for a single sample, or its samples have another shape than the input.
        OptionError: when a reference is given that is not used.
    """
    inputs, seed = run.inputs, run.seed
    if value == "zero":
        if reference is not None:
            raise OptionError("value='zero' takes no reference; with one, use value='mean' or 'resample'.")
        return Zero(), 1
    if reference is None:
        if inputs.batch < 2:
            raise InputError(
                f"value={value!r} needs other samples than the one given: pass reference=, typical samples of the same "
                "shape."
            )
        if value == "mean":
            return RecordedValues(run, lambda: [inputs], [same_sample(inputs.batch, 0)], average=True), 1
        orders = other_samples(inputs.batch, draws, seed)
        return RecordedValues(run, lambda: [inputs], orders), len(orders)
    if value == "mean":
        order = same_sample(inputs.batch, 0)
        return RecordedValues(run, lambda: _read_reference(reference, inputs), [order], average=True), 1
    chosen = _draw_samples(_read_reference(reference, inputs), draws, seed)
    orders = [same_sample(inputs.batch, sample) for sample in range(len(chosen))]
    joined = [part for part, _ in grouped(iter([(one, 0) for one in chosen]), len(chosen))]
    return RecordedValues(run, lambda: joined, orders), len(chosen)


def _read_reference(reference: Samples, inputs: Inputs) -> Iterator[Inputs]:
    """Yield the reference in batches of the input's size.

    Raises:
        InputError: when its samples have another shape than those of the input.
    """
    if (
        isinstance(reference, Iterable)
        and not isinstance(reference, (torch.Tensor, dict, tuple, Inputs))
        and not (hasattr(reference, "keys") or hasattr(reference, "__array__"))
    ):
        parts: Iterable[Inputs] = (batch.inputs for batch in batches(reference, inputs.batch, progress=False))
    else:
        whole = as_inputs(cast("Input", reference))
        parts = (whole.rows(rows) for rows in torch.split(torch.arange(whole.batch), inputs.batch))
    wanted = {name: tensor.shape[1:] for name, tensor in inputs.tensors().items()}
    for part in parts:
        for name, tensor in part.tensors().items():
            if name not in wanted or tensor.shape[1:] != wanted[name]:
                expected = inputs.tensors().get(name)
                raise InputError(
                    f"reference: input {name!r} is {describe(tensor)}, and the input to explain "
                    f"{'has none' if expected is None else f'is {describe(expected)}'}; only the first axis may differ."
                )
        yield part


def _draw_samples(parts: Iterator[Inputs], count: int, seed: int) -> list[Inputs]:
    """Draw `count` of all samples at random, or return all of them if there are fewer (Vitter 1985, algorithm R)."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[Inputs] = []
    seen = 0
    for part in parts:
        for row in range(part.batch):
            sample = part.rows(torch.tensor([row]))
            seen += 1
            if len(kept) < count:
                kept.append(sample)
            elif (place := int(torch.randint(seen, (), generator=generator))) < count:
                kept[place] = sample
    return kept
