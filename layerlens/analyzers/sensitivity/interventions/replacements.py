"""What is put in the place of a part: zeros, means, values of other samples or of another input, random directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_sites import floating
from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import batches, grouped
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
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


Value = Literal["zero", "mean", "resample"]
VALUES = ("zero", "mean", "resample")


def source_of(
    model: nn.Module,
    inputs: Inputs,
    value: Value,
    reference: Any,
    draws: int,
    forward: Forward | None,
    seed: int,
) -> tuple[Source, int]:
    """What makes the new values, and how many draws of them there are.

    Raises:
        InputError: when there is no reference for a single sample, or its samples are shaped unlike those of the input.
        OptionError: when a reference is given that is not used.
    """
    if value == "zero":
        if reference is not None:
            raise OptionError("value='zero' takes no reference; with one, use value='mean' or 'resample'.")
        return Zero(), 1
    if reference is None:
        if inputs.batch < 2:
            raise InputError(
                f"value={value!r} takes other samples than the one that is given: pass reference=, some of those that "
                "the model was made for, of the same shape."
            )
        if value == "mean":
            return Recorded(model, lambda: [inputs], [every_sample(inputs.batch, 0)], forward, seed, average=True), 1
        orders = others(inputs.batch, draws, seed)
        return Recorded(model, lambda: [inputs], orders, forward, seed), len(orders)
    if value == "mean":
        order = every_sample(inputs.batch, 0)
        return Recorded(model, lambda: _read(reference, inputs), [order], forward, seed, average=True), 1
    chosen = _drawn(_read(reference, inputs), draws, seed)
    orders = [every_sample(inputs.batch, sample) for sample in range(len(chosen))]
    joined = [part for part, _ in grouped(iter([(one, 0) for one in chosen]), len(chosen))]
    return Recorded(model, lambda: joined, orders, forward, seed), len(chosen)


def _read(reference: Any, inputs: Inputs) -> Iterator[Inputs]:
    """The reference in batches of the input's size, each seen to be like the input."""
    if (
        isinstance(reference, Iterable)
        and not isinstance(reference, (torch.Tensor, dict, tuple, Inputs))
        and not (hasattr(reference, "keys") or hasattr(reference, "__array__"))
    ):
        parts: Iterable[Inputs] = (batch.inputs for batch in batches(reference, inputs.batch, progress=False))
    else:
        whole = as_inputs(reference)
        parts = (whole.rows(rows) for rows in torch.split(torch.arange(whole.batch), inputs.batch))
    wanted = {name: tensor.shape[1:] for name, tensor in inputs.tensors().items()}
    for part in parts:
        for name, tensor in part.tensors().items():
            if name not in wanted or tensor.shape[1:] != wanted[name]:
                own = inputs.tensors().get(name)
                raise InputError(
                    f"reference: input {name!r} is {describe(tensor)}, and the input to explain "
                    f"{'has none' if own is None else f'is {describe(own)}'}; they may differ in their first axis only."
                )
        yield part


def _drawn(parts: Iterator[Inputs], count: int, seed: int) -> list[Inputs]:
    """`count` of all samples at random, or all of them when they are fewer (Vitter 1985, algorithm R)."""
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
