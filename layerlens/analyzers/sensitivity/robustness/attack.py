"""Attack: change inputs so that the answer changes, and return them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.samples import said_once
from layerlens.errors import OptionError, check_count
from layerlens.inputs.batches import Samples
from layerlens.inputs.inputs import Forward, Hold
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.progress import track
from layerlens.results import AdversarialExamples
from layerlens.signatures import public
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attacks import Attack, Best, Keep, Method, attack_options, warn_zero_gradient
from .ball import Bounds, Mask, Norm
from .prediction_change import Labels, Loss
from .sample_chunks import LabeledSamples, Preprocess, SampleChunk, after, named, sample_chunks


@public
def attack(
    model: nn.Module,
    x: Samples,
    labels: Labels | None = None,
    *,
    eps: float | Sequence[float] | None = None,
    method: Method = "pgd",
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    refine: int = 0,
    keep: Keep = "best",
    targeted: bool = False,
    mask: Mask = None,
    bounds: Bounds | None = None,
    normalized: Bounds | None = None,
    preprocess: Preprocess | None = None,
    loss: Loss = "cross_entropy",
    target: Spec = None,
    threshold: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> AdversarialExamples:
    """Change inputs, within a size, so that the answer changes, and return them.

    With one eps, the strongest change of that size. With several, or None, the change of the smallest size that changes
    the answer of each sample (`MinParamPerturbation` in captum, sample by sample), or of the largest where none does; a
    sample whose answer is another one already stays as it is, at size 0.
    Attacks are those of `attack_curve`, which compares several.

    Args:
        x: ... Or a Dataset or DataLoader, which is read batch by batch and may hold the labels.
        labels: the class index of each sample. None: its label in the data set, or else the model's answer without an
            attack.
        eps: a size, or rising sizes, in units of the input; None takes those of `attack_curve`.
        method: `"pgd"`, `"fgsm"`, or a function `(x, size) -> changed x` of any kind, such as a rotation by size
            degrees; `restarts` of it are tried.
        norm: `"linf"`, the largest change of a value, or `"l2"`, the length of the change of a sample.
        steps: number of steps of PGD.
        step_size: size of a step of PGD, in units of eps; None for 2.5 / steps.
        restarts: number of random starts of PGD.
        refine: number of bisections between the largest size that failed and the smallest that succeeded, for each
            sample by itself.
        keep: `"best"` keeps the best of all points tried, with the changes of smaller sizes; `"last"` the last point,
            as captum does: from x, or from a random point where `restarts` is above 0.
        targeted: whether labels are the classes that samples are to reach. With a target, whether to raise it.
        mask: 1 where the input may change and 0 elsewhere, broadcasting to it; by name or in order for several inputs.
        bounds: smallest and largest value of the input: `(0, 1)`, a sequence each with one number per channel, tensors
            that broadcast, or a dict of such pairs by input name. None sets none.
        normalized: mean and standard deviation by which the input was normalized, as `bounds`: eps and bounds are then
            in units before that.
        preprocess: function of the raw input, which x then is, that makes what the model takes: a tensor, a tuple of
            arguments or a dict of them. The change is made, measured and bounded before it; torch must be able to
            differentiate it.
        loss: `"cross_entropy"`, or `"margin"`, see `attack_curve`.
        target: a score to lower instead of classes, see `as_target`. For a loss of your own: `lambda out: -loss(out)`.
        threshold: with a target, the score below which (above, if targeted) an attack has succeeded.

    Returns:
        The changed inputs, by sample the size, whether it succeeded, and the classes before and after.

    Raises:
        InputError: when input or labels cannot be used, values lie outside the bounds, or the input gets no gradient.
        OptionError: when an option is unknown or out of range, or does not fit the input.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when the loss of a sample has no gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> found = attack(net, torch.tensor([[0.1, 0.1], [0.3, 0.1]]), eps=(0.125, 0.25), method="fgsm")
        >>> found.eps, found.success, found.after
        (tensor([0.1250, 0.2500], dtype=torch.float64), tensor([True, True]), tensor([0, 0]))
        >>> found.inputs[0]
        tensor([-0.0250, -0.0250])
    """
    check_count("refine", refine, least=0)
    called = after(preprocess, forward, normalized)
    one = isinstance(eps, (int, float)) and not isinstance(eps, bool)
    sizes_given = None if eps is None else [eps] if isinstance(eps, (int, float)) else eps
    options = attack_options(
        method, norm, sizes_given, steps, step_size, restarts, bounds, loss, seed, normalized=normalized, mask=mask,
        targeted=targeted, keep=keep,
    )  # fmt: skip
    if len(options.methods) > 1:
        raise OptionError(f"attack makes one change of each sample; compare {options.methods!r} by attack_curve.")
    if refine and one:
        raise OptionError(f"refine={refine} searches between sizes, and eps={eps!r} is one: give several, or eps=None.")
    if target is not None and threshold is None and not one:
        raise OptionError("a score has no answer that changes, so no smallest size: give one eps, or threshold=.")
    if target is None and threshold is not None:
        raise OptionError(f"threshold={threshold!r} is for a score: give target= too.")
    sizes: list[float] | None = None
    found: list[_Found] = []
    with borrowed(model), layers_called(), said_once() as passes:
        samples = LabeledSamples(x, labels, target, loss, batch_size, seed, called, hold, targeted)
        for chunk in track(sample_chunks(model, samples), "attack", enabled=progress):
            sizes = options.sizes(chunk) if sizes is None else sizes
            found.append(_smallest(Attack(chunk, options, options.methods[0]), sizes, refine, one, threshold))
            reader = chunk.reader
    assert sizes is not None  # an empty data set is refused before
    warn_zero_gradient("attack", torch.cat([part.zero_gradient for part in found]), loss)
    goal = reader.target.label if reader.target is not None else reader.goal
    return AdversarialExamples(
        inputs=_joined([part.best.values for part in found]),
        original=_joined([part.start for part in found]),
        eps=torch.cat([part.eps for part in found]),
        success=None
        if target is not None and threshold is None
        else torch.cat([reader.changed(part.best.held, threshold) for part in found]),
        before=torch.cat([part.before for part in found]),
        after=torch.cat([part.after for part in found]),
        loss=torch.cat([part.best.loss for part in found]),
        goal=goal,
        method=options.describe(options.methods[0]),
        settings={
            **options.settings(),
            "eps": tuple(sizes),
            "refine": refine,
            "threshold": threshold,
            **named(preprocess),
            **passes,
        },
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The changes of some samples."""

    start: Values
    best: Best
    eps: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    zero_gradient: torch.Tensor


