"""A model and its samples in the form that `captum.influence` takes: one output, some parameters, batches of pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from layerlens.errors import InputError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.targets.outputs import log_probabilities, main_output

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`loss(output, labels)`: the loss of each sample, `(batch,)`."""

NOT_FINITE = "influence: some gradients are not finite; the loss of a sample overflows or is not smooth."


class Carrier(nn.Module):
    """A model as a function of one `Inputs`, that returns its main output and shows some parameters only.

    Args:
        model: the model.
        forward: what to call instead of it.
        names: names of the parameters that are differentiated.
    """

    def __init__(self, model: nn.Module, forward: Forward | None, names: list[str]) -> None:
        super().__init__()
        self.model, self._forward, self.names = model, forward, names

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Return the main output."""
        return main_output(inputs.run(self.model, self._forward))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Read the chosen parameters of the model.

        Yields:
            Name and parameter.
        """
        yield from ((f"model.{name}", self.model.get_parameter(name)) for name in self.names)


class Pairs(IterableDataset[tuple[Inputs, torch.Tensor]]):
    """Batches (inputs, labels) of a data set, read again each time."""

    def __init__(self, data: Data, model: nn.Module, what: str) -> None:
        self.data, self.model, self.what = data, model, what

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        for batch in self.data.batches(self.model, self.what):
            if batch.labels is None:
                call = "labels=..." if self.what == "x" else "training=Data(x, labels=...), or pairs (x, label)"
                raise InputError(f"influence needs the label of every sample of {self.what}: give {call}.")
            if any(isinstance(label, str) for label in batch.labels):
                raise InputError(f"labels of {self.what} are names, such as {batch.labels[0]!r}; give class indices.")
            device = next(iter(batch.inputs.tensors().values())).device
            yield batch.inputs, torch.tensor(batch.labels, device=device)

    def loader(self) -> DataLoader[Any]:
        """Return the batches as a DataLoader."""
        return DataLoader(self, batch_size=None)


@dataclasses.dataclass(frozen=True)
class Reduced:
    """A loss that says how it is reduced over samples, as captum reads it: `"none"` or `"sum"`."""

    loss: Loss
    reduction: str

    def __call__(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, or their sum."""
        losses = self.loss(output, labels)
        return losses.sum() if self.reduction == "sum" else losses


def usual_loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return minus the log likelihood of each sample: of class indices, or of real numbers with variance 1.

    Raises:
        InputError: when the labels do not fit the output.
    """
    if labels.is_floating_point():
        if output.numel() != labels.numel():
            raise InputError(f"labels {tuple(labels.shape)} for an output {tuple(output.shape)}; give loss=.")
        return (output.reshape(len(labels), -1) - labels.to(output).reshape(len(labels), -1)).square().sum(dim=1) / 2
    if output.ndim != 2 or output.shape[1] < 2:
        raise InputError(
            f"class labels need an output (batch, classes), got {tuple(output.shape)}: give "
            "loss=lambda output, labels: ..., which returns the loss of each sample, (batch,)."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= output.shape[1]:
        raise InputError(f"labels {int(labels.min())} to {int(labels.max())} for {output.shape[1]} classes.")
    return -log_probabilities(output).gather(1, labels[:, None])[:, 0]


def check_loss(loss: Loss, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the losses of a batch.

    Raises:
        InputError: when they are not one per sample.
    """
    losses = loss(output, labels)
    if not isinstance(losses, torch.Tensor) or losses.shape != (len(labels),):
        got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise InputError(f"loss= returned {got} for {len(labels)} samples; return one per sample (reduction='none').")
    return losses
