"""The trace of the Hessian of the loss, by layer, from products with vectors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from layerlens.analyzers.common.null_model import shuffled_parameters, with_parameters
from layerlens.analyzers.common.scorer import backward_pass
from layerlens.errors import InputError
from layerlens.model.borrowed import primitive_kernels, seed_torch
from layerlens.results import LayerProfile

from .labeled_batches import Piece
from .likelihood import choose_likelihood
from .weight_task import WeightTask

Loss = Callable[[Any, "torch.Tensor | None"], torch.Tensor]
Block = list[torch.Tensor]
"""One tensor for each parameter of a row."""

_MISSING = re.compile(r"derivative for (?:aten::)?(\w+) is not implemented")


class Curvature:
    """Products of the Hessian of the mean loss with vectors, over a data set that is read once for each call.

    By double backward; by differences of gradients where an operation has no second derivative, named in `missing`.

    Args:
        task: the model, samples (with labels, unless the loss needs none) and rows.
        parameters: parameters to run with, by name.
        loss: `loss(output, labels)`, the mean over samples; None for minus the log likelihood.
    """

    def __init__(self, task: WeightTask, parameters: Mapping[str, torch.Tensor], loss: Loss | None) -> None:
        self.task, self.loss = task, loss
        copies = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        self.rows: list[Block] = [[copies[name] for name in names] for names in task.owners.rows.values()]
        self.run = with_parameters(task.model, task.forward, copies)
        self.used = "given loss" if loss is not None else ""
        self.missing = ""

    @property
    def sizes(self) -> list[int]:
        """The number of values in each row."""
        return [sum(tensor.numel() for tensor in block) for block in self.rows]

    def products(self, vectors: Sequence[torch.Tensor], *, jointly: bool = False) -> list[torch.Tensor]:
        """Return H_ll v for the vectors of each row, `(numbers, k)` each.

        Args:
            vectors: for each row `(numbers, k)`, k may be 0.
            jointly: whether to multiply by the whole H at once, with the same k for all rows: one double backward pass
                for all rows, whose products include what the other rows' vectors add.
        """
        sums = [torch.zeros_like(columns) for columns in vectors]
        count = 0
        with _double_backward_kernels(self.task.model), backward_pass(self.task.model):
            for piece in self.task.samples("Hessian", self.task.progress):
                for total, part in zip(sums, self._piece_products(piece, vectors, jointly), strict=True):
                    total += part
                count += piece.inputs.batch
        return [total / count for total in sums]

    def _piece_products(self, piece: Piece, vectors: Sequence[torch.Tensor], jointly: bool) -> list[torch.Tensor]:
        flat = [tensor for block in self.rows for tensor in block]
        if not self.missing:
            try:
                gradients = torch.autograd.grad(
                    self._loss(piece), flat, create_graph=True, allow_unused=True, materialize_grads=True
                )
                return (
                    self._joint_products(gradients, flat, vectors)
                    if jointly
                    else self._row_products(gradients, vectors)
                )
            except RuntimeError as error:
                match = _MISSING.search(str(error))
                if match is None:
                    raise
                self.missing = match[1]
        if jointly:
            whole = self._differences(piece, flat, torch.cat(list(vectors)))
            return list(torch.split(whole, [len(columns) for columns in vectors]))
        return [self._differences(piece, block, columns) for block, columns in zip(self.rows, vectors, strict=True)]

    def _differences(self, piece: Piece, block: Block, columns: torch.Tensor) -> torch.Tensor:
        """Return central differences of the gradient along each vector: two backward passes a product.

        The step is the cube root of the rounding unit times the length of the weights, where truncation and rounding
        balance (Nocedal & Wright 2006, sec. 8.1).
        """
        start = [tensor.detach().clone() for tensor in block]
        size = max(1e-3, float(torch.cat([tensor.double().flatten() for tensor in start]).norm()))
        products = []
        try:
            for column in columns.T:
                length = float(column.norm())
                step = torch.finfo(block[0].dtype).eps ** (1 / 3) * size / max(length, 1e-300)
                ends = []
                for sign in (1, -1):
                    for tensor, old, part in zip(block, start, _split(column, block), strict=True):
                        tensor.data = old + sign * step * part  # a copy, never the model's own tensor
                    parts = torch.autograd.grad(self._loss(piece), block, allow_unused=True, materialize_grads=True)
                    ends.append(torch.cat([part.double().flatten() for part in parts]))
                products.append((ends[0] - ends[1]).to(columns) / (2 * step))
        finally:
            for tensor, old in zip(block, start, strict=True):
                tensor.data = old
        return torch.stack(products, dim=1) if products else torch.zeros_like(columns)

    def _row_products(self, gradients: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        products, start = [], 0
        for block, columns in zip(self.rows, vectors, strict=True):
            row_gradients = gradients[start : start + len(block)]
            start += len(block)
            products.append(_columns(row_gradients, block, [_split(column, block) for column in columns.T], columns))
        return products

    def _joint_products(
        self, gradients: Sequence[torch.Tensor], flat: Block, vectors: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        whole = torch.cat(list(vectors))
        products = _columns(gradients, flat, [_split(column, flat) for column in whole.T], whole)
        return list(torch.split(products, [len(columns) for columns in vectors]))

    def _loss(self, piece: Piece) -> torch.Tensor:
        """Return the loss summed over the samples of a piece.

        Raises:
            InputError: when the loss is not one number, needs missing labels, or has no gradient.
        """
        seed_torch(self.task.seed)
        output = piece.inputs.run(self.task.model, self.run)
        if self.loss is not None:
            value = self.loss(output, piece.labels)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise InputError("loss must return one number, the mean over the samples it is given.")
            total = value.reshape(()) * piece.inputs.batch
        else:
            if piece.labels is None:
                raise InputError(
                    "the Hessian of the loss needs labels=, one for each sample, or loss=, a function of the output "
                    "and the labels. measure='fisher' needs no labels."
                )
            chosen = choose_likelihood(self.task.likelihood, output, piece.inputs.batch)
            y = chosen.read(output)
            total = chosen.losses(y, piece.labels, chosen.weights(y, piece.inputs, piece.labels)).sum()
            self.used = f"{chosen.kind} likelihood"
        if not total.requires_grad:
            raise InputError("no gradient flows from the loss to the parameters.")
        return total


def _columns(gradients: Sequence[torch.Tensor], block: Block, vectors: list[Block], like: torch.Tensor) -> torch.Tensor:
    """Return derivatives of gradients . v with respect to the block, `(numbers, k)`."""
    used = [place for place, gradient in enumerate(gradients) if gradient.requires_grad]
    if not used or not vectors:  # the loss is linear in these parameters
        return torch.zeros_like(like)
    products = []
    for vector in vectors:
        parts = torch.autograd.grad(
            [gradients[place] for place in used],
            block,
            [vector[place] for place in used],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        products.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(products, dim=1).to(like)


def _split(vector: torch.Tensor, block: Block) -> Block:
    parts = torch.split(vector, [tensor.numel() for tensor in block])
    return [part.reshape(tensor.shape).to(tensor) for part, tensor in zip(parts, block, strict=True)]


@contextlib.contextmanager
def _double_backward_kernels(model: nn.Module) -> Iterator[None]:
    """Use kernels that can be differentiated twice: attention from matrix products, recurrent layers step by step."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(primitive_kernels())
        yield


