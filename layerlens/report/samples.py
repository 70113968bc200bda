"""The samples of a report: one input each, with its name and its target."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from layerlens.errors import InputError, LayerLensError, OptionError, TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.model.borrowed import borrowed
from layerlens.targets.target import Spec, Target
from layerlens.wrapped_model import WrappedModel


@dataclasses.dataclass(frozen=True)
class Sample:
    """One input.

    Attributes:
        label: name of the sample.
        inputs: a batch of one.
        target: what is explained; resolved on the output if it depends on it.
        output: output of the model.
        score: score of the target; None if it is read inside the model.
        text: the input, if it was given as text.
    """

    label: str
    inputs: Inputs
    target: Target
    output: Any
    score: float | None
    text: str | None


def read(lens: WrappedModel, inputs: Any, targets: Any, labels: Sequence[str] | None) -> list[Sample]:
    """Return the samples with their targets, each run once through the model.

    Args:
        lens: the model.
        inputs: inputs as a lens takes them, `(batch, ...)`; texts and `Inputs` in a list may differ in length.
        targets: a list has one per sample, anything else is for all of them.
        labels: one name per sample; None is its number, after its name in the index of a DataFrame.

    Raises:
        InputError: when they cannot be read, or the model does not take them.
        TargetError: when there are more or fewer targets than samples, or one does not fit the output.
        OptionError: when there are more or fewer labels than samples, or two are the same.
    """
    singles, texts = _singles(lens, inputs)
    names = _labels(labels, singles)
    wanted = _targets(targets, len(singles))
    return [
        _run(lens, name, single, spec, text)
        for name, single, spec, text in zip(names, singles, wanted, texts, strict=True)
    ]


def _singles(lens: WrappedModel, inputs: Any) -> tuple[list[Inputs], list[str | None]]:
    given = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, str) for one in given):
        return [lens.inputs(text) for text in given], list(given)
    if isinstance(given, (list, tuple)) and given and all(isinstance(one, Inputs) for one in given):
        parts = list(given)
    else:
        parts = [lens.inputs(given)]
    singles = [part.rows(torch.tensor([row])) for part in parts for row in range(part.batch)]
    return singles, [None] * len(singles)


def _labels(labels: Sequence[str] | None, singles: Sequence[Inputs]) -> list[str]:
    count = len(singles)
    if labels is None:
        named = [f"{one.index[0]}, " if one.index else "" for one in singles]
        return [f"{name}sample {place}" for place, name in enumerate(named)]
    if isinstance(labels, str):
        raise OptionError(f"labels must be a list with a name for each sample, got the text {labels!r}.")
    names = [str(label) for label in labels]
    if len(names) != count:
        raise OptionError(f"{len(names)} label(s) for {count} sample(s); give one per sample.")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise OptionError(f"two samples have the label {doubled[0]!r}; give each its own.")
    return names


def _targets(targets: Any, count: int) -> list[Spec]:
    if isinstance(targets, (torch.Tensor, np.ndarray)) and targets.ndim == 1:
        targets = targets.tolist()
    if not isinstance(targets, list):
        return [targets] * count
    if len(targets) != count:
        raise TargetError(f"{len(targets)} target(s) for {count} sample(s); give one per sample, or one for all.")
    return targets


def _run(lens: WrappedModel, label: str, inputs: Inputs, spec: Spec, text: str | None) -> Sample:
    target = lens.target(spec, inputs)
    with borrowed(lens.model, grad=False), torch.no_grad():
        try:
            output = inputs.run(lens.model, lens.forward)
        except InputError as error:
            raise InputError(f"the model does not take {label}: {error}") from error
        except LayerLensError:
            raise
        except Exception as error:
            raise InputError(
                f"the model does not take {label} ({inputs}; the first axis is the batch): "
                f"{type(error).__name__}: {error}"
            ) from error
        target = target.resolve(output)
        score = float(target(output)[0]) if target.at is None else None
    return Sample(label, inputs, target, output, score, text)
