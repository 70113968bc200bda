"""How much of a model's accuracy is left under attacks of growing size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.fastpath import layers_called
from layerlens.analyzers.common.measure_registry import measure
from layerlens.errors import check_count
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import borrowed
from layerlens.progress import track
from layerlens.results import Curve
from layerlens.targets.target import Spec

from .attack_options import Plan, plan, warn_flat
from .attacks import Norm
from .prediction_change import Loss
from .sample_chunks import Part, parts


@measure(
    question="responds_to_input",
    cost="for each eps (7): FGSM 1 F, and F + B in all; PGD starts (2) x steps (10) x (F + B); null 8 F",
    needs="a floating-point input, or token ids; a gradient",
    source="Goodfellow et al. 2015, sec. 4; Madry et al. 2018, sec. 2.1",
)
def attack_curve(
    model: nn.Module,
    x: Input,
    labels: Any = None,
    *,
    eps: Sequence[float] | None = None,
    method: str | Sequence[str] = "pgd",
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: tuple[Any, Any] | None = None,
    loss: Loss = "cross_entropy",
    target: Spec = None,
    null: bool = True,
    draws: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Curve:
    r"""Accuracy against the size of an attack: of a change d of the input, ||d|| <= eps, made to raise the loss.

    - `"fgsm"`: d = eps sign(dL/dx), one step (Goodfellow et al. 2015, sec. 4); for l2, eps dL/dx / ||dL/dx||.
    - `"pgd"`: `steps` such steps, each of size `step_size` eps, and after each the nearest point of the ball (Madry et
      al. 2018, sec. 2.1). It starts from the change that was found for the next smaller eps, and from `restarts`
      random points of the ball.

    Of all points that were tried, those of smaller eps among them, the one is kept that turns the answer, or else has
    the largest loss. What works within a small ball is within the larger one too, so accuracy never rises with eps, by
    construction. An attack is a lower bound of what can be done: accuracy under the worst change may be lower.

    Token models are attacked in their embeddings, models with several inputs in all of them together. Random starts
    and noise are the same for all samples, so that a batch gives what its samples give alone.

    Args:
        model: any module; it is run in eval mode.
        x: its input, `(batch, ...)`: a tensor, a tuple of arguments, or a dict of keyword arguments; or a Dataset or
            DataLoader, which is read batch by batch and may hold the labels.
        labels: the class index of each sample. None: its label in the data set, or else what the model says without an
            attack; the curve is then the share of decisions that hold.
        eps: sizes, rising, in units of the input. None takes 0, 1, 2, 4, 8, 16 and 32 of 255 parts of the width of the
            bounds, or of the range of the (first) input; for l2 times sqrt(n / 100).
        method: `"pgd"`, `"fgsm"`, or both, a curve each.
        norm: `"linf"`, the largest change of a value, or `"l2"`, the length of the change of a sample.
        steps: of PGD.
        step_size: of a step, in units of eps; None for 2.5 / steps.
        restarts: random starts.
        bounds: least and largest value of the input as the model gets it, numbers or tensors that broadcast: `(0, 1)`.
            None sets none.
        loss: `"cross_entropy"`, or `"margin"`, the largest other output minus that of the label, which does not
            saturate.
        target: a score that shall fall, in place of classes, as in `layerlens.as_target`: for models whose
            output is not `(batch, classes)`. The curve is its mean.
        null: also measure changes of random signs (l2: of random directions) of the same size.
        draws: of them.
        batch_size: samples that run together.
        seed: of random starts and noise, and for models that draw numbers.
        progress: whether to show a bar; None when stderr is a terminal and it takes long.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Returns:
        A `Curve` along eps, with the standard error over samples; its null is a random change, the mean over draws and
        samples. Its checks are `"per sample"`, `(series, points, batch)`, 1 where the answer held, `"loss"`,
        `(series, points)`, the mean, `"flip eps"`, `(series, batch)`, the smallest of the sizes that turned the answer
        (infinity where none did), and `"clean"`, `()`, the value without a change.

    Raises:
        InputError: when input or labels cannot be used, values lie outside of the bounds, or no gradient passes.
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
    made = plan(method, norm, eps, steps, step_size, restarts, bounds, loss, seed)
    check_count("draws", draws)
    sizes: list[float] | None = None
    held: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    noise: list[torch.Tensor] = []
    flat: list[torch.Tensor] = []
    clean: list[torch.Tensor] = []
    with borrowed(model), layers_called():
        found = parts(
            model, x, labels, target=target, loss=loss, batch_size=batch_size, seed=seed, forward=forward,
            label="attack",
        )  # fmt: skip
        for part in track(found, "attack", enabled=progress):
            sizes = made.sizes(part) if sizes is None else sizes
            answers = [_attacked(part, made, name, sizes, flat) for name in made.methods]
            held.append(torch.stack([one for one, _ in answers]))  # (series, points, batch)
            losses.append(torch.stack([other for _, other in answers]))
            clean.append(part.held)
            if null:
                noise.append(random_changes(part, made, sizes, draws))
            verdict = part.verdict
    assert sizes is not None  # an empty data set is refused before
    answers_held, answers_noise = torch.cat(held, dim=2), torch.cat(noise, dim=1) if null else None
    count = answers_held.shape[2]
    warn_flat("attack_curve", torch.cat(flat), loss)
    named = verdict.target
    return Curve(
        quantity=verdict.quantity,
        along=f"eps ({norm}, units of the input)",
        points=torch.tensor(sizes, dtype=torch.float64),
        series=tuple(made.words(name) for name in made.methods),
        values=answers_held.mean(dim=2),
        units=verdict.units,
        method="; ".join(made.words(name) for name in made.methods),
        settings={
            **made.settings(),
            "method": made.methods,
            "target": None if named is None else named.label,
            "draws": draws,
            "samples": count,
        },
        error=answers_held.std(dim=2) / count**0.5 if count > 1 else None,
        null=None if answers_noise is None else answers_noise.mean(dim=1).expand(len(made.methods), -1).clone(),
        checks={
            "per sample": answers_held,
            "loss": torch.cat(losses, dim=2).mean(dim=2),
            "clean": torch.cat(clean).mean(),
            **({} if named is not None else {"flip eps": _flips(answers_held, sizes)}),
        },
        explanation=_explanation(verdict.words, norm, null),
    )


