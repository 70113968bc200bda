"""Targets: from a model's output to one score per sample."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, Union

import numpy as np
import torch

from layerlens.errors import TargetError, suggestion
from layerlens.model.trees import describe, first_tensor
from layerlens.signatures import public

from .outputs import class_scores, main_output

Spec: TypeAlias = Union[
    int, str, torch.Tensor, Sequence[int], tuple[Any, ...], Callable[..., torch.Tensor], "Target", None
]
"""A target as given by a user; see `as_target`."""

Names: TypeAlias = Sequence[str] | Mapping[int, str] | None
"""Class names by index."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A function from a model's output to one score per sample, with a name to print.

    Targets can be combined: `a - b` is the contrast of two, `a + b` their sum, `2 * a` a multiple.

    Attributes:
        function: `(output, rows) -> scores` of shape (len(rows),), where `rows` are the indices of the samples in the
            caller's batch: a method that repeats samples passes the same index several times.
        label: name for titles and tables.
        chooser: `output -> Target` for a target that depends on the output itself, such as the predicted class.
        reader: `names -> Target` for a target of class names, or indices, that can be read with other names.
        each: label of each sample, for a target with one class per sample.
        at: layer and call that the target reads instead of the model's output, as for `neuron`; `output` is then the
            output of that layer, `(batch, unit, *places)`.
        own: whether it calls a function of the user, which may hold numbers of its own for each sample.
    """

    function: Callable[[Any, torch.Tensor], torch.Tensor] = dataclasses.field(repr=False)
    label: str
    chooser: Callable[[Any], Target] | None = dataclasses.field(default=None, repr=False)
    reader: Callable[[Names], Target] | None = dataclasses.field(default=None, repr=False)
    each: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    at: tuple[Any, int] | None = dataclasses.field(default=None, repr=False)
    own: bool = dataclasses.field(default=False, repr=False)

    def resolve(self, output: object) -> Target:
        """Return the target as chosen on `output`, so that it stays the same while the input is changed."""
        return self if self.chooser is None else self.chooser(output)

    def __call__(
        self, output: object, rows: torch.Tensor | None = None, *, at: tuple[Any, int] | None = None
    ) -> torch.Tensor:
        """Return the scores of `output`, shape (batch,); `at` is the layer of that output, None for the model.

        Raises:
            TargetError: when the target does not fit the output.
        """
        if at != self.at:
            raise TargetError(
                f"target {self.label!r} reads {'the output' if self.at is None else f'layer {self.at[0]!r}'}, and this "
                "analyzer scores something else; saliency and relevance support targets inside a model."
            )
        if rows is None:
            first = first_tensor(output)
            count = first.shape[0] if first is not None and first.ndim else 1
            rows = torch.arange(count, device=None if first is None else first.device)
            self.check(len(rows))
        scores = self.function(output, rows)
        if not isinstance(scores, torch.Tensor):
            raise TargetError(f"target {self.label!r} returned {describe(scores)}; it must return a tensor (batch,).")
        if scores.ndim == 0 and len(rows) == 1:
            scores = scores.reshape(1)
        if scores.shape != (len(rows),):
            single = "Leave the first axis: output[:, 3], not output[0, 3]; output.flatten(1).mean(dim=1), not mean()."
            raise TargetError(
                f"target {self.label!r} returned shape {tuple(scores.shape)} for {len(rows)} sample(s); it must return "
                "one score per sample, shape (batch,). "
                + (single if scores.numel() == 1 else "Reduce the other axes, for example with .mean(dim=(1, 2, 3)).")
            )
        return scores

    def check(self, batch: int) -> None:
        """Check that a target with several classes has one for each sample.

        Raises:
            TargetError: when it has more or fewer.
        """
        if self.each is not None and len(self.each) != batch:
            raise TargetError(
                f"the target holds {len(self.each)} class(es) for a batch of {batch}; give one per sample."
            )

    def __sub__(self, other: Target) -> Target:
        return self._combine(other, lambda a, b: a - b, "-")

    def __add__(self, other: Target) -> Target:
        return self._combine(other, lambda a, b: a + b, "+")

    def __mul__(self, factor: float) -> Target:
        label = f"{factor:g} * ({self.label})"
        chooser = None if self.chooser is None else (lambda output: self.resolve(output) * factor)
        reader = None if self.reader is None else (lambda names: as_target(self, names=names) * factor)
        return Target(
            lambda output, rows: self(output, rows, at=self.at) * factor,
            label,
            chooser,
            reader,
            at=self.at,
            own=self.own,
        )

    def _combine(self, other: Target, join: Callable[[Any, Any], Any], sign: str) -> Target:
        if self.at != other.at:
            raise TargetError(f"{self.label!r} and {other.label!r} read different layers, and cannot be combined.")
        chooser: Callable[[Any], Target] | None = None
        reader: Callable[[Names], Target] | None = None
        if self.chooser is not None or other.chooser is not None:

            def chooser(output: object) -> Target:
                joined: Target = join(self.resolve(output), other.resolve(output))
                return joined

        if self.reader is not None or other.reader is not None:

            def reader(names: Names) -> Target:
                joined: Target = join(as_target(self, names=names), as_target(other, names=names))
                return joined

        return Target(
            lambda output, rows: join(self(output, rows, at=self.at), other(output, rows, at=self.at)),
            f"{self.label} {sign} {other.label}",
            chooser,
            reader,
            at=self.at,
            own=self.own or other.own,
        )

    __rmul__ = __mul__


class TokenNames(Mapping[int, str]):
    """Class names that are the tokens of a language model; see `layerlens.targets.tokens.Vocabulary`."""

    def index(self, text: str) -> int:
        """Return the class of a text."""
        raise NotImplementedError

    def target(self, text: str) -> Target:
        """Return the target of a text as the next token."""
        raise NotImplementedError

    def predicted(self) -> Target:
        """Return the target of the most likely next token."""
        raise NotImplementedError


@public
def as_target(spec: Spec, *, names: Names = None) -> Target:
    """Read a target.

    - None: the class with the highest score, sample by sample (for an output (batch,) or (batch, 1): the value).
    - int: this class for every sample; a tensor, array or list of ints: a class for each sample.
    - str: a class by its name in `names`; the text of the next token if `names` is the vocabulary of a tokenizer.
    - tuple: an index into the axes after the batch, for example `(position, class)` of a language model.
    - callable: `output -> scores`, shape (batch,); or `(output, samples) -> scores`, where `samples` (n,) are the
      indices in the batch of the samples that the n rows of the output belong to: a function with numbers of its own
      for each sample needs them, as methods repeat, reorder and leave out rows.
    - Target: itself. `contrast(a, b)` makes one from two.

    A class index selects from an output (batch, classes); an output with more axes needs a tuple or a callable.

    Args:
        spec: the target.
        names: class names by index.

    Raises:
        TargetError: when it cannot be read, or when a name is unknown (names the nearest).

    Example:
        >>> as_target("dog", names=["cat", "dog"])(torch.tensor([[1.0, 2.0]]))
        tensor([2.])
    """
    if isinstance(spec, Target):
        return spec if spec.reader is None or names is None else spec.reader(names)
    if isinstance(names, TokenNames) and (spec is None or isinstance(spec, str)):
        return names.predicted() if spec is None else names.target(spec)
    if spec is None:
        return Target(
            lambda output, rows: _predicted(output), "predicted class", lambda output: _predicted_classes(output, names)
        )
    if isinstance(spec, bool):
        raise TargetError("a target cannot be True or False; give a class index, a name or a function.")
    if isinstance(spec, str):
        index = class_index(spec, names)
        return Target(lambda output, rows: by_class(output, rows, index, names), spec)
    if isinstance(spec, np.ndarray) or (isinstance(spec, list) and spec and all(hasattr(k, "__index__") for k in spec)):
        spec = torch.as_tensor(spec)
    if isinstance(spec, torch.Tensor):
        if spec.ndim > 1 or spec.is_floating_point() or spec.is_complex() or spec.dtype == torch.bool:
            raise TargetError(f"a tensor target must hold one class index per sample, got {describe(spec)}.")
        if spec.ndim == 1:
            classes = spec
            each = tuple(_name_of(index, names) for index in classes.tolist())
            label = _label_of(classes, names)
            return Target(lambda output, rows: by_class(output, rows, classes, names), label, each=each)
    if hasattr(spec, "__index__"):
        index = int(spec)
        return Target(lambda output, rows: by_class(output, rows, index, names), _name_of(index, names))
    if isinstance(spec, tuple):
        place = tuple(class_index(part, names) if isinstance(part, str) else part for part in spec)
        return Target(lambda output, rows: by_place(output, place), str(spec))
    if callable(spec):
        return Target(_function(spec), getattr(spec, "__name__", type(spec).__name__), own=True)
    raise TargetError(
        f"cannot read a target from {describe(spec)}. Give a class index, a name, one index per sample, "
        "(position, class), contrast(a, b), or a function output -> (batch,)."
    )


def _function(function: Callable[..., torch.Tensor]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return a user's function of the output, and of the samples if it takes them, as one of both."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C
        return lambda output, rows: function(output)
    if "samples" in parameters:
        return lambda output, rows: function(output, samples=rows)
    needed = [one for one in parameters.values() if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD]
    return (lambda output, rows: function(output, rows)) if len(needed) > 1 else (lambda output, rows: function(output))


def _predicted(output: object) -> torch.Tensor:
    logits = class_scores(output)
    return logits.gather(1, logits.detach().argmax(dim=1, keepdim=True)).squeeze(1)


def _predicted_classes(output: object, names: Names) -> Target:
    scores = class_scores(output).detach()
    classes = scores.argmax(dim=1)
    if scores.shape[1] == 1:  # a value, not a class
        _check_names(names, 1)
        value = "output" if names is None else _name_of(0, names)
        return Target(lambda other, rows: by_class(other, rows, 0), value)
    each = tuple(f"{_name_of(index, names)} (predicted)" for index in classes.tolist())
    label = f"{_label_of(classes, names)} (predicted)"
    return Target(lambda other, rows: by_class(other, rows, classes, names), label, each=each)


def class_index(name: str, names: Names) -> int:
    """Return the index of a class by its name.

    Raises:
        TargetError: when there is none; names the nearest.
    """
    if isinstance(names, TokenNames):
        return names.index(name)
    if names is None:
        raise TargetError(f"target {name!r} is a name, but no class names are known: Lens(model, class_names=...).")
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    table: dict[str, int] = {}
    for index, known in pairs:
        table.setdefault(known, int(index))
    if name in table:
        return table[name]
    folded = [index for known, index in table.items() if known.casefold() == name.casefold()]
    if len(folded) == 1:
        return folded[0]
    close = suggestion(name, table) or f" Known: {', '.join([*table][:12])}{', ...' if len(table) > 12 else ''}."
    raise TargetError(f"no class is named {name!r} among {len(table)}.{close}")


def _label_of(classes: torch.Tensor, names: Names) -> str:
    chosen = list(dict.fromkeys(classes.tolist()))
    shown = ", ".join(_name_of(index, names) for index in chosen[:3])
    return shown if len(chosen) <= 3 else f"{shown}, ... ({len(chosen)} classes)"


def _name_of(index: int, names: Names) -> str:
    if names is None:
        return f"class {index}"
    if isinstance(names, Mapping):
        return names.get(index, f"class {index}")
    return names[index] if -len(names) <= index < len(names) else f"class {index}"


def _check_names(names: Names, count: int) -> None:
    """Check that there are as many class names as classes, and no index beyond them in a mapping.

    Raises:
        TargetError: when there are not.
    """
    if names is None or isinstance(names, TokenNames):
        return
    if len(names) > count or (len(names) < count and not isinstance(names, Mapping)):
        raise TargetError(
            f"there are {len(names)} class_names for an output of {count} class(es); give one for each, in its order, "
            "or names of some by index: class_names={3: 'cat'}."
        )


def by_class(output: object, rows: torch.Tensor, classes: int | torch.Tensor, names: Names = None) -> torch.Tensor:
    """Return the score of a class, or of one class per sample of the caller's batch.

    Raises:
        TargetError: when a class is out of range, or there are more or fewer class names than classes.
    """
    logits = class_scores(output)
    _check_names(names, logits.shape[1])
    if isinstance(classes, int):
        chosen = torch.full((len(logits),), classes, device=logits.device)
    else:
        if int(rows.max()) >= len(classes):
            raise TargetError(f"the target holds {len(classes)} class(es) for a batch of {int(rows.max()) + 1}.")
        chosen = classes.to(logits.device)[rows.to(logits.device)]
    count = logits.shape[1]
    if bool(((chosen < -count) | (chosen >= count)).any()):
        bad = int(chosen[(chosen < -count) | (chosen >= count)][0])
        raise TargetError(f"class {bad} is out of range: the output has {count} classes (0 to {count - 1}).")
    return logits.gather(1, (chosen % count).unsqueeze(1)).squeeze(1)


def by_place(output: object, place: tuple[Any, ...]) -> torch.Tensor:
    """Return the entry of the main output at an index into the axes after the batch.

    Raises:
        TargetError: when it is out of range.
    """
    scores = main_output(output)
    if len(place) != scores.ndim - 1:
        raise TargetError(
            f"target {place} has {len(place)} entries; the output {tuple(scores.shape)} needs {scores.ndim - 1}, "
            "one for each axis after the batch."
        )
    try:
        index = (slice(None),) + place  # noqa: RUF005 - a star inside an index needs Python 3.11 for type checkers
        return scores[index]
    except IndexError as error:
        raise TargetError(f"target {place} is out of range for an output of shape {tuple(scores.shape)}.") from error
