"""From leaves to one score per sample and its gradients: what every method of attribution runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.axes.batch_axis import check_batch_axis, refuse_lists
from layerlens.axes.followed import followed, run_key
from layerlens.axes.layout import named as axis_names
from layerlens.errors import InputError, LayerLensError, TargetError, warn
from layerlens.inputs.inputs import Forward, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, freeze
from layerlens.probes.made_edits import Edit, Edited
from layerlens.probes.probe import Probe
from layerlens.results import Attribution
from layerlens.results.maps.attribution import Values
from layerlens.targets.outputs import one_value, paired
from layerlens.targets.target import Spec, Target, as_target

from .calls.used_tensors import tensor_of_target, units_of_target
from .features.basis_site import FeatureCall, Sites, basis_sites_and_values, split_bases
from .inner_gradients import InnerGradients, backward_pass as backward_pass
from .leaf_gradients import gradients as gradients
from .leaves.layer_leaf import find_leaf_calls
from .leaves.leaves import Leaf, Whole, find_leaves, substitute, unchangeable
from .leaves.padding import paddings
from .messages import (
    ONE_VALUE,
    all_finite,
    first_not_finite,
    warn_of_canceling,
    warn_of_not_finite,
    warn_of_zeros as warn_of_zeros,
)
from .samples import ONE_BY_ONE, Known, check_samples, in_batch, interact

Leaves = dict[str, torch.Tensor]
Changed = Mapping[str, torch.Tensor]
Edits = Mapping[Edited, Edit]


class Scorer:
    """The score of a model as a function of its leaves; use it inside `borrowed(model)`.

    The first call must be on the leaves as they are: a target that depends on the output (the predicted class) is
    chosen there and kept, so that a method that changes the input still explains the same score.

    Args:
        model: a borrowed model.
        x: input of the model, as in `as_inputs`.
        target: what to score, as in `as_target`.
        where: None or `"input"` for the inputs; else what layers return or take, as in `find_leaf_calls`, or bases.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        whole: whether inputs of whole numbers are leaves, see `find_leaves`.

    Attributes:
        padding: where the tokens of a leaf lie, by name, for texts of one length in a padded batch: the values of the
            leaf are then those of its tokens alone.
        interacting: whether samples influence each other, see `apart`; None until it is known.
        inner: runs the model where it differentiates itself.
        joint: whether the model returns one value for the batch, a number or a tensor () or (1,), which is then the
            score of every sample; known after the first call.
        through: whether the gradient at one of several layers passes the others; else each is replaced by its values.

    Raises:
        InputError: when there is nothing to differentiate, or samples are given in a list.
        LayerNotFound: when `where` matches no layer; SelectionError when it matches several layers or calls.
        RecordError: when that layer did not run.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Input,
        target: Spec,
        *,
        where: Sites = None,
        forward: Forward | None = None,
        whole: Whole = "alone",
    ) -> None:
        self.model, self.where, self.forward = model, where, forward
        self.inputs: Inputs = as_inputs(x).named_for(model, forward)
        refuse_lists(model, self.inputs, forward)
        self.target: Target = as_target(target).on(self.inputs)
        self.leaves: dict[str, Leaf]
        if where is None or (isinstance(where, str) and where == "input"):
            self.leaves = find_leaves(model, self.inputs, forward, whole=whole)
            for name in unchangeable(model, self.inputs, self.leaves, forward) if whole == "always" else ():
                self.leaves.pop(name)
                self.inputs = self.inputs.holding(name)
        else:
            bases, layers = split_bases(where)
            found = [] if bases and layers == () else find_leaf_calls(model, self.inputs, layers, forward)
            for site, value in basis_sites_and_values(model, self.inputs, bases, forward):
                found += site.leaves(value)
            self.leaves = {place.name: Leaf(value.detach(), place=place) for place, value in found}
        self.padding = paddings(self.inputs, self.leaves)
        for name, padding in self.padding.items():
            self.leaves[name] = dataclasses.replace(self.leaves[name], value=padding.take(padding.padded))
        device = next(iter(self.leaves.values())).value.device
        self.rows = torch.arange(self.inputs.batch, device=device)
        self._resolved, self._paired, self.through, self.inner = False, False, False, InnerGradients()
        self.interacting: bool | None = None
        self.joint = False
        if self.target.at is not None:
            self._followed = followed(model, self.inputs, forward)
        self._tensor = tensor_of_target(model, self.inputs, forward, self.target.at)

    @property
    def run(self) -> Known:
        """The run, and what else it depends on whether samples reach each other's scores."""
        own = None if self._resolved and not self._paired else (self.target.label, self.target.each)
        key = run_key(self.model, self.inputs, self.forward), tuple(self.leaves), self.target.at, own
        return Known(self.model, self.inputs, self.forward, None if self.target.own else key)

    def values(self) -> Leaves:
        """Return copies of the leaves as they are, by name; also where the caller made them in inference mode."""
        return {name: leaf.value.clone() for name, leaf in self.leaves.items()}

    def start(self) -> dict[str, torch.Tensor]:
        """Return fresh copies of the leaves that require gradients, by name."""
        return {name: leaf.value.clone().requires_grad_() for name, leaf in self.leaves.items()}

    def __call__(self, values: Changed, rows: torch.Tensor | None = None, *, then: Edits | None = None) -> torch.Tensor:
        """Return the scores `(n,)` with `values`, each `(n, ...)`, instead of the leaves.

        Args:
            values: one tensor per leaf; a leaf that is left out stays as it is.
            rows: sample of the batch that each row of `values` belongs to, `(n,)`; None when they are the batch.
            then: further edits of layers, after the leaves are replaced.

        Rows that influence each other are run one by one, see `apart`.

        Raises:
            TargetError: when the target does not fit the output.
        """
        if rows is None or not self.apart(values, rows):
            return self._scores(values, rows, then)
        own, scores = self.values(), []
        for place, sample in enumerate(rows.tolist()):
            scores.append(self._scores(in_batch(own, values, rows, place), None, then)[sample])
        return torch.stack(scores)

    def apart(self, values: Changed, rows: torch.Tensor) -> bool:
        """Return whether each row must be run instead of its sample in the batch, with the other samples as they are.

        This is where samples influence each other: batch statistics in eval mode, quantization by batch, a fixed number
        of samples. Found once, on the first changed rows, by `interact`.

        Warns:
            UserWarning: once, if so.
        """
        if self.interacting is None and max(len(rows), len(self.rows)) > 1:
            self.interacting = interact(self._output, self.target, self.values(), values, rows, self.run)
        return bool(self.interacting)

    @property
    def passes(self) -> dict[str, str]:
        """Settings that say so where rows are run one by one, and which inputs are held fixed."""
        held = {"hold": ", ".join(self.inputs.held)} if self.inputs.held else {}
        return held | (ONE_BY_ONE if self.interacting else {})

    def _scores(self, values: Changed, rows: torch.Tensor | None, then: Edits | None) -> torch.Tensor:
        first = not self._resolved
        scores, output = self.scored(values, rows, then)
        if first:
            self.check(values, scores, output, then)
        return scores

    def scored(
        self, values: Changed, rows: torch.Tensor | None = None, then: Edits | None = None
    ) -> tuple[torch.Tensor, Any]:
        """Return the scores `(n,)` and what the target read, of one run that may be recorded; `check` the first.

        Raises:
            TargetError: when the target does not fit the output.
        """
        output = self._output(values, rows, then)
        try:
            if not self._resolved:
                self._paired = bool(paired(output, len(self.rows)))  # one target may depend on other samples
                self.target = self.target.resolve(output)
                self.target.check(len(self.rows))
                self._resolved = True
            return self.target(output, self.rows if rows is None else rows, at=self.target.at), output
        except Exception:  # also those of a function of the user
            self._check_batch_axis(output)
            raise

    def check(self, values: Changed, scores: torch.Tensor, output: Any, then: Edits | None = None) -> None:
        """Check the first run, by others.

        Raises:
            InputError: when the batch axis of the input is missing.
            TargetError: when a score is not finite, or does not follow the samples.

        Warns:
            UserWarning: when the model returns one value for several samples.
        """
        self._check_batch_axis(output)
        if self.joint and len(self.rows) > 1:
            warn(ONE_VALUE.format(type(self.model).__name__, len(self.rows)))
        check_samples(self._output, self.target, values, output, scores.detach())
        if not all_finite(scores):
            shown, where = scores.detach().tolist()[:8], self._changed(values, None, then)
            why = first_not_finite(self.model, self.forward, *where)
            raise TargetError(f"the score of target {self.target.label!r} is not finite: {shown}. {why}")

    def _check_batch_axis(self, output: Any) -> None:
        if self.target.at is None:
            check_batch_axis(self.model, self.inputs, self.forward, output, apart=True)

    def _changed(
        self, values: Changed, rows: torch.Tensor | None, then: Edits | None
    ) -> tuple[Inputs, dict[Edited, list[Edit]]]:
        """Return the inputs, and the edits of layers, that replace the leaves by values."""
        leaves = {name: leaf for name, leaf in self.leaves.items() if name in values}
        padded = {name: padding.put(values[name], rows) for name, padding in self.padding.items() if name in values}
        values = {**values, **padded}
        given = {name: values[name] for name, leaf in leaves.items() if leaf.is_input}
        inputs = (self.inputs if rows is None else self.inputs.rows(rows, but=given)).replace(given)
        edits = {path: [edit] for path, edit in substitute(leaves, values, through=self.through).items()}
        for path, edit in (then or {}).items():
            edits.setdefault(path, []).append(edit)
        return inputs, edits

    def _output(self, values: Changed, rows: torch.Tensor | None, then: Edits | None = None) -> Any:
        """Return what the target reads: the output of the model, or of the layer whose unit it is.

        Raises:
            InputError: when the model does not run with other whole numbers in its input.
        """
        try:
            output = self.inner.run(lambda changed: self._run(*self._changed(changed, rows, then)), values)
        except Exception as error:  # whatever the model raises
            whole = [name for name, value in values.items() if not value.is_floating_point()]
            if not (whole and self._resolved) or isinstance(error, (LayerLensError, torch.OutOfMemoryError)):
                raise
            raise InputError(
                f"{type(self.model).__name__} does not run with other whole numbers in input {', '.join(whole)} "
                f"({str(error)[:200]}). Hold it fixed, hold={whole!r}, or give baseline= with numbers that it takes."
            ) from error
        if self.target.at is not None or not (self.joint or not self._resolved):
            return output
        value = one_value(output, self.rows)
        self.joint = value is not None
        self.interacting = self.joint or self.interacting
        return output if value is None else value

    def refuse_joint(self, method: str) -> None:
        """Refuse several samples for which the model returns one value.

        Raises:
            InputError: for a method that explains the scores of all samples at once.
        """
        if self.joint and len(self.rows) > 1:
            raise InputError(
                f"{method} explains the scores of all samples in one pass, and {type(self.model).__name__} returns one "
                f"value for all {len(self.rows)}: give one sample at a time, or take shapley_sampling or "
                "integrated_gradients."
            )

    def _run(self, inputs: Inputs, edits: Mapping[Edited, list[Edit]]) -> Any:
        with contextlib.ExitStack() as stack:
            if edits:
                stack.enter_context(Probe(self.model, (), edits=edits))
            if self.target.at is None:
                return inputs.run(self.model, self.forward)
            return units_of_target(
                self.model, self.target.at, self._tensor, self._followed, lambda: inputs.run(self.model, self.forward)
            )

    def attribution(self, values: Mapping[str, torch.Tensor], **fields: Any) -> Attribution:
        """Return an `Attribution` of the values by leaf; see `fields`."""
        return Attribution(**self.fields(values, **fields))

    def fields(
        self,
        values: Mapping[str, torch.Tensor],
        *,
        method: str,
        settings: dict[str, Any],
        score: torch.Tensor,
        signed: bool = True,
        units: str = "score",
        checks: Mapping[str, torch.Tensor] | None = None,
        standard_error: Mapping[str, torch.Tensor] | None = None,
        degrees: float | None = None,
        skewness: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return the fields of an `Attribution`, or of a subclass of it.

        Args:
            values: one tensor per leaf, shaped like it; those of embeddings are summed over their features.
            method: name of the method.
            settings: every option of the method as used.
            score: score of each sample, `(batch,)`.
            signed: whether negative values have a meaning.
            units: what a value is.
            checks: what the method can prove about itself, each `(batch,)`.
            standard_error: standard error of the values by leaf, where the method draws random numbers, shaped as the
                values are returned (one number per token).
            degrees: degrees of freedom of the standard error.
            skewness: skewness of the values over seeds, shaped like the errors, as in `interval_of`.
        """
        tensors, padding = self.inputs.tensors(), self.padding

        def padded(parts: Changed) -> Values:
            return _single({n: (padding[n].zeros(v) if n in padding else v).detach() for n, v in parts.items()})

        summed = {
            name: (values[name] if leaf.layer is None else values[name].sum(dim=-1)).detach()
            for name, leaf in self.leaves.items()
        }
        warn_of_not_finite(summed, method)
        if signed:
            warn_of_canceling({name: values[name] for name, leaf in self.leaves.items() if leaf.uses}, method)
        named = {name: axes for name, value in summed.items() if (axes := self._axes(name, value)) is not None}
        at_layer = [leaf.place.name for leaf in self.leaves.values() if leaf.place is not None]
        if at_layer:
            settings = {"where": ", ".join(at_layer), **settings}
        shown = {name: tensors[name].detach().clone() for name in summed if self.leaves[name].place is None}
        return {
            "values": padded(summed),
            "axes": (named or None) if len(summed) > 1 else next(iter(named.values()), None),
            "signed": signed,
            "units": units,
            "target": self.target.label,
            "targets": self.target.each,
            "method": method,
            "settings": {**settings, **self.passes},
            "score": score.detach(),
            "checks": {name: check.detach() for name, check in (checks or {}).items()},
            "inputs": _single(shown) if shown else None,
            "features": {name: one for name, one in self.inputs.features.items() if name in shown}
            | {name: names for name, leaf in self.leaves.items() if (names := _labels(leaf))},
            "index": self.inputs.index,
            "standard_error": None if standard_error is None else padded(standard_error),
            "degrees": None if standard_error is None else degrees,
            "skewness": None if standard_error is None or skewness is None else padded(skewness),
        }

    def _axes(self, name: str, values: torch.Tensor) -> tuple[str, ...] | None:
        """The axes of the values of a leaf: of a table by convention, of others as followed."""
        leaf = self.leaves[name]
        if leaf.place is not None:
            return leaf.place.axes
        if leaf.layer is not None or values.ndim < 3:
            return {2: ("batch", "token" if leaf.layer is not None else "feature")}.get(values.ndim)
        axes = axis_names(followed(self.model, self.inputs, self.forward).inputs[name])
        return (*axes[:2], "feature") if axes[2:] == ("channel",) else axes


def _labels(leaf: Leaf) -> tuple[str, ...]:
    """Return the names of the features of a basis, where a sample has one number for each."""
    return leaf.place.labels if isinstance(leaf.place, FeatureCall) and leaf.value.ndim == 2 else ()


def _single(values: dict[str, torch.Tensor]) -> Values:
    return next(iter(values.values())) if len(values) == 1 else values


@contextlib.contextmanager
def scoring(
    model: nn.Module,
    x: Input,
    target: Spec,
    *,
    where: Sites = None,
    forward: Forward | None = None,
    grad: bool = True,
    whole: Whole | None = None,
) -> Iterator[Scorer]:
    """Borrow a model to score it, without gradients of its parameters.

    Args:
        model: any `torch.nn.Module`; it is returned as it was, also after an error.
        x: input of the model.
        target: what to score.
        where: None for the input, or the layer that the score is attributed to.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        grad: whether the leaves get gradients.
        whole: whether inputs of whole numbers are leaves, see `find_leaves`; None: always where no gradient is needed.

    Yields:
        The scorer: leaves -> one score per sample.
    """
    with borrowed(model, grad=grad):
        if grad:
            freeze(model)
        yield Scorer(model, x, target, where=where, forward=forward, whole=whole or ("never" if grad else "always"))