Traces = tuple[torch.Tensor, torch.Tensor]
"""Values and standard errors, `(rows,)`, float64."""


def hutch_plus_plus(curvature: Curvature, probes: int, seed: int) -> Traces:
    """Estimate tr H_ll of every row by Hutch++ (Meyer et al. 2021, algorithm 1), with `probes` products each.

    A third of the products finds the space Q of the largest eigenvalues, a third gives the exact trace there, and the
    rest is Hutchinson's estimate on the complement of Q, whose scatter is the standard error. A row with no more values
    than a third of the probes is exact.
    """
    third = probes // 3
    generator = torch.Generator().manual_seed(seed)
    sizes = curvature.sizes
    small = [size <= third for size in sizes]
    sketch = [_signs(0 if whole else third, size, generator) for size, whole in zip(sizes, small, strict=True)]
    if not all(small):
        ranges = curvature.products(sketch)
    bases, probing = [], []
    for place, (size, whole) in enumerate(zip(sizes, small, strict=True)):
        q = torch.eye(size, dtype=torch.float64) if whole else torch.linalg.qr(ranges[place]).Q
        g = _signs(0 if whole else third, size, generator)
        bases.append(q)
        probing.append(g - q @ (q.T @ g))
    products = curvature.products([torch.cat(pair, dim=1) for pair in zip(bases, probing, strict=True)])
    values, errors = [], []
    for q, g, product in zip(bases, probing, products, strict=True):
        inside = (q * product[:, : q.shape[1]]).sum()
        outside = (g * product[:, q.shape[1] :]).sum(dim=0)  # (third,)
        count = len(outside)
        values.append(inside + (outside.mean() if count else 0.0))
        errors.append(outside.std() / count**0.5 if count > 1 else torch.zeros((), dtype=torch.float64))
    return torch.stack(values), torch.stack(errors)


