"""Reading targets: names, classes, places and functions, one for all samples or one for each."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from layerlens.errors import TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.tables import is_series
from layerlens.model.trees import describe
from layerlens.signatures import public

from .answers import Answers
from .base import Target as Target, joined, one_each
from .names import Names as Names, TokenNames, check_names, class_index, class_label, short_label
from .outputs import class_scores, log_probabilities, main_output

One: TypeAlias = int | str | tuple[Any, ...] | Callable[..., torch.Tensor] | Target | None
"""A target for all samples, or for one of them."""

Spec: TypeAlias = One | torch.Tensor | Sequence[One]
"""A target as given by a user; see `as_target`."""


@public
def as_target(spec: Spec, *, names: Names = None) -> Target:
    """Read a target.

    - None: the class with the highest score, sample by sample (for an output (batch,) or (batch, 1): the value); with
      a tokenizer the log-probability of the likeliest next token.
    - int: this class for every sample; with a tokenizer the log-probability of this token as the next one.
    - str: a class by its name in `names`; the log-probability of this text as the next token if `names` is the
      vocabulary of a tokenizer. (Differences of two are those of their logits.)
    - tuple: an index into the axes after the batch, for example `(position, class)` of a language model. Where an
      attention mask marks padding, the position is counted within the tokens of each text: -1 is its last token.
    - callable: `output -> scores`, shape (batch,); or `(output, samples) -> scores`, where `samples` (n,) are the
      indices in the batch of the samples that the n rows of the output belong to: a function with numbers of its own
      for each sample needs them, as methods repeat, reorder and leave out rows.
    - Target: itself. `contrast(a, b)` makes one from two.
    - list: one of these for each sample; of classes also a tensor or array.

    A class index selects from an output (batch, classes); an output with more axes needs a tuple or a callable.

    Args:
        spec: the target.
        names: class names by index.

    Raises:
        TargetError: when it cannot be read, or when a name is unknown (names the nearest).

    Example:
        >>> as_target("dog", names=["cat", "dog"])(torch.tensor([[1.0, 2.0]]))
        tensor([2.])
        >>> as_target(["dog", "cat"], names=["cat", "dog"])(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([2., 3.])
    """
    if isinstance(spec, Target):
        return spec.read(names)
    if spec is None:
        return _predicted(names)
    if isinstance(spec, bool):
        raise TargetError("a target cannot be True or False; give a class index, a name or a function.")
    if isinstance(spec, str):
        return _of_class(class_index(spec, names), [spec], names)
    if is_series(spec):
        return as_target(np.asarray(spec).tolist(), names=names)
    if isinstance(spec, np.ndarray) and spec.dtype.kind in "USO":
        spec = spec.tolist()
    if isinstance(spec, list) and spec and not all(hasattr(one, "__index__") for one in spec):
        return _of_list(spec, names)
    if isinstance(spec, np.ndarray) or (isinstance(spec, list) and spec):
        spec = torch.as_tensor(spec)
    if isinstance(spec, torch.Tensor):
        if spec.ndim > 1 or spec.is_floating_point() or spec.is_complex() or spec.dtype == torch.bool:
            raise TargetError(
                f"a tensor target must hold one class index per sample, got {describe(spec)}. {_classes_of(spec)}"
            )
        if spec.ndim == 1:
            return _of_class(spec, None, names)
    if hasattr(spec, "__index__"):
        return _of_class(int(spec), None, names)
    if isinstance(spec, tuple):
        return _of_place(_read_place(spec, names), [str(spec)], names)
    if callable(spec):
        return Target(_function(spec), getattr(spec, "__name__", type(spec).__name__), own=True)
    raise TargetError(
        f"cannot read a target from {describe(spec)}. Give a class index, a name, one index per sample, "
        "(position, class), contrast(a, b), a function output -> (batch,), or a list of those."
    )


def _classes_of(labels: torch.Tensor) -> str:
    """Say how to make class indices of labels of another kind."""
    numbers = labels.detach().double() if not labels.is_complex() else labels.abs()
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "For a column of them: target=y.ravel()."
    if labels.ndim == 2 and bool(((numbers == 0) | (numbers == 1)).all() and (numbers.sum(dim=1) == 1).all()):
        return "For one-hot labels: target=y.argmax(1)."
    if labels.ndim == 2:
        return "For a score of each class: target=y.argmax(1); for a place: target=(position, class)."
    if labels.ndim < 2 and bool((numbers == numbers.round()).all()):
        return "For class indices of another type: target=[int(label) for label in y]."
    return "For another score: a function output -> (batch,), such as target=lambda output: output[:, 0]."


def _function(function: Callable[..., torch.Tensor]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return a user's function of the output, and of the samples if it takes them, as one of both.

    Raises:
        TargetError: when it is a loss module, which takes labels as well.
    """
    try:
        parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):  # a function of C
        return lambda output, rows: function(output)
    if "samples" in parameters:
        return lambda output, rows: function(output, samples=rows)
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD]
    if isinstance(function, nn.Module) and len(needed) > 1:
        raise TargetError(
            f"{type(function).__name__} takes ({', '.join(one.name for one in needed)}), and a target is a function "
            "output -> (batch,). Of a loss: target=lambda output: -cross_entropy(output, y, reduction='none')."
        )
    return (lambda output, rows: function(output, rows)) if len(needed) > 1 else (lambda output, rows: function(output))


