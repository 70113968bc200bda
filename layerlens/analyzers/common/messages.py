"""Warnings that analyzers share."""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from layerlens.errors import TargetError, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.trees import named_tensors
from layerlens.probes.made_edits import Edit, Edited
from layerlens.probes.probe import Probe
from layerlens.targets.outputs import paired

FLAT = "the score does not change with the input there (units that are off or saturated, or a step that is flat)"
NO_BATCH = "its output has no batch axis, so it has no value per sample"
"""Why a layer such as one that returns position tables has no value."""


def listed(names: Sequence[str], count: int = 4) -> str:
    """Return the first names as text: `layer a, b, ... (7 layers)`."""
    shown = ", ".join(names[:count])
    if len(names) > count:
        return f"layers {shown}, ... ({len(names)})"
    return f"layer{'s' * (len(names) > 1)} {shown}"


def first_reasons(left_out: Mapping[str, str], count: int = 5) -> str:
    """List why the first layers were left out."""
    return "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:count])


def warn_left_out(method: str, left_out: Mapping[str, str], explicit: bool) -> None:
    """Warn of layers without a value; of those that cannot have one only when they were asked for by name."""
    named = {name: why for name, why in left_out.items() if explicit or why not in ("did not run", NO_BATCH)}
    if named:
        more = f"; and {len(named) - 4} more, see settings['left_out']" if len(named) > 4 else ""
        warn(f"{method}: {len(named)} layer(s) left out. {first_reasons(named, 4)}{more}.")


_NUMBERS: contextvars.ContextVar[tuple[tuple[int, ...], int] | None] = contextvars.ContextVar("numbers", default=None)
"""The samples of a larger batch that are being run, and the number of its samples."""

ONE_VALUE = (
    "{} returns one value for the batch of {}, which is taken as the score of every sample: a value says what its "
    "sample does to it, next to the other samples as they are, and each is run by itself. If the value is a sum or a "
    "mean over samples, a model that returns one for each is much faster."
)


BATCH_FIRST = (
    "If the first axis of the input is not the batch, give one sample as x[None], or x with the batch first and "
    "forward=, such as lambda model, x: model(x.transpose(0, 1))."
)


def interacting_message(run: tuple[nn.Module, Inputs, Forward | None] | None, done: str, instead: str) -> str:
    """Say that samples influence each other, why, what is done, and what to do instead.

    An output that compares samples with each other has a number for each pair of them, also with one sample more.

    Args:
        run: model, inputs and forward, which may run twice; None where they are not known.
        done: what is done.
        instead: what to do, unless the output compares samples.
    """
    names = [] if run is None else _compared(*run)
    why = "batch statistics, quantization by batch, a fixed number of samples"
    if names:
        why = f"{names[0]} has a number for each pair of samples"
        instead = f"To score each sample with itself alone: target=lambda output: {names[0]}.diagonal()."
    return f"samples influence each other in this model ({why}): {done}. {instead}"


def _compared(model: nn.Module, inputs: Inputs, forward: Forward | None) -> list[str]:
    """The tensors of the output that have a number for each pair of samples, as Python expressions."""
    states, names = generator_states(), list[str]()
    try:
        with torch.no_grad():
            for more in (0, 1):
                some = inputs.rows(torch.arange(inputs.batch + more) % inputs.batch)
                found = paired(some.run(model, forward), some.batch)
                names = [name for name in found if not more or name in names]
    except Exception:  # whatever a model raises that takes a fixed number of samples
        return []
    finally:
        restore_generators(states)
    return names


@contextlib.contextmanager
def numbered(samples: tuple[int, ...], whole: int) -> Iterator[None]:
    """Name samples in messages by their numbers in the batch of which they are a part.

    Yields:
        Nothing.
    """
    token = _NUMBERS.set((samples, whole))
    try:
        yield
    finally:
        _NUMBERS.reset(token)


def sample_numbers(rows: Sequence[int]) -> list[int]:
    """Return the numbers of samples in the batch of the caller, of which only a part may be running."""
    known = _NUMBERS.get()
    return list(rows) if known is None else [known[0][row] for row in rows]


def of_samples(rows: Sequence[int | str], count: int) -> str:
    """Name the samples that a warning is about; the empty string where the batch holds only one.

    Example:
        >>> of_samples([1, 3], 8), of_samples([0], 1)
        (' of sample(s) 1, 3', '')
    """
    known = _NUMBERS.get()
    count = count if known is None else known[1]
    named = list(dict.fromkeys(one if isinstance(one, str) else sample_numbers([one])[0] for one in rows))[:8]
    return f" of sample(s) {', '.join(map(str, named))}" if count > 1 else ""


