"""The data that means and resampled values are taken from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import batches, grouped
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.trees import describe

from .replacements import Recorded, Source, Zero, every_sample, others

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