def _of_list(spec: list[Any], names: Names) -> Target:
    """Read a list of targets, one for each sample; classes and places are read for all samples at once.

    Raises:
        TargetError: when it holds lists.
    """
    if all(isinstance(one, str) for one in spec):
        return _of_class(torch.tensor([class_index(one, names) for one in spec]), spec, names)
    if any(isinstance(one, (list, np.ndarray)) or (isinstance(one, torch.Tensor) and one.ndim) for one in spec):
        raise TargetError(
            f"a list holds one target for each sample, and this one holds lists: {spec!r:.80}. For one-hot labels: "
            "target=np.argmax(y, axis=1); a place is a tuple: [(position, class), ...]."
        )
    if all(isinstance(one, tuple) for one in spec):
        places = [_read_place(one, names) for one in spec]
        if len({len(place) for place in places}) == 1 and all(isinstance(part, int) for one in places for part in one):
            return _of_place(
                tuple(torch.tensor(column) for column in zip(*places, strict=True)), list(map(str, spec)), names
            )
    return joined(one_each, *(as_target(one, names=names) for one in spec), listed=True)


def _of_class(
    classes: int | torch.Tensor, given: Sequence[str] | None, names: Names, answers: Answers | None = None
) -> Target:
    """The score of a class, or of one for each sample; `given` are their names, where they were given by name.

    Of tokens it is the log-probability: a logit also holds what all tokens share.
    """
    indices = [classes] if isinstance(classes, int) else classes.tolist()
    tokens = isinstance(names, TokenNames)
    if given is None:
        few = {index: class_label(index, names) for index in set(indices)}
        labels = [few[index] for index in indices]
    else:
        labels = [f"{name!r} next" if tokens else name for name in given]

    def target(labels: list[str], resolved: bool, words: bool, log: bool = True) -> Target:
        sign = "log p of " if words and log else ""
        return Target(
            lambda output, rows: by_class(scores(output, rows, log), rows, classes),
            sign + short_label(labels),
            each=None if isinstance(classes, int) else tuple(sign + label for label in labels),
            among=among,
            chooser=None if resolved else choose,
            binder=bind if tokens and answers is None else None,
            logit=target(labels, True, words, log=False) if words and log else None,
        )

    def scores(output: object, rows: torch.Tensor, log: bool) -> torch.Tensor:
        log = log and tokens and (given is not None or main_output(output).ndim > 2)
        return log_probabilities(among(output, rows)) if log else among(output, rows)

    def among(output: object, rows: torch.Tensor) -> torch.Tensor:
        return _all_scores(output, rows, names, answers, text=given is not None)

    def choose(output: object) -> Target:  # whether whole numbers are tokens shows in the output
        words = main_output(output).ndim > 2
        return target([f"{names[index]} next" for index in indices] if words and names else labels, True, words)

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        own = _answers(inputs, names)
        if isinstance(classes, int) or samples is None:
            return _of_class(classes, given, names, own)
        chosen = None if given is None else [given[index] for index in samples.tolist()]
        return _of_class(classes[samples.to(classes.device)], chosen, names, own)

    return target(labels, resolved=not tokens or given is not None, words=tokens and given is not None)


def _predicted(names: Names, answers: Answers | None = None) -> Target:
    """The score of the class with the highest one in each sample, or the log-probability of the likeliest token."""

    def among(output: object, rows: torch.Tensor) -> torch.Tensor:
        return _all_scores(output, rows, names, answers)

    def choose(output: object) -> Target:
        main = main_output(output)
        scores = among(output, torch.arange(len(main) if main.ndim else 1, device=main.device))
        if scores.shape[1] == 1:  # a value, not a class
            value = "output" if names is None else class_label(0, names)
            return dataclasses.replace(_of_class(0, [value], names, answers), chooser=None)
        found = _of_class(scores.detach().argmax(dim=1), None, names, answers).resolve(output)
        return _marked(found)

    def best(output: object, rows: torch.Tensor) -> torch.Tensor:
        scores = among(output, rows)
        if isinstance(names, TokenNames) and main_output(output).ndim > 2:
            scores = log_probabilities(scores)
        return scores.gather(1, scores.detach().argmax(dim=1, keepdim=True)).squeeze(1)

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        return _predicted(names, _answers(inputs, names))

    label = "predicted next token" if isinstance(names, TokenNames) else "predicted class"
    return Target(
        best, label, choose, among=among, binder=bind if isinstance(names, TokenNames) and answers is None else None
    )


def _marked(found: Target) -> Target:
    """The target, called predicted in its labels."""
    few = {label: f"{label} (predicted)" for label in set(found.each or ())}
    each = tuple(few[label] for label in found.each or ())
    logit = None if found.logit is None else _marked(found.logit)
    return dataclasses.replace(found, label=f"{found.label} (predicted)", each=each, logit=logit)


