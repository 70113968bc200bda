"""Target: from a model's output to one score per sample, and targets made of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layerlens.errors import TargetError
from layerlens.inputs.inputs import Inputs
from layerlens.model.trees import describe, entries, first_tensor, rows_of

from .names import Names, short_label
from .outputs import class_scores


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
        each: label of each sample, for a target that differs between samples.
        at: layer and call that the target reads instead of the model's output, as for `neuron`; `output` is then the
            output of that layer, `(batch, unit, *places)`.
        own: whether it calls a function of the user, which may hold numbers of its own for each sample.
        binder: `(inputs, samples) -> Target` for a target that depends on the input, such as a place in a text; see
            `on`.
        among: `(output, rows) -> (len(rows), classes)`: the scores of all classes of which the target is one.
        by_entry: whether it reads a list with a mapping per sample, such as detections.
        logit: the score itself, where the target is the log-probability that it makes; see `raw`.
    """

    function: Callable[[Any, torch.Tensor], torch.Tensor] = dataclasses.field(repr=False)
    label: str
    chooser: Callable[[Any], Target] | None = dataclasses.field(default=None, repr=False)
    reader: Callable[[Names], Target] | None = dataclasses.field(default=None, repr=False)
    each: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    at: tuple[Any, int] | None = dataclasses.field(default=None, repr=False)
    own: bool = dataclasses.field(default=False, repr=False)
    binder: Callable[[Inputs | None, torch.Tensor | None], Target] | None = dataclasses.field(default=None, repr=False)
    among: Callable[[Any, torch.Tensor], torch.Tensor] | None = dataclasses.field(default=None, repr=False)
    by_entry: bool = dataclasses.field(default=False, repr=False)
    logit: Target | None = dataclasses.field(default=None, repr=False)

    def on(self, inputs: Inputs | None, samples: torch.Tensor | None = None) -> Target:
        """Return the target of the samples of an input: places of texts are counted within their tokens.

        Args:
            inputs: the input; None while it is not known.
            samples: which samples of those that the target was given for the input holds, `(batch,)`; None for all.

        Raises:
            TargetError: when a target for each sample has more or fewer.
        """
        if samples is not None and self.each is not None and int(samples.max()) >= len(self.each):
            raise TargetError(
                f"the target holds {len(self.each)} classes, and the data at least {int(samples.max()) + 1} samples; "
                "give one per sample."
            )
        if inputs is not None and samples is None:
            self.check(inputs.batch)
        if self.binder is not None:
            return self.binder(inputs, samples)
        if samples is None or self.chooser is not None:  # chosen on the output of these samples alone
            return self
        function, among = self.function, self.among
        return dataclasses.replace(
            self,
            function=lambda output, rows: function(output, samples.to(rows.device)[rows]),
            each=None if self.each is None else tuple(self.each[index] for index in samples.tolist()),
            among=None if among is None else lambda output, rows: among(output, samples.to(rows.device)[rows]),
            logit=None if self.logit is None else self.logit.on(inputs, samples),
        )

    def read(self, names: Names) -> Target:
        """Return the target, read with class names where it was given by name or index."""
        return self if self.reader is None or names is None else self.reader(names)

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
            listed = entries(output) if self.by_entry else None
            length = len(listed) if listed else first.shape[0] if first is not None and first.ndim else 1
            rows = torch.arange(length, device=None if first is None else first.device)
            self.check(length)
        scores = self.function(output, rows)
        if not isinstance(scores, torch.Tensor):
            raise TargetError(f"target {self.label!r} returned {describe(scores)}; it must return a tensor (batch,).")
        (count,), shape = rows.shape, scores.shape
        if not shape and count == 1:
            scores, shape = scores.reshape(1), rows.shape
        if shape != (count,):
            single = "Leave the first axis: output[:, 3], not output[0, 3]; output.flatten(1).mean(dim=1), not mean()."
            raise TargetError(
                f"target {self.label!r} returned shape {tuple(shape)} for {count} sample(s); it must return "
                "one score per sample, shape (batch,). "
                + (single if scores.numel() == 1 else "Reduce the other axes, for example with .mean(dim=(1, 2, 3)).")
            )
        return scores if scores.is_floating_point() or scores.is_complex() else scores.double()

    def all_scores(self, output: object, rows: torch.Tensor) -> torch.Tensor:
        """Return the scores of all classes of which the target is one, `(len(rows), classes)`.

        Raises:
            TargetError: when the output has other axes.
        """
        return class_scores(output) if self.among is None else self.among(output, rows)

    def check(self, batch: int) -> None:
        """Check that a target for each sample has one for each of a batch.

        Raises:
            TargetError: when it has more or fewer.
        """
        if self.each is not None and len(self.each) != batch:
            raise TargetError(
                f"the target is a list of {len(self.each)} for a batch of {batch}; a list holds one target per sample. "
                "Give one target, without a list, for all samples."
            )

    @property
    def raw(self) -> Target | None:
        """The score of a class, also where the target is its log-probability; None where it is something else.

        Differences of log-probabilities at one place are differences of scores, which relevance follows more closely.
        """
        return self.logit or (None if self.among is None else self)

    def of_sample(self, row: int) -> Target:
        """Return the target with the label of one of its samples."""
        if self.each is None:
            return self
        logit = None if self.logit is None else self.logit.of_sample(row)
        return dataclasses.replace(self, label=self.each[row], logit=logit)

    def __sub__(self, other: Target) -> Target:
        return self._combine(other, lambda a, b: a - b, "-")

    def __add__(self, other: Target) -> Target:
        return self._combine(other, lambda a, b: a + b, "+")

    def __mul__(self, factor: float) -> Target:
        def times(part: Target) -> Target:
            function, label = part.function, f"{factor:g} * ({part.label})"
            return Target(lambda output, rows: function(output, rows) * factor, label, at=part.at)

        return joined(times, self)

    def _combine(self, other: Target, join: Callable[[Any, Any], Any], sign: str) -> Target:
        if self.at != other.at:
            raise TargetError(f"{self.label!r} and {other.label!r} read different layers, and cannot be combined.")

        def both(a: Target, b: Target) -> Target:
            if sign == "-" and a.raw is not None and b.raw is not None:
                a, b = a.raw, b.raw
            return Target(
                lambda output, rows: join(a(output, rows, at=a.at), b(output, rows, at=b.at)),
                f"{a.label} {sign} {b.label}",
                at=a.at,
            )

        return joined(both, self, other)

    __rmul__ = __mul__