def _smallest(attack: Attack, sizes: list[float], refine: int, one: bool, threshold: float | None) -> _Found:
    """Return the changes of the smallest size that changes the answer, or of the only size."""
    chunk, found = attack.chunk, list(attack(sizes))
    changed = functools.partial(chunk.reader.changed, threshold=threshold)
    chosen, eps = found[-1].copy(), torch.full((chunk.batch,), sizes[-1], dtype=torch.float64)
    if not one:
        eps.fill_(float("inf"))
        low = torch.zeros_like(eps)
        for size, best in reversed(list(zip(sizes, found, strict=True))):
            flipped = changed(best.held)
            chosen.put(flipped, best)
            eps[flipped] = size
        wrong = changed(chunk.held)  # the answer was another one before
        eps[wrong] = 0
        chosen.put(wrong, Best(attack.start, chunk.loss, chunk.held))
        for size in sizes:
            low = torch.where(eps > size, size, low)
        for _ in range(refine):
            open_rows = eps.isfinite() & (eps > 0)
            if not bool(open_rows.any()):
                break
            middle = torch.where(open_rows, (low + eps) / 2, sizes[-1] or 1.0)
            best = attack.at(middle)
            flipped = changed(best.held) & open_rows
            chosen.put(flipped, best)
            eps, low = torch.where(flipped, middle, eps), torch.where(flipped, low, middle)
    with torch.no_grad():
        before, after = (_answers(chunk, values) for values in (attack.start, chosen.values))
    return _Found(attack.start, chosen, eps, before, after, attack.has_zero_gradient)


def _answers(chunk: SampleChunk, values: Values) -> torch.Tensor:
    """Return the class of each sample, or its score."""
    output, rows = chunk.run(values), torch.arange(chunk.batch)
    return chunk.reader.answers(output, rows) if chunk.reader.target is None else chunk.reader(output, rows)[1]


def _joined(parts: list[Values]) -> torch.Tensor | Values:
    """Return the values of all samples; one tensor where there is one input."""
    joined = {name: torch.cat([part[name] for part in parts]).detach() for name in parts[0]}
    return next(iter(joined.values())) if len(joined) == 1 else joined
