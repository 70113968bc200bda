"""What tells a model's errors from its hits: layers, units and places of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from layerlens.errors import InputError, check_count, check_seed, choose
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Inputs, as_inputs
from layerlens.model.layers import Selection
from layerlens.results import ErrorExplanation
from layerlens.targets.target import Spec, as_target

from .compare_groups import compared
from .gather import Gatherer


def explain_errors(
    model: nn.Module,
    data: Samples,
    labels: Any = None,
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
    read: Callable[[Any], Inputs] = as_inputs,
    progress: bool | None = None,
) -> ErrorExplanation:
    """Which layers, units and places of the input separate the samples that a classifier gets wrong from the others.

    `compare_groups` of errors and hits. Errors are rarely spread evenly over classes, and classes differ in everything;
    so samples of the same label are compared (`within="label"`), or of the same prediction (`within="predicted"`: what
    a false alarm looks like beside a right one). The first contrast pools the classes; a further one for each class
    with at least five errors and five hits finds what goes wrong there in its own way.

    Args:
        model: a classifier whose output is `(batch, classes)`.
        data: samples, see `layerlens.inputs.batches`.
        labels: the right class index of each sample; None takes those in the data.
        layers: see `Selection`; None for every layer.
        target: what to attribute; None is the class predicted for each sample, right or wrong; `"label"` the right one.
        method: of attribution, see `compare_groups`; None compares activations alone.
        options: of that method.
        within: what is kept out of the comparison; None compares all errors with all hits.
        permutations: how many times errors and hits are shuffled.
        seed: of the shuffles and folds.
        batch_size: samples that run together.
        batched: whether the items of an iterable are batches; None: those of a DataLoader are.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.
        read: makes model inputs of a batch, or of one text.
        progress: whether to show a bar; None shows it in a terminal.

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
    aim = None if isinstance(target, str) and target == "label" else as_target(target)
    gatherer = Gatherer(model, layers, method, dict(options or {}), aim, forward, classes=True)
    gathered = gatherer.read(data, size=batch_size, batched=batched, read=read, progress=progress)
    given = gathered.labels if labels is None else labels
    right = _classes(given, gathered.count)
    predicted = gathered.predicted
    assert predicted is not None
    wrong = right != predicted
    if not 2 <= int(wrong.sum()) <= gathered.count - 2:
        raise InputError(
            f"{int(wrong.sum())} of {gathered.count} samples are wrong: at least two errors and two hits are needed."
        )
    groups = ["error" if one else "hit" for one in wrong.tolist()]
    strata = {"label": right, "predicted": predicted}
    each = within or ""
    held = None if within is None else [str(one) for one in strata[within].tolist()]
    fields, used = compared(gathered, groups, held, permutations, seed, each)
    fields["settings"] |= {"method": method, "options": dict(options or {}), "within": within}
    return ErrorExplanation(**fields, labels=right, predicted=predicted, used=used)


def _classes(given: Any, count: int) -> torch.Tensor:
    if given is None:
        raise InputError("no labels: give labels=, one class index per sample, or data of pairs (x, label).")
    labels = torch.as_tensor(given).cpu() if not isinstance(given, torch.Tensor) else given.cpu()
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"labels must hold one class index per sample, {count} whole numbers; got {tuple(labels.shape)} "
            f"{str(labels.dtype).removeprefix('torch.')}."
        )
    return labels.long()
