"""What distinguishes a model's errors from its right answers: layers, units and places of the input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import InputError, check_count, check_seed, choose
from layerlens.inputs.batches import Data, Labels, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import ErrorExplanation
from layerlens.signatures import public
from layerlens.targets.target import Spec

from .compare_groups import Design, compared
from .sample_tables import sample_tables


@public
def explain_errors(
    model: nn.Module,
    data: Samples,
    labels: Labels | None = None,
    layers: Selection = None,
    *,
    target: Spec = None,
    method: str | None = "auto",
    options: dict[str, Any] | None = None,
    within: Literal["label", "predicted"] | None = "label",
    permutations: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    batched: bool | None = None,
    forward: Forward | None = None,
    read: Read = as_inputs,
    progress: bool | None = None,
) -> ErrorExplanation:
    """Find the layers, units and places of the input that separate the samples a classifier gets wrong from the rest.

    `compare_groups` of errors and hits. Errors are rarely spread evenly over classes, and classes differ in everything;
    so samples of the same label are compared (`within="label"`), or of the same prediction (`within="predicted"`: what
    a false alarm looks like compared with a right one). The first contrast pools the classes; a further one for each
    class with at least five errors and five hits finds what goes wrong in that class.

    Args:
        model: a classifier whose output is `(batch, classes)`.
        labels: index of the right class of each sample; None takes those in the data.
        target: what to attribute; None is the class predicted for each sample, right or wrong; `"label"` the right one.
        method: name of a method of attribution, see `compare_groups`; None compares activations alone.
        options: options of that method.
        within: what is kept out of the comparison; None compares all errors with all hits.
        permutations: number of times that errors and hits are shuffled.

    Returns:
        `ErrorExplanation`.

    Raises:
        InputError: when there are no labels, or fewer than two errors or hits to compare.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is unknown or out of range.
        TargetError: when the output names no class, or the target does not fit.

    Warns:
        UserWarning: when no difference, however large, can reach p = .05 with so few samples.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> x = torch.randn(200, 3)
        >>> labels = (x[:, 0] > 0).long()
        >>> fooled = nn.Linear(3, 2)  # looks at the second feature as well
        >>> _ = fooled.weight.data.copy_(torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])), fooled.bias.data.zero_()
        >>> explain_errors(fooled, x, labels, method=None).confusions(1)
        [(0, 1, 26)]
    """
    check_count("permutations", permutations)
    check_seed(seed)
    if within is not None:
        choose("stratum", within, ("label", "predicted"))
    data = Data.of(data, labels, batch_size=batch_size, batched=batched, read=read, progress=progress)
    tables = sample_tables(model, data, layers, target, method, options, forward, "explain_errors", classes=True)
    right, predicted = _classes(tables.labels), tables.predicted
    assert predicted is not None
    wrong = right != predicted
    if not 2 <= int(wrong.sum()) <= tables.count - 2:
        raise InputError(
            f"{int(wrong.sum())} of {tables.count} samples are wrong: at least two errors and two hits are needed."
        )
    groups = ["error" if one else "hit" for one in wrong.tolist()]
    strata = {"label": right, "predicted": predicted}
    within_names = None if within is None else [str(one) for one in strata[within].tolist()]
    design = Design(groups, within_names, permutations, seed, within or "")
    fields = compared(tables, design, permutations, seed)
    fields["settings"] |= {"method": method, "options": dict(options or {}), "within": within}
    return ErrorExplanation(**fields, labels=right, predicted=predicted, used=design.used)


def _classes(labels: list[Any] | None) -> torch.Tensor:
    """Return labels as class indices.

    Raises:
        InputError: when there are none, or they are not whole numbers.
    """
    if labels is None:
        raise InputError("no labels: give labels=, one class index per sample, or data of pairs (x, label).")
    if any(isinstance(one, bool) or not isinstance(one, int) for one in labels):
        raise InputError(
            f"labels must hold one class index per sample, {len(labels)} whole numbers; got {labels[0]!r} for the "
            "first."
        )
    return torch.tensor(labels)