def all_finite(values: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite: the sum says so in most cases."""
    return math.isfinite(abs(values.detach().sum().item())) or bool(values.isfinite().all())


def warn_of_not_finite(values: Mapping[str, torch.Tensor], method: str) -> None:
    """Warn when some value of a sample is NaN or infinite."""
    if all(map(all_finite, values.values())):
        return
    bad = torch.stack([~value.isfinite().reshape(len(value), -1).all(dim=1) for value in values.values()]).any(dim=0)
    if bool(bad.any()):
        of = of_samples(bad.nonzero().flatten().tolist(), len(bad))
        warn(
            f"{method}: the values{of} hold NaN or infinity: a gradient or a score on the way is "
            "not finite (a root or logarithm of 0, a division by 0, an overflow); another baseline keeps away from it.",
        )


def warn_of_canceling(values: Mapping[str, torch.Tensor], method: str) -> None:
    """Warn when the values of embeddings, `(..., feature)`, sum to nothing but rounding error for every token.

    A LayerNorm behind the embedding sees neither its mean over features nor its size, so the gradient sums to zero over
    them, and so does its product with the embedding where nothing is added in between.
    """
    for name, value in values.items():
        size, total = value.float().norm(dim=-1), value.float().sum(dim=-1).abs()
        rounding = max(16 * torch.finfo(value.dtype).eps, 1e-4)
        if bool((size > 0).any()) and bool((total <= rounding * size).all()):
            warn(
                f"{method}: the values of each token of {name!r} cancel over the features of its embedding, as they do "
                "where a LayerNorm follows it; their sum is rounding error and says nothing. Take gradient or "
                "smooth_grad with magnitude=True, or leave_one_out.",
            )


def check_baseline(scores: torch.Tensor, label: str) -> torch.Tensor:
    """Return the scores of the baseline, `(batch,)`, as they are.

    Raises:
        TargetError: when one of them is NaN or infinite.
    """
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise TargetError(
            f"the score {label!r} of the baseline is not finite for sample(s) "
            f"{', '.join(map(str, sample_numbers(bad[:8])))} ({float(scores[bad[0]])}), so nothing can be compared "
            "with it. Give another baseline, such as 'noise', 'mean' or 'blur'."
        )
    return scores


def first_not_finite(
    model: nn.Module, forward: Forward | None, inputs: Inputs, edits: Mapping[Edited, list[Edit]]
) -> str:
    """Say which layer made the first NaN or infinity."""

    def finite(output: object) -> bool:
        tensors = (tensor for _, tensor in named_tensors(output) if tensor.is_floating_point())
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    with torch.no_grad(), Probe(model, lambda path, module: True, reduce=finite, edits=edits) as record:
        inputs.run(model, forward)
    infinite = [name for name, x in inputs.floating().items() if not bool(torch.isfinite(x).all())]
    if infinite:
        return f"Input {infinite[0]!r} itself holds infinite values."
    for call in record.order:
        if call.output is False:
            layer = f"layer {call.layer!r}" if call.layer else "the model itself, outside its layers,"
            return f"The first output that is not finite comes from {layer} (call {call.index})."
    return "Every layer's output is finite: the target makes it."


def warn_of_zeros(values: Mapping[str, torch.Tensor], method: str, why: str = FLAT) -> None:
    """Warn when the values of some sample are zero everywhere: an empty map means a dead path, not 'unimportant'.

    Args:
        values: input name -> values, `(batch, ...)`.
        method: name of the method, for the message.
        why: what such values can mean.
    """
    if any(bool(value.reshape(len(value), -1).any(dim=1).all()) for value in values.values()):
        return
    empty = torch.stack([value.reshape(len(value), -1).eq(0).all(dim=1) for value in values.values()]).all(dim=0)
    if bool(empty.any()):
        of = of_samples(empty.nonzero().flatten().tolist(), len(empty))
        warn(
            f"{method}: the values{of} are zero everywhere, so they explain nothing: {why}.",
        )


@contextlib.contextmanager
def each_once(what: str) -> Iterator[None]:
    """Give each warning once, whatever numbers it holds: copies of a sample repeat its warnings.

    Args:
        what: what is repeated, with which the warnings begin.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said: dict[tuple[type[Warning], str], str] = {}
    for one in caught:
        said.setdefault((one.category, re.sub(r"\d[\d.e+-]*|[^a-zA-Z]", "", str(one.message))), str(one.message))
    for (category, _), message in said.items():
        warn(message if message.startswith(what) else f"{what}: {message}", category)
