"""Products of the Jacobians of layers, and of their transposes, with vectors: many layers in one run."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

from layerlens.analyzers.common.calls.measured_calls import MeasuredCall, by_row, floating
from layerlens.analyzers.common.scorer import backward_pass

from ..stepped_runs import SteppedRun, Unavailable, Values
from .directional_derivatives import (
    STEP,
    Kind,
    dual_number_kernels,
    first_sentence,
    load_formulas,
    step_length,
    step_values,
)
from .linear_tangents import LinearTangents


class Products:
    """J v and J' u at several sites: the rows are copies of the batch, and copy k belongs to the k-th site.

    Use it with gradients on. The object holds the graph of the one run that the transposed products need.

    Args:
        stepped: what is stepped, and how the model is run.
        owners: the site of each copy, in order of execution; a site may have several.
        kind: how to compute J v, see `measure_responses`.
    """

    def __init__(self, stepped: SteppedRun, owners: list[MeasuredCall], kind: Kind) -> None:
        self.stepped, self.owners, self.kind = stepped, owners, kind
        self.sites = list(dict.fromkeys(owners))
        self.batch = stepped.run.batch
        self.values = {
            name: value.repeat(len(owners), *[1] * (value.ndim - 1)) for name, value in stepped.start.items()
        }
        self.rows = len(owners) * self.batch
        self.sizes = torch.zeros(len(owners), self.batch, dtype=torch.float64)
        self._graph: tuple[list[torch.Tensor], dict[MeasuredCall, torch.Tensor]] | None = None

    def __call__(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return J' J v `(rows, n)` and ||J v||^2 `(rows,)` for v `(rows, n)`.

        Raises:
            Unavailable: when J v cannot be computed this way.
        """
        with torch.no_grad():
            responses = self.times_jacobian(self._by_leaf(vectors))
        squares = torch.cat([response.double().square().sum(dim=1) for response in responses])
        return self.times_transpose(responses).to(vectors), squares

    def times_jacobian(self, steps: Values) -> list[torch.Tensor]:
        """Return J v of each copy, `(batch, m)` for a layer of size m.

        Raises:
            Unavailable: when J v cannot be computed this way, or a layer did not run.
        """
        with self._kernels():
            by_site = self._differences(steps) if self.kind == "differences" else self._tangents(steps)
        missing = [site.name for site in self.sites if site not in by_site]
        if missing:
            raise Unavailable(
                f"layer {missing[0]!r} did not run the same way a second time: the model changes its route"
            )
        return [self._copy_rows(by_site[site], copy) for copy, site in enumerate(self.owners)]

    def times_transpose(self, vectors: list[torch.Tensor]) -> torch.Tensor:
        """Return J' u of each copy, `(rows, n)`; zero where no gradient passes."""
        if self._graph is None:
            self._graph = self._record_graph()
        leaves, outputs = self._graph
        targets, given = [], []
        for site, output in outputs.items():
            if output.requires_grad:
                whole = torch.zeros_like(output)
                for copy, owner in enumerate(self.owners):
                    if owner is site:
                        self._copy_rows(whole, copy).copy_(vectors[copy])
                targets.append(output)
                given.append(whole)
        gradients: Any = [None] * len(leaves)
        if targets:
            with self._kernels(), backward_pass(self.stepped.run.model):
                gradients = torch.autograd.grad(targets, leaves, given, retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        return torch.cat([part.detach().reshape(self.rows, -1).to(_wide(part)) for part in parts], dim=1)

    def _copy_rows(self, rows: torch.Tensor, copy: int) -> torch.Tensor:
        """Return a view of the rows of one copy."""
        return rows[copy * self.batch : (copy + 1) * self.batch]

    def _by_leaf(self, vectors: torch.Tensor) -> Values:
        sizes = [value[0].numel() for value in self.values.values()]
        parts = torch.split(vectors, sizes, dim=1)
        return {
            name: part.reshape(value.shape).to(value)
            for (name, value), part in zip(self.values.items(), parts, strict=True)
        }

    def _tangents(self, steps: Values) -> dict[MeasuredCall, torch.Tensor]:
        by_site: dict[MeasuredCall, torch.Tensor] = {}

        def read(site: MeasuredCall, output: Any) -> None:
            value, tangent = forward_ad.unpack_dual(floating(output)[site.main])  # type: ignore[no-untyped-call]
            self._note_size(site, value)
            by_site[site] = self._flat(site, torch.zeros_like(value) if tangent is None else tangent.clone())

        load_formulas()
        try:
            with forward_ad.dual_level(), LinearTangents():
                duals = {
                    name: forward_ad.make_dual(value, steps[name])  # type: ignore[no-untyped-call]
                    for name, value in self.values.items()
                }
                self.stepped.evaluate(duals, read, self.sites, stop=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Unavailable(first_sentence(error)) from error
        return by_site

    def _differences(self, steps: Values) -> dict[MeasuredCall, torch.Tensor]:
        ends: list[dict[MeasuredCall, torch.Tensor]] = []
        length = step_length(self.values, STEP)  # v is of length 1, or 0
        for sign in (1, -1):
            by_site: dict[MeasuredCall, torch.Tensor] = {}

            def read(site: MeasuredCall, output: Any, by_site: dict[MeasuredCall, torch.Tensor] = by_site) -> None:
                value = floating(output)[site.main]
                self._note_size(site, value)
                by_site[site] = self._flat(site, value.clone())

            self.stepped.evaluate(step_values(self.values, steps, sign * length), read, self.sites, stop=True)
            ends.append(by_site)
        above, below = ends
        return {
            site: (above[site] - below[site]) / (2 * length).to(below[site]).unsqueeze(1)
            for site in self.sites
            if site in above and site in below and above[site].shape == below[site].shape
        }

    def _record_graph(self) -> tuple[list[torch.Tensor], dict[MeasuredCall, torch.Tensor]]:
        """Return the leaves, and each site's output as rows with its graph.

        The outputs are copies, as a later operation may write into them.
        """
        leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
        by_site: dict[MeasuredCall, torch.Tensor] = {}

        def read(site: MeasuredCall, output: Any) -> None:
            by_site[site] = self._flat(site, floating(output)[site.main].clone())

        with self._kernels():
            self.stepped.evaluate(leaves, read, self.sites, stop=True)
        return list(leaves.values()), by_site

    def _note_size(self, site: MeasuredCall, value: torch.Tensor) -> None:
        flat = self._flat(site, value)
        for copy, owner in enumerate(self.owners):
            if owner is site:
                self.sizes[copy] = torch.linalg.vector_norm(self._copy_rows(flat, copy), dim=1, dtype=_wide(flat)).cpu()

    def _flat(self, site: MeasuredCall, value: torch.Tensor) -> torch.Tensor:
        axis = site.axes[site.main]
        assert axis is not None  # such sites are left out before
        return by_row(value, axis, self.rows)

    def _kernels(self) -> contextlib.AbstractContextManager[None]:
        return dual_number_kernels() if self.kind == "plain dual" else contextlib.nullcontext()


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
