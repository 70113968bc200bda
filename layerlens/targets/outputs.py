"""The tensor of a model's output that scores are read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from layerlens.errors import TargetError
from layerlens.model.trees import describe, entries, named_tensors

MAIN_OUTPUTS = ("logits", "last_hidden_state", "prediction_logits", "reconstruction", "sample", "out")
"""Fields of an output that scores are read from; the first existing one counts."""


def main_output(output: object) -> torch.Tensor:
    """Return the tensor of a nested output that scores are read from.

    A field of `MAIN_OUTPUTS` if there is one, at any depth, else the only floating-point tensor with a batch axis; of
    several the first, if it alone is (batch, classes).

    Raises:
        TargetError: when there is none, or when there are several and none of them is known to be the main one.
    """
    if isinstance(output, torch.Tensor):
        return output
    tensors = dict(named_tensors(output))
    for name in MAIN_OUTPUTS:
        inner = [tensor for path, tensor in tensors.items() if path.rpartition(".")[2] == name]
        if name in tensors or len(inner) == 1:
            return tensors.get(name, inner[0])
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    several = {name: tensor for name, tensor in floating.items() if tensor.ndim} or floating
    if not several:
        raise TargetError(f"the model returned {describe(output)}, which holds no floating-point tensor to score.")
    if all("boxes" in one for one in entries(output) or [{}]):
        raise TargetError(
            f"the model returned {describe(output)} with the detections of each picture: say which one to score, "
            "target=layerlens.box(0), or layerlens.instance(0) for its mask."
        )
    (name, main), *others = several.items()
    if others and (main.ndim != 2 or any(other.ndim == 2 for _, other in others)):
        held = ", ".join(f"{_path(output, name)} {tuple(tensor.shape)}" for name, tensor in [*several.items()][:6])
        own, square = _path(output, name), main.ndim == 2 and main.shape[0] == main.shape[1] > 1
        pairs = f"; where both axes count samples, of each with itself, {own}.diagonal()" if square else ""
        raise TargetError(
            f"the model returned {describe(output)} with {len(several)} tensors that could be scored: {held}. Say which"
            f" one: target=lambda output: {own}{'[:, 0]' if main.ndim == 2 else '.flatten(1).mean(dim=1)'}{pairs}, or "
            f"for targets by class Lens(model, forward=lambda model, *x, **more: model(*x, **more){own[6:]})."
        )
    return main


def paired(output: object, count: int) -> list[str]:
    """Return the tensors of an output, as Python expressions, that may have a number for each pair of `count` samples.

    Example:
        >>> paired({"similar": torch.zeros(3, 3), "logits": torch.zeros(3, 5)}, 3)
        ["output['similar']"]
    """
    square = {name: one for name, one in named_tensors(output) if one.ndim == 2 and one.is_floating_point()}
    if isinstance(output, torch.Tensor):
        return ["output"] if output.shape == (count, count) else []
    return [_path(output, name) for name, one in square.items() if one.shape == (count, count)]


def _path(output: Any, name: str) -> str:
    """Return the Python expression of a tensor of an output from its dotted name."""
    text, value = "output", output
    for part in name.split("."):
        if isinstance(value, Mapping):
            key = next((key for key in value if str(key) == part), part)
            text, value = f"{text}[{key!r}]", value.get(key)
        elif isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            text, value = f"{text}[{part}]", value[int(part)]
        else:
            text, value = f"{text}.{part}", getattr(value, part, None)
    return text


def class_scores(output: object) -> torch.Tensor:
    """Return the main output as (batch, classes).

    Raises:
        TargetError: when it has other axes, or holds no real numbers.
    """
    scores = main_output(output)
    axes = len(scores.shape)
    if not axes:
        raise TargetError(
            "the output is one value for the whole batch, shape (), and a target needs one score per sample, shape "
            "(batch,). Give a batch of one sample with target=lambda output: output.reshape(1), or let the model "
            "return a value for each sample: Lens(model, forward=...)."
        )
    dtype = scores.dtype
    if dtype == torch.bool or dtype.is_complex:
        kind = str(dtype).removeprefix("torch.")
        raise TargetError(
            f"the output is {kind}, and a score is a real number. Give a function of it: target=lambda output: "
            f"output{'[:, 0].float()' if scores.dtype == torch.bool else '.abs()[:, 0]'}."
        )
    if axes == 1:
        return scores.unsqueeze(1)
    if scores.shape[1:].numel() == 1:  # one number per sample, whatever the axes
        return scores.flatten(1)
    if axes != 2:
        raise TargetError(
            f"the output has shape {tuple(scores.shape)}, so a class alone does not name one score per sample. Give a "
            "tuple that indexes the axes after the batch, such as (position, class) = (-1, 5), or a function of the "
            "output that returns shape (batch,), such as lambda out: out.mean(dim=(1, 2, 3))."
        )
    return scores


def one_value(output: Any, rows: torch.Tensor) -> torch.Tensor | None:
    """Return the one value that a model gives for a batch as one for each sample, `(batch,)`; None for other outputs.

    Args:
        output: output of the model: a number, or a tensor `()` or `(1,)`.
        rows: the samples, `(batch,)`.
    """
    if isinstance(output, (int, float, np.generic)):
        output = torch.tensor(float(output), dtype=torch.float64, device=rows.device)
    if not isinstance(output, torch.Tensor) or output.shape not in ((), (1,)) or output.shape == rows.shape:
        return None
    value = output if output.is_floating_point() else output.double()
    return value.reshape(1).expand(len(rows))


def are_probabilities(scores: torch.Tensor) -> bool:
    """Whether scores `(..., classes)` are probabilities already: none below 0, their sum 1 within 1e-3.

    Example:
        >>> are_probabilities(torch.tensor([[0.25, 0.75]])), are_probabilities(torch.tensor([[2.0, -1.0]]))
        (True, False)
    """
    scores = scores.detach()
    return bool((scores >= 0).all()) and bool(((scores.sum(dim=-1) - 1).abs() < 1e-3).all())


def log_probabilities(scores: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of classes `(..., classes)` from their logits, or from probabilities.

    The sum over the classes is in float64: in float32 the rounding of 50,000 of them, which the model's head sums up
    once more on the way back, is a hundred times that of all other layers.
    """
    if are_probabilities(scores):
        return scores.log()
    wide = scores if scores.device.type == "mps" else scores.double()  # which has no float64
    return wide.log_softmax(dim=-1).to(scores.dtype)
