"""The trace of the Fisher information of every layer's parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from layerlens.analyzers.common.null_model import shuffled_parameters, with_parameters
from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, warn
from layerlens.inputs.inputs import Forward
from layerlens.results import LayerProfile

from .labeled_batches import Samples
from .likelihood import EXACT, Kind, Likelihood, likelihood
from .weight_task import Job, Owners


@dataclasses.dataclass
class Information:
    """Of every sample; all float64 on the main processor.

    Attributes:
        trace: sum of squared gradients by row, `(samples, rows)`.
        relative: the same with every gradient times its weight.
        scatter: the variance of `trace` over the labels drawn for a sample; zero where classes are summed over.
        likelihood: of the labels.
        exact: whether classes are summed over.
    """

    trace: torch.Tensor
    relative: torch.Tensor
    scatter: torch.Tensor
    likelihood: Likelihood
    exact: bool


def fisher(
    model: nn.Module,
    samples: Samples,
    owners: Owners,
    parameters: Mapping[str, torch.Tensor],
    *,
    kind: Kind,
    draws: int,
    empirical: bool,
    seed: int,
    progress: bool | None,
    forward: Forward | None,
) -> Information:
    """Go through the samples one by one.

    tr F = mean over x of sum_k |grad_w (s_k . y(x))|^2, where the vectors s_k make up the Fisher information of the
    output y (Martens 2020, sec. 9.2): F = E[J' F_y J]. It is the curvature of the loss without that of the model, and
    equals the Hessian where every residual is zero.

    Args:
        model: a borrowed model.
        samples: to be read once.
        owners: rows of the result.
        parameters: by name, those to run with; all of the rows' among them.
        kind: of the likelihood.
        draws: labels drawn per sample where there are too many to be summed over.
        empirical: whether to take the gradients at the given labels.
        seed: of the labels, and for models that draw numbers.
        progress: as in `track`.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Raises:
        InputError: when no gradient reaches the parameters, or labels are needed and missing.
    """
    own = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    wanted = [own[name] for name in owners.names]
    run = with_parameters(model, forward, own)
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    settled: Likelihood | None = None
    exact = True
    for piece in samples("Fisher information", progress):
        for row in range(piece.inputs.batch):
            inputs = piece.inputs.rows(torch.tensor([row]))
            torch.manual_seed(seed)
            output = inputs.run(model, run)
            settled = settled or likelihood(kind, output, 1)
            y = settled.read(output)
            if not y.requires_grad:
                raise InputError(
                    "no gradient flows from the output to the parameters: something on the way cannot be "
                    "differentiated (argmax, round, .detach(), torch.no_grad). measure='pruning' needs no gradient."
                )
            labels = None if piece.labels is None else piece.labels[row : row + 1]
            if empirical and labels is None:
                raise InputError("the empirical Fisher needs labels=, one for each sample.")
            weights = settled.weights(y, inputs, labels if empirical else None)
            summed = settled.factors(y)
            if empirical:
                assert labels is not None
                vectors = [settled.residual(y, labels, weights)]
            elif summed is not None:
                vectors = summed
            else:
                exact = False
                generator = torch.Generator().manual_seed(seed + 7919 * (piece.start + row))
                vectors = [settled.draw(y, weights, generator) for _ in range(draws)]
            squares = [_squares(model, y, s, wanted, owners, own, last=s is vectors[-1]) for s in vectors]
            traces = torch.stack([trace for trace, _ in squares])
            relatives = torch.stack([relative for _, relative in squares])
            if empirical or summed is not None:
                found.append((traces.sum(dim=0), relatives.sum(dim=0), torch.zeros(traces.shape[1])))
            else:
                scatter = traces.var(dim=0) if draws > 1 else torch.full(traces.shape[1:], float("nan"))
                found.append((traces.mean(dim=0), relatives.mean(dim=0), scatter))
    assert settled is not None
    trace, relative, scatter = (torch.stack(parts).double() for parts in zip(*found, strict=True))
    return Information(trace, relative, scatter, settled, exact)


def _squares(
    model: nn.Module,
    y: torch.Tensor,
    s: torch.Tensor,
    wanted: list[torch.Tensor],
    owners: Owners,
    own: Mapping[str, torch.Tensor],
    *,
    last: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of squared gradients of s . y, by row: as they are, and times the weights."""
    with backward_pass(model):
        gradients = torch.autograd.grad(y, wanted, s, retain_graph=not last, allow_unused=True)
    by_name = dict(zip(owners.names, gradients, strict=True))
    trace, relative = [], []
    for names in owners.rows.values():
        one = other = torch.zeros((), dtype=torch.float64)
        for name in names:
            gradient = by_name[name]
            if gradient is not None:
                gradient = gradient.double()
                one = one + gradient.square().sum().cpu()
                other = other + (gradient * own[name].detach()).square().sum().cpu()
        trace.append(one)
        relative.append(other)
    return torch.stack(trace), torch.stack(relative)


def words(found: Information, draws: int, empirical: bool) -> str:
    """How it was computed."""
    if empirical:
        return f"empirical Fisher at the given labels, {found.likelihood.kind}"
    what = {"categorical": "classes", "gaussian": "outputs", "bernoulli": "outputs"}[found.likelihood.kind]
    how = f"sum over {what}" if found.exact else f"{draws} drawn labels a sample (more than {EXACT} {what})"
    return f"Fisher information, {found.likelihood.kind}, {how}"


def by_information(job: Job, *, draws: int, empirical: bool) -> LayerProfile:
    """The trace of the Fisher information."""
    if empirical:
        warn(
            "the empirical Fisher is taken at the labels of the data: it vanishes where the model has fitted them, and "
            "is no curvature. empirical=False sums over the model's own labels.",
        )

    def run(parameters: dict[str, torch.Tensor]) -> Information:
        return fisher(
            job.model,
            job.samples,
            job.owners,
            parameters,
            kind=job.likelihood,
            draws=draws,
            empirical=empirical,
            seed=job.seed,
            progress=job.progress,
            forward=job.forward,
        )

    if job.null:
        job.samples.check_again("null=True")
    found = run(job.parameters)
    chance = run(shuffled_parameters(job.model, job.seed)).trace.mean(dim=0) if job.null else None
    count = len(found.trace)
    values = found.trace.mean(dim=0)
    by_draws = (found.scatter / draws).sum(dim=0).sqrt() / count
    error = found.trace.std(dim=0) / count**0.5 if count > 1 else None
    if error is None and not (found.exact or empirical) and draws > 1:
        error = by_draws
    return LayerProfile(
        quantity="trace of the Fisher information",
        layers=tuple(job.owners.rows),
        values=values,
        units="nats per squared unit of weight",
        signed=False,
        method=words(found, draws, empirical) + job.told,
        settings=job.settings(
            measure="fisher",
            likelihood=found.likelihood.kind,
            empirical=empirical,
            draws=None if found.exact or empirical else draws,
            samples=count,
        ),
        error=error,
        null=chance,
        checks={
            "parameters": job.counts,
            "per parameter": values / job.counts,
            "relative": found.relative.mean(dim=0),
            "draw error": by_draws,
        },
        explanation=(
            "Each value is the summed squared slope of the model's log probabilities along every weight of the layer: "
            "half of it times s^2 is how far, in nats, independent noise of variance s^2 on its weights moves the "
            "output's distribution.",
            "It is the curvature at these weights and inputs, in the units of the weights: it says nothing of large "
            "changes, such as pruning, and layers whose weights are small by their scale come out large: see "
            "checks['relative'].",
        ),
    )
