"""The trace of the Fisher information of every layer's parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from layerlens.analyzers.common.null_model import shuffled_parameters, with_parameters
from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError, warn
from layerlens.model.borrowed import seed_torch
from layerlens.results import LayerProfile

from .likelihood import EXACT, Likelihood, choose_likelihood
from .weight_task import WeightTask


@dataclasses.dataclass
class FisherTraces:
    """The Fisher information of every sample, float64 on the CPU.

    Attributes:
        trace: sum of squared gradients by row, `(samples, rows)`.
        relative: sum of squared products of gradient and weight.
        scatter: variance of `trace` over the labels drawn for a sample; zero where classes are summed over.
        likelihood: likelihood of the labels.
        exact: whether classes are summed over.
    """

    trace: torch.Tensor
    relative: torch.Tensor
    scatter: torch.Tensor
    likelihood: Likelihood
    exact: bool


def fisher_traces(
    task: WeightTask, parameters: Mapping[str, torch.Tensor], *, draws: int, empirical: bool
) -> FisherTraces:
    """Compute the trace of the Fisher information of each row, sample by sample.

    tr F = mean over x of sum_k |grad_w (s_k . y(x))|^2, where the vectors s_k make up the Fisher information of the
    output y (Martens 2020, sec. 9.2): F = E[J' F_y J]. It is the curvature of the loss without the curvature of the
    model, and equals the Hessian where every residual is zero.

    Raises:
        InputError: when no gradient reaches the parameters, or labels are needed and missing.
    """
    copies = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    run = with_parameters(task.model, task.forward, copies)
    by_sample: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    chosen: Likelihood | None = None
    exact = True
    for piece in task.samples("Fisher information", task.progress):
        for row in range(piece.inputs.batch):
            inputs = piece.inputs.rows(torch.tensor([row]))
            seed_torch(task.seed)
            output = inputs.run(task.model, run)
            chosen = chosen or choose_likelihood(task.likelihood, output, 1)
            y = chosen.read(output)
            if not y.requires_grad:
                raise InputError(
                    "no gradient flows from the output to the parameters: something on the way cannot be "
                    "differentiated (argmax, round, .detach(), torch.no_grad). measure='pruning' needs no gradient."
                )
            labels = None if piece.labels is None else piece.labels[row : row + 1]
            if empirical and labels is None:
                raise InputError("the empirical Fisher needs labels=, one for each sample.")
            weights = chosen.weights(y, inputs, labels if empirical else None)
            summed = chosen.factors(y)
            if empirical:
                assert labels is not None
                vectors = [chosen.residual(y, labels, weights)]
            elif summed is not None:
                vectors = summed
            else:
                exact = False
                generator = torch.Generator().manual_seed(task.seed + 7919 * (piece.start + row))
                vectors = [chosen.draw(y, weights, generator) for _ in range(draws)]
            squares = [_squared_gradients(task, y, s, copies, last=s is vectors[-1]) for s in vectors]
            traces = torch.stack([trace for trace, _ in squares])
            relatives = torch.stack([relative for _, relative in squares])
            if empirical or summed is not None:
                by_sample.append((traces.sum(dim=0), relatives.sum(dim=0), torch.zeros(traces.shape[1])))
            else:
                scatter = traces.var(dim=0) if draws > 1 else torch.full(traces.shape[1:], float("nan"))
                by_sample.append((traces.mean(dim=0), relatives.mean(dim=0), scatter))
    assert chosen is not None
    trace, relative, scatter = (torch.stack(parts).double() for parts in zip(*by_sample, strict=True))
    return FisherTraces(trace, relative, scatter, chosen, exact)


def _squared_gradients(
    task: WeightTask, y: torch.Tensor, s: torch.Tensor, parameters: Mapping[str, torch.Tensor], *, last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the squared gradients of s . y by row, and the squares of gradient times weight."""
    wanted = [parameters[name] for name in task.owners.names]
    with backward_pass(task.model):
        gradients = torch.autograd.grad(y, wanted, s, retain_graph=not last, allow_unused=True)
    by_name = dict(zip(task.owners.names, gradients, strict=True))
    trace, relative = [], []
    for names in task.owners.rows.values():
        squares = relative_squares = torch.zeros((), dtype=torch.float64)
        for name in names:
            gradient = by_name[name]
            if gradient is not None:
                gradient = gradient.double()
                squares = squares + gradient.square().sum().cpu()
                relative_squares = relative_squares + (gradient * parameters[name].detach()).square().sum().cpu()
        trace.append(squares)
        relative.append(relative_squares)
    return torch.stack(trace), torch.stack(relative)


def _method(traces: FisherTraces, draws: int, empirical: bool) -> str:
    """Describe how the traces were computed."""
    if empirical:
        return f"empirical Fisher at the given labels, {traces.likelihood.kind}"
    what = {"categorical": "classes", "gaussian": "outputs", "bernoulli": "outputs"}[traces.likelihood.kind]
    how = f"sum over {what}" if traces.exact else f"{draws} drawn labels a sample (more than {EXACT} {what})"
    return f"Fisher information, {traces.likelihood.kind}, {how}"


def fisher_profile(task: WeightTask, *, draws: int, empirical: bool) -> LayerProfile:
    """Return the trace of the Fisher information of each row."""
    if empirical:
        warn(
            "the empirical Fisher is taken at the labels of the data: it vanishes where the model has fitted them, and "
            "is not a curvature. empirical=False sums over the model's own labels.",
        )

    if task.null:
        task.samples.check_rereadable("null=True")
    traces = fisher_traces(task, task.parameters, draws=draws, empirical=empirical)
    null_values = None
    if task.null:
        shuffled = shuffled_parameters(task.model, task.seed)
        null_values = fisher_traces(task, shuffled, draws=draws, empirical=empirical).trace.mean(dim=0)
    count = len(traces.trace)
    values = traces.trace.mean(dim=0)
    draw_error = (traces.scatter / draws).sum(dim=0).sqrt() / count
    error = traces.trace.std(dim=0) / count**0.5 if count > 1 else None
    if error is None and not (traces.exact or empirical) and draws > 1:
        error = draw_error
    return LayerProfile(
        quantity="trace of the Fisher information",
        layers=tuple(task.owners.rows),
        values=values,
        units="nats per squared unit of weight",
        signed=False,
        method=_method(traces, draws, empirical) + task.shared_note,
        settings=task.settings(
            measure="fisher",
            likelihood=traces.likelihood.kind,
            empirical=empirical,
            draws=None if traces.exact or empirical else draws,
            samples=count,
        ),
        error=error,
        null=null_values,
        checks={
            "parameters": task.counts,
            "per parameter": values / task.counts,
            "relative": traces.relative.mean(dim=0),
            "draw error": draw_error,
        },
        explanation=(
            "Each value is the summed squared slope of the model's log probabilities along every weight of the layer: "
            "half of it times s^2 is how far, in nats, independent noise of variance s^2 on its weights moves the "
            "output's distribution.",
            "It is the curvature at these weights and inputs, in the units of the weights: it does not cover large "
            "changes, such as pruning, and layers with weights of a small scale get large values: see "
            "checks['relative'].",
        ),
    )