def hutchinson(curvature: Curvature, probes: int, seed: int) -> Traces:
    """Estimate tr H_ll of all rows at once: mean of v_l' (H v)_l over random signs v (Hutchinson 1990).

    What the rows' vectors add to each other's products has mean zero and is part of the scatter.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = [_signs(probes, size, generator) for size in curvature.sizes]
    products = curvature.products(signs, jointly=True)
    forms = torch.stack([(v * product).sum(dim=0) for v, product in zip(signs, products, strict=True)])
    return forms.mean(dim=1), forms.std(dim=1) / probes**0.5


def _signs(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(2, (count, size), generator=generator).double().T * 2 - 1


def hessian_profile(task: WeightTask, *, loss: Loss | None, probes: int, estimator: str) -> LayerProfile:
    """Return the trace of the Hessian of the loss of each row."""
    plus = estimator == "hutch++"
    if plus or task.null:
        task.samples.check_rereadable("Hutch++" if plus else "null=True")
    used = route = ""

    def run(parameters: dict[str, torch.Tensor]) -> Traces:
        nonlocal used, route
        curvature = Curvature(task, parameters, loss)
        traces = (hutch_plus_plus if plus else hutchinson)(curvature, probes, task.seed)
        used = curvature.used
        route = f"differences of gradients ({curvature.missing})" if curvature.missing else "double backward"
        return traces

    values, error = run(task.parameters)
    name = "Hutch++ for each layer" if plus else "Hutchinson for all layers at once"
    method = f"trace of the Hessian, {used}, {name}, {probes} products, {route}"
    null_values = run(shuffled_parameters(task.model, task.seed))[0] if task.null else None
    return LayerProfile(
        quantity="trace of the Hessian of the loss",
        layers=tuple(task.owners.rows),
        values=values,
        units="loss per squared unit of weight",
        signed=True,
        method=method + task.shared_note,
        settings=task.settings(measure="hessian_trace", loss=used, probes=probes, estimator=estimator, route=route),
        error=error,
        null=null_values,
        checks={"parameters": task.counts, "per parameter": values / task.counts},
        explanation=(
            "Each value is the summed curvature of the mean loss along the weights of the layer: half of it times "
            "s^2 is how much independent noise of variance s^2 on its weights raises the loss.",
            "A sum of curvatures in all directions, in which positive and negative ones cancel, and an estimate with "
            "the given error; it does not cover large changes of the weights.",
        ),
    )
