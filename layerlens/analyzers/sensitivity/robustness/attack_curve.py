"""How much of a model's accuracy remains under attacks of growing size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from layerlens.analyzers.common.measure_registry import measure
from layerlens.analyzers.common.samples import said_once
from layerlens.errors import check_count
from layerlens.inputs.inputs import Forward, Hold, Input
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.progress import track
from layerlens.results import Curve
from layerlens.targets.target import Spec

from ..stepped_runs import Values
from .attacks import Attack, AttackOptions, Best, Method, attack_options, random_changes, warn_zero_gradient
from .ball import Bounds, Mask, Norm
from .prediction_change import Labels, Loss
from .sample_chunks import LabeledSamples, Preprocess, SampleChunk, after, named, sample_chunks


@measure(
    question="responds_to_input",
    cost="for each eps (7): FGSM 1 F, and F + B in all; PGD starts (2) x steps (10) x (F + B); null 8 F",
    needs="a floating-point input, or token ids; a gradient",
    source="Goodfellow et al. 2015, sec. 4; Madry et al. 2018, sec. 2.1",
)
def attack_curve(
    model: nn.Module,
    x: Input,
    labels: Labels | None = None,
    *,
    eps: Sequence[float] | None = None,
    method: Method | Sequence[Method] = "pgd",
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    targeted: bool = False,
    mask: Mask = None,
    bounds: Bounds | None = None,
    normalized: Bounds | None = None,
    preprocess: Preprocess | None = None,
    loss: Loss = "cross_entropy",
    target: Spec = None,
    null: bool = True,
    draws: int = 8,
    inputs: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    hold: Hold = None,
    forward: Forward | None = None,
) -> Curve:
    r"""Measure accuracy against the size of an attack: a change d of the input, ||d|| <= eps, that raises the loss.

    - `"fgsm"`: d = eps sign(dL/dx), one step (Goodfellow et al. 2015, sec. 4); for l2, eps dL/dx / ||dL/dx||.
    - `"pgd"`: `steps` such steps, each of size `step_size` eps, and after each a projection into the ball (Madry et al.
      2018, sec. 2.1). It starts from the change found for the next smaller eps, and from `restarts` random points of
      the ball.

    Of all points tried, including those of smaller eps, the one that flips the answer is kept, or else the one with the
    largest loss. What works within a small ball is within the larger one too, so accuracy never rises with eps. An
    attack is a lower bound on what can be done: accuracy under the worst change may be lower.

    Token models are attacked in their embeddings, models with several inputs in all of them together. Random starts
    and noise are the same for all samples, so a batch gives what its samples give alone.

    Args:
        x: ... Or a Dataset or DataLoader, which is read batch by batch and may hold the labels.
        labels: the class index of each sample. None: its label in the data set, or else the model's answer without an
            attack; the curve is then the share of decisions that hold.
        eps: sizes, rising, in units of the input. None takes 0, 1, 2, 4, 8, 16 and 32 / 255 of the width of the
            bounds, or of the range of the (first) input; for l2 times sqrt(n / 100).
        method: `"pgd"`, `"fgsm"`, a function `(x, size) -> changed x` (a rotation by size degrees), or several, a curve
            each.
        norm: `"linf"`, the largest change of a value, or `"l2"`, the length of the change of a sample.
        steps: number of steps of PGD.
        step_size: size of a step of PGD, in units of eps; None for 2.5 / steps.
        restarts: number of random starts of PGD.
        targeted: whether labels are the classes that samples are to reach; the curve is the share that does not. With
            a target, whether to raise it.
        mask: 1 where the input may change and 0 elsewhere, broadcasting to it; by name or in order for several inputs.
        bounds: smallest and largest value of the input: `(0, 1)`, a sequence each with one number per channel, tensors
            that broadcast, or a dict of such pairs by input name. None sets none.
        normalized: mean and standard deviation by which the input was normalized, as `bounds`: eps and bounds are then
            in units before that.
        preprocess: function of the raw input, which x then is, that makes what the model takes: a tensor, a tuple of
            arguments or a dict of them. The change is made, measured and bounded before it; torch must be able to
            differentiate it.
        loss: `"cross_entropy"`, or `"margin"`, the largest other output minus that of the label, which does not
            saturate.
        target: a score to lower instead of classes, see `as_target`: for models whose output is not
            `(batch, classes)`. The curve is its mean.
        null: whether to measure changes of random signs (l2: random directions) of the same size too.
        draws: number of draws of the null.
        inputs: whether to keep the changed inputs; see also `attack`.

    Returns:
        A `Curve` along eps, with the standard error over samples; its null is a random change, the mean over draws and
        samples. Its checks are `"per sample"`, `(series, points, batch)`, 1 where the answer held, `"loss"`,
        `(series, points)`, the mean, `"flip eps"`, `(series, batch)`, the smallest of the sizes that flipped the answer
        (infinity where none did), and `"clean"`, `()`, the value without a change;
        with `inputs`, `"inputs"`, `(series, points, batch, ...)`, or `"inputs NAME"` of each of several.

    Raises:
        InputError: when input or labels cannot be used, values lie outside the bounds, or the input gets no gradient.
        OptionError: when an option is unknown or out of range.
        TargetError: when the output is not `(batch, classes)` and no target is given, or the target does not fit it.

    Warns:
        UserWarning: when the loss of a sample has no gradient.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> x = torch.tensor([[0.1, 0.1], [0.3, 0.1]])  # both are of class 1, with margins 0.2 and 0.4
        >>> curve = attack_curve(net, x, [1, 1], eps=(0.0, 0.15, 0.25), method="fgsm")
        >>> curve.values
        tensor([[1.0000, 0.5000, 0.0000]], dtype=torch.float64)
    """
    options = attack_options(
        method, norm, eps, steps, step_size, restarts, bounds, loss, seed, normalized=normalized,
        mask=mask, targeted=targeted,
    )  # fmt: skip
    check_count("draws", draws)
    called = after(preprocess, forward, normalized)
    sizes: list[float] | None = None
    held: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    noise: list[torch.Tensor] = []
    zero_gradient: list[torch.Tensor] = []
    clean: list[torch.Tensor] = []
    changed: list[Values] = []
    with borrowed(model), layers_called(), said_once() as passes:
        samples = LabeledSamples(x, labels, target, loss, batch_size, seed, called, hold, targeted)
        for chunk in track(sample_chunks(model, samples), "attack", enabled=progress):
            sizes = options.sizes(chunk) if sizes is None else sizes
            answers = [_attack_chunk(chunk, options, name, sizes, zero_gradient) for name in options.methods]
            held.append(torch.stack([torch.stack([one.held for one in best]) for best in answers]))
            losses.append(torch.stack([torch.stack([one.loss for one in best]) for best in answers]))
            if inputs:
                changed.append(
                    {
                        name: torch.stack([torch.stack([one.values[name] for one in best]) for best in answers])
                        for name in chunk.stepped.leaves
                    }
                )
            clean.append(chunk.held)
            if null:
                noise.append(_random_changes(chunk, options, sizes, draws))
            reader = chunk.reader
    assert sizes is not None  # an empty data set is refused before
    all_held, null_held = torch.cat(held, dim=2), torch.cat(noise, dim=1) if null else None
    count = all_held.shape[2]
    warn_zero_gradient("attack_curve", torch.cat(zero_gradient), loss)
    return Curve(
        quantity=reader.quantity,
        along=f"eps ({norm}, units of the input)",
        points=torch.tensor(sizes, dtype=torch.float64),
        series=tuple(options.describe(name) for name in options.methods),
        values=all_held.mean(dim=2),
        units=reader.units,
        method="; ".join(options.describe(name) for name in options.methods),
        settings={
            **options.settings(),
            "method": tuple(one if isinstance(one, str) else options.describe(one) for one in options.methods),
            "target": None if reader.target is None else reader.target.label,
            "draws": draws,
            "samples": count,
            **named(preprocess),
            **passes,
        },
        error=all_held.std(dim=2) / count**0.5 if count > 1 else None,
        null=None if null_held is None else null_held.mean(dim=1).expand(len(options.methods), -1).clone(),
        checks={
            "per sample": all_held,
            "loss": torch.cat(losses, dim=2).mean(dim=2),
            "clean": torch.cat(clean).mean(),
            **{
                "inputs" if len(changed[0]) == 1 else f"inputs {name}": torch.cat([one[name] for one in changed], dim=2)
                for name in (changed[0] if changed else ())
            },
            **({} if reader.target is not None else {"flip eps": _flip_sizes(all_held, sizes)}),
        },
        explanation=_explanation(reader.text, norm, null),
        null_name="random changes of that size",
    )


def _attack_chunk(
    chunk: SampleChunk, options: AttackOptions, method: Method, sizes: list[float], zero_gradient: list[torch.Tensor]
) -> list[Best]:
    """Return the best change of each size, and note zero gradients."""
    attack = Attack(chunk, options, method)
    best = list(attack(sizes))
    zero_gradient.append(attack.has_zero_gradient)
    return best


def _random_changes(chunk: SampleChunk, options: AttackOptions, sizes: list[float], draws: int) -> torch.Tensor:
    """Return the answers to random changes, `(points, batch)`, the mean over draws."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack([chunk(change)[1] for change in random_changes(chunk, options, size, draws)]).mean(dim=0)
                if size > 0
                else chunk.held
                for size in sizes
            ]
        )


def _flip_sizes(held: torch.Tensor, sizes: list[float]) -> torch.Tensor:
    """Return the smallest size that flipped the answer of each sample, `(series, batch)`."""
    eps = torch.tensor(sizes, dtype=torch.float64).reshape(1, -1, 1)
    return torch.where(held == 0, eps, float("inf")).amin(dim=1)


def _explanation(quantity: str, norm: str, null: bool) -> tuple[str, str]:
    size = "no value of the input" if norm == "linf" else "no input as a whole"
    null_text = "; the null is what remains after random changes of the same size" if null else ""
    return (
        f"Each value is the {quantity} that remains when {size} is changed by more than eps, in the "
        f"worst way that the attack found{null_text}.",
        "It is an upper bound: a stronger attack may leave less, and it does not cover changes that are larger, of "
        "another kind, or natural (see corruption_curve).",
    )