def _attacked(
    part: Part, made: Plan, method: str, sizes: list[float], flat: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and losses, `(points, batch)` each."""
    attack = made.attack(part, method)
    best = list(attack(sizes))
    flat.append(torch.zeros(part.batch, dtype=torch.bool) if attack.flat is None else attack.flat)
    return torch.stack([one.held for one in best]), torch.stack([one.loss for one in best])


def random_changes(part: Part, made: Plan, sizes: list[float], draws: int) -> torch.Tensor:
    """The answers to changes of random signs or directions, `(points, batch)`, the mean over draws."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack([part(made.ball.random(part.job.start, size, draw_seed(made.seed, draw), edge=True))[1]
                             for draw in range(draws)]).mean(dim=0)
                if size > 0 else part.held
                for size in sizes
            ]
        )  # fmt: skip


def draw_seed(seed: int, draw: int) -> int:
    """The seed of a draw of noise, another one than those of random starts."""
    return seed + 104729 * (draw + 1)


def _flips(held: torch.Tensor, sizes: list[float]) -> torch.Tensor:
    """The smallest size that turned the answer of each sample, `(series, batch)`."""
    eps = torch.tensor(sizes, dtype=torch.float64).reshape(1, -1, 1)
    return torch.where(held == 0, eps, float("inf")).amin(dim=1)


def _explanation(words: str, norm: str, null: bool) -> tuple[str, str]:
    size = "no value of the input" if norm == "linf" else "no input as a whole"
    beside = "; the null is what random changes of the same size leave" if null else ""
    return (
        f"Each value is the {words} that is left when {size} is changed by more than eps, in the way that the attack "
        f"found to be worst{beside}.",
        "It is an upper bound: a stronger attack may leave less, and it says nothing of changes that are larger, of "
        "another kind, or natural (see corruption_curve).",
    )