def joined(build: Callable[..., Target], *parts: Target, listed: bool = False, bound: bool = False) -> Target:
    """Return `build(*parts)`, built again when the parts are read with names, bound to inputs or chosen on an output.

    Args:
        build: makes a target from the parts; its function, label and layer count.
        parts: the targets that it is made of.
        listed: whether each part is the target of one sample.
        bound: whether the inputs are known.

    Raises:
        TargetError: when parts hold lists of different lengths.
    """

    def again(changed: Sequence[Target], bound: bool = bound) -> Target:
        return joined(build, *changed, listed=listed, bound=bound)

    def bind(inputs: Inputs | None, samples: torch.Tensor | None) -> Target:
        own = [parts[index] for index in samples.tolist()] if listed and samples is not None else parts
        return again([part.on(inputs, samples) for part in own], inputs is not None)

    made = build(*parts)
    lists = {len(part.each): part for part in parts if part.each is not None and not listed}
    each = made.each
    if len(lists) > 1:
        raise TargetError(f"the target joins lists of {' and '.join(map(str, lists))}; give one per sample in each.")
    for count in lists:
        each = tuple(build(*(part.of_sample(row) for part in parts)).label for row in range(count))
    return dataclasses.replace(
        made,
        each=each,
        own=any(part.own for part in parts),
        by_entry=any(part.by_entry for part in parts),
        chooser=(lambda output: again([part.resolve(output) for part in parts]))
        if any(part.chooser is not None for part in parts)
        else None,
        reader=(lambda names: again([part.read(names) for part in parts]))
        if any(part.reader is not None for part in parts)
        else None,
        binder=None if bound else bind,
    )


def one_each(*parts: Target) -> Target:
    """Return the target whose part k scores sample k, on the output of that sample alone.

    Raises:
        TargetError: when the parts read different layers.
    """
    if len({part.at for part in parts}) > 1:
        raise TargetError("the targets of the samples read different layers; give those of one layer together.")

    def split(read: Callable[[Target, Any, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
        def function(output: object, rows: torch.Tensor) -> torch.Tensor:
            found: dict[int, torch.Tensor] = {}
            for index in dict.fromkeys(rows.tolist()):
                own = (rows == index).nonzero().flatten()
                scores = read(parts[index], rows_of(output, own, len(rows), by_entry=parts[index].by_entry), rows[own])
                found |= dict(zip(own.tolist(), scores, strict=True))
            return torch.stack([found[row] for row in range(len(rows))])

        return function

    among = split(lambda part, output, rows: part.among(output, rows))  # type: ignore[misc]
    labels = tuple(part.label if part.each is None else part.each[row] for row, part in enumerate(parts))
    raws = [part.raw for part in parts if part.raw is not None]
    logs = len(raws) == len(parts) and any(part.logit is not None for part in parts)
    return Target(
        split(lambda part, output, rows: part(output, rows, at=part.at)),
        short_label(labels, "targets"),
        each=labels,
        at=parts[0].at,
        among=among if all(part.among is not None for part in parts) else None,
        logit=one_each(*raws) if logs else None,
    )