def _all_scores(
    output: object, rows: torch.Tensor, names: Names, answers: Answers | None, text: bool = False
) -> torch.Tensor:
    """The scores of all classes, or of all tokens as the next one, `(len(rows), classes)`."""
    if isinstance(names, TokenNames) and (text or main_output(output).ndim > 2):
        return names.next_scores(output, rows, answers)
    scores = class_scores(output)
    check_names(names, scores.shape[1])
    return scores


def _answers(inputs: Inputs | None, names: Names) -> Answers | None:
    """Which input the places of an output follow; None while the input is not known."""
    if inputs is None:
        return None
    return names.answers(inputs) if isinstance(names, TokenNames) else Answers(inputs)


def _read_place(place: tuple[Any, ...], names: Names) -> tuple[Any, ...]:
    """Read the names in an index into the axes after the batch.

    Raises:
        TargetError: when it is not an index.
    """
    words = [part for part in (place[:-1] if isinstance(names, TokenNames) else ()) if isinstance(part, str)]
    if words or any(isinstance(part, (tuple, list, Target)) or callable(part) for part in place):
        raise TargetError(
            f"the tuple {place} is not an index into the axes after the batch, such as (position, class). Targets of "
            f"several samples are a list: {list(place)}."
        )
    read = [class_index(part, names) if isinstance(part, str) else part for part in place]
    return tuple(int(part) if hasattr(part, "__index__") else part for part in read)


def _of_place(place: tuple[Any, ...], labels: list[str], names: Names, answers: Answers | None = None) -> Target:
    """The entry of the output at an index into the axes after the batch; tensors in it hold a number per sample."""
    each = any(isinstance(part, torch.Tensor) for part in place)

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        own = _answers(inputs, names)
        if not each or samples is None:
            return _of_place(place, labels, names, own)
        chosen = tuple(part[samples] for part in place)
        return _of_place(chosen, [labels[index] for index in samples.tolist()], names, own)

    return Target(
        lambda output, rows: by_place(output, place, rows, answers),
        short_label(labels, "places"),
        each=tuple(labels) if each else None,
        among=(lambda output, rows: by_place(output, (*place[:-1], slice(None)), rows, answers)) if place else None,
        binder=bind if answers is None else None,
    )


def by_class(output: object, rows: torch.Tensor, classes: int | torch.Tensor) -> torch.Tensor:
    """Return the score of a class, or of one class per sample of the caller's batch.

    Raises:
        TargetError: when a class is out of range.
    """
    logits = class_scores(output)
    count = logits.shape[1]
    if isinstance(classes, int):
        lowest = highest = classes
    else:
        if int(rows.max()) >= len(classes):
            raise TargetError(f"the target is a list of {len(classes)} for a batch of {int(rows.max()) + 1}.")
        classes = classes.to(logits.device)[rows.to(logits.device)]
        lowest, highest = int(classes.min()), int(classes.max())
    if lowest < -count or highest >= count:
        bad = highest if highest >= count else lowest
        raise TargetError(f"class {bad} is out of range: the output has {count} classes (0 to {count - 1}).")
    if isinstance(classes, int):
        return logits.select(1, classes)
    return logits.gather(1, (classes % count).unsqueeze(1)).squeeze(1)


def by_place(
    output: object, place: tuple[Any, ...], rows: torch.Tensor, answers: Answers | None = None
) -> torch.Tensor:
    """Return the entry of the main output at an index into the axes after the batch.

    Args:
        output: output of the model.
        place: index; a tensor in it holds a number for each sample.
        rows: sample that each row of the output belongs to, `(n,)`.
        answers: inputs within whose tokens the place is counted; None for the places of the output.

    Raises:
        TargetError: when it is out of range.
    """
    scores = main_output(output)
    if len(place) != scores.ndim - 1:
        raise TargetError(
            f"target {place} has {len(place)} entries; the output {tuple(scores.shape)} needs {scores.ndim - 1}, "
            "one for each axis after the batch."
        )
    own = [part[rows.to(part.device)] if isinstance(part, torch.Tensor) else part for part in place]
    if (
        answers is not None
        and len(own) > 1
        and isinstance(own[0], (int, torch.Tensor))
        and answers.padded(len(scores[0]))
    ):
        own[0] = answers.place(own[0], rows, scores.shape[1])
    listed = any(isinstance(part, torch.Tensor) for part in own)
    parts = [part.to(scores.device) if isinstance(part, torch.Tensor) else part for part in own]
    first: Any = torch.arange(len(scores), device=scores.device) if listed else slice(None)
    for part, size in zip(parts, scores.shape[1:], strict=True):
        given = [part] if isinstance(part, int) else part.tolist() if isinstance(part, torch.Tensor) else []
        if bad := [index for index in given if not -size <= index < size]:
            shown = place if not listed else f"with {bad[0]}"
            raise TargetError(f"target {shown} is out of range for an output of shape {tuple(scores.shape)}.")
    try:
        index = (first, *parts)
        return scores[index]
    except IndexError as error:
        raise TargetError(f"target {place} is out of range for an output of shape {tuple(scores.shape)}.") from error
