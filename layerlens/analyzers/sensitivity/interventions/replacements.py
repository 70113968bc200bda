"""What is put in the place of a part: zeros, means, values of other samples or of another input, random directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import floating
from layerlens.errors import InputError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import describe

from .hook_points import Key, tapped
from .intervention_sites import Seam
from .parts import Cut, narrow, split


class Misfit(Exception):
    """A value has another shape than what it is to replace."""


class Source(Protocol):
    """Makes new values."""

    def load(self, seams: Sequence[Seam]) -> None:
        """Get ready for some seams; what was held for others is dropped."""

    def __call__(self, seam: Seam, place: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """What to put in the place of `old`, to which it broadcasts.

        Args:
            seam: where.
            place: which of its floating-point tensors.
            cut: which part of that tensor.
            old: the part, for one copy of the batch.
            draw: which draw.

        Raises:
            Misfit: when it does not fit.
        """


class Zero:
    """Zeros."""

    def load(self, seams: Sequence[Seam]) -> None:
        """Nothing to do."""

    def __call__(self, seam: Seam, place: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Zero."""
        return old.new_zeros(())


@dataclasses.dataclass
class Recorded:
    """What runs on other samples showed at the same place.

    Attributes:
        model: a borrowed model.
        runs: batches of those samples; their values are kept side by side, or averaged.
        orders: by draw, which of the samples each sample of the batch gets, `(batch,)`.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        seed: for models that draw numbers.
        average: whether to average over all samples.
    """

    model: nn.Module
    runs: Callable[[], Iterable[Inputs]]
    orders: list[torch.Tensor]
    forward: Forward | None
    seed: int
    average: bool = False
    held: dict[Key, list[torch.Tensor]] = dataclasses.field(default_factory=dict)
    count: int = 0

    def load(self, seams: Sequence[Seam]) -> None:
        """Run on the samples and keep their values at the seams."""
        self.held, self.count = {}, 0
        wanted = {seam.key: seam for seam in seams}
        for inputs in self.runs():
            self._read(inputs, wanted)
            self.count += inputs.batch
        if self.average:
            for key, tensors in self.held.items():
                self.held[key] = [tensor / self.count for tensor in tensors]
            self.count = 1

    def _read(self, inputs: Inputs, wanted: dict[Key, Seam]) -> None:
        batch = inputs.batch

        def note(key: Key, value: Any) -> Any:
            if key in wanted:
                found = [
                    self._kept(tensor.detach(), axis, batch)
                    for tensor, axis in zip(floating(value), wanted[key].axes, strict=False)
                ]
                before = self.held.get(key)
                self.held[key] = found if before is None else self._joined(key, before, found, wanted[key].axes)
            return value

        torch.manual_seed(self.seed)
        with tapped(self.model, [key[:2] for key in wanted], note) as running:
            inputs.run(self.model, self.forward if running is None else running.around(self.forward))

    def _kept(self, tensor: torch.Tensor, axis: int | None, batch: int) -> torch.Tensor:
        if not self.average:
            return tensor.clone()
        wide = tensor.double()
        if axis is None:
            return wide * batch
        return split(wide, axis, batch).sum(dim=axis) if tensor.shape[axis] % batch == 0 else wide

    def _joined(
        self, key: Key, before: list[torch.Tensor], found: list[torch.Tensor], axes: tuple[int | None, ...]
    ) -> list[torch.Tensor]:
        joined = []
        for old, new, axis in zip(before, found, axes, strict=False):
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

    def __call__(self, seam: Seam, place: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """The samples that this draw gives."""
        held, axis = self.held.get(seam.key), seam.axes[place]
        if held is None or len(held) <= place:
            raise Misfit("did not run there")
        if axis is None:
            new = narrow(held[place], cut)
        else:
            rows = held[place].shape[axis]
            if rows % self.count or (seam.alone and rows != self.count):
                raise Misfit("its samples cannot be told apart there")
            samples = narrow(split(held[place], axis, self.count), cut, axis)
            order = self.orders[draw % len(self.orders)].to(samples.device)
            new = samples.index_select(axis, order).flatten(axis, axis + 1)
        if new.shape != old.shape:
            raise Misfit(f"is {tuple(new.shape)} there and {tuple(old.shape)} here")
        return new.to(old)


@dataclasses.dataclass
class RandomDirection:
    """As far from the old value as another source would go, in a random direction: the null of an intervention.

    Attributes:
        source: that other source.
        batch: samples in a copy.
        seed: of the directions.
    """

    source: Source
    batch: int
    seed: int

    def load(self, seams: Sequence[Seam]) -> None:
        """Load the other source."""
        self.source.load(seams)

    def __call__(self, seam: Seam, place: int, cut: Cut, old: torch.Tensor, draw: int) -> torch.Tensor:
        """Old + ||new - old|| e / ||e||, e ~ N(0, I), sample by sample; all samples get the same e."""
        axis = seam.axes[place]
        wide = torch.promote_types(old.dtype, torch.float32)
        step = (self.source(seam, place, cut, old, draw) - old).to(wide)
        step = step.unsqueeze(0) if axis is None else split(step, axis, self.batch).movedim(axis, 0)
        generator = torch.Generator().manual_seed(self.seed + 15485863 * (draw + 1) + 7919 * place)
        e = torch.randn(step.shape[1:], generator=generator).to(step)
        length = step.flatten(1).norm(dim=1) / e.norm().clamp_min(torch.finfo(wide).tiny)
        moved = length.reshape(-1, *[1] * e.ndim) * e
        moved = moved.squeeze(0) if axis is None else moved.movedim(0, axis).flatten(axis, axis + 1)
        new: torch.Tensor = old + moved.to(old.dtype)
        return new


def every_sample(batch: int, sample: int) -> torch.Tensor:
    """An order that gives one sample to all of a batch."""
    return torch.full((batch,), sample)


def others(batch: int, draws: int, seed: int) -> list[torch.Tensor]:
    """Orders that give each sample another one of its batch: at most `batch - 1`, no two of them alike.

    Along a random circle of all samples, each gets the one that is s places before it, another s for each draw.
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
