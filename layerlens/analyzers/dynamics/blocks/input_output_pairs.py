"""What went into each layer and what came out, as pairs of rows of numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.calls.used_tensors import used_tensors
from layerlens.analyzers.common.features.layer_features import by_sample, silent_layers, units_first
from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.layout import only
from layerlens.axes.provenance.axis import Axes
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import LayerPath
from layerlens.model.selection import Matches
from layerlens.model.tensors import changeable, choices, tensor_path
from layerlens.model.trees import describe, named_tensors, version
from layerlens.probes.probe import Probe

from .windows import window_of

OUTPUTS = 256
"""Numbers of an output kept as they are; of more, random sums are taken, whose R^2 is the same on average."""

TWIN = 8
"""Outputs of the linear twin, a random linear map of the same input."""

SAME = "it returns its input"


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What is kept of each layer, see `nonlinearity`.

    Attributes:
        whole: whether a row is a whole sample, and not one place of it.
        window: places of the input in each direction that a block sees, see `window_of`.
        max_places: places of a sample.
        max_rows: rows kept.
        max_features: features of a row; of more, random sums are taken.
        seed: seed of all choices.
    """

    whole: bool
    window: int
    max_places: int
    max_rows: int
    max_features: int
    seed: int


class Pairs:
    """The rows of one call of one layer.

    Attributes:
        influence: 1 - cosine of input and output for each sample, `(batch,)` by batch; empty where shapes differ.
        kind: what a row is.
        features: number of features of a row, before random sums are taken.
    """

    def __init__(self, name: str, options: RowOptions) -> None:
        self.options = options
        number = options.seed + zlib.crc32(name.encode())
        self.places = torch.Generator().manual_seed(number)
        self.keys = torch.Generator().manual_seed(number + 1)
        self.parts: list[tuple[torch.Tensor, ...]] = []
        self.influence: list[torch.Tensor] = []
        self.samples = self.features = 0
        self.kind = ""
        self._maps: dict[str, torch.Tensor] = {}

    def add(self, x: torch.Tensor, y: torch.Tensor, kind: str) -> str:
        """Add rows of a batch, `(batch, rows, features)` and `(batch, rows, numbers)`; return why not, or ""."""
        batch, rows, features = x.shape
        if self.kind and (kind, features) != (self.kind, self.features):
            return "its input has another number of values in some samples"
        self.kind, self.features = kind, features
        samples = torch.arange(self.samples, self.samples + batch).repeat_interleave(rows)
        keys = torch.rand(batch * rows, generator=self.keys, dtype=torch.float64)
        x, y = x.reshape(batch * rows, -1).double(), y.reshape(batch * rows, -1).double()
        twin = x @ self._map("twin", features, TWIN)
        self.samples += batch
        self.parts.append(
            (self._summed("x", x, self.options.max_features), self._summed("y", y, OUTPUTS), twin, samples, keys)
        )
        if sum(len(part[-1]) for part in self.parts) > 2 * self.options.max_rows:
            self.parts = [self.rows()]
        return ""

    def rows(self) -> tuple[torch.Tensor, ...]:
        """Return inputs, outputs, outputs of the linear twin, sample and key of each row; `(rows, ...)` each."""
        whole = [torch.cat(column) for column in zip(*self.parts, strict=True)]
        chosen = whole[-1].argsort()[: self.options.max_rows].sort().values
        return tuple(column[chosen] for column in whole)

    def _map(self, name: str, given: int, made: int) -> torch.Tensor:
        if name not in self._maps:
            own = torch.Generator().manual_seed(self.options.seed + zlib.crc32(name.encode()))
            self._maps[name] = torch.randn(given, made, generator=own, dtype=torch.float64) / given**0.5
        return self._maps[name]

    def _summed(self, name: str, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Sum features at random, each with a random sign in one sum (Charikar et al. 2002)."""
        features = rows.shape[1]
        if features <= count:
            return rows
        own = torch.Generator().manual_seed(self.options.seed + zlib.crc32(name.encode()))
        place = torch.randint(count, (features,), generator=own)
        sign = torch.randint(2, (features,), generator=own) * 2.0 - 1
        return torch.zeros(len(rows), count, dtype=rows.dtype).index_add_(1, place, rows * sign)


class PairReader:
    """Runs a model batch by batch and takes the inputs and outputs of the selected layers in pairs.

    Attributes:
        residual: calls whose output is the input plus something else; the input is subtracted.
        always: whether the input is subtracted wherever it has the shape of the output.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Matches,
        forward: Forward | None,
        options: RowOptions,
        always: bool,
    ) -> None:
        self.model, self.layers, self.forward, self.options, self.always = model, layers, forward, options, always
        self.residual: set[str] = set()
        self.pairs: dict[str, Pairs] = {}
        self.left_out: dict[str, str] = {}
        self._sites: dict[tuple[str, int], CallSite] = {}
        self._read: dict[tuple[str, int], list[str]] = {}

    def subtracts_input(self, name: str) -> bool:
        """Whether the input of a call is subtracted from its output."""
        return self.always or name in self.residual

    def read(self, inputs: Inputs, seed: int) -> None:
        """Add the pairs of one batch."""
        with borrowed(self.model, grad=False), layers_called():
            if not self._sites:
                seed_torch(seed)
                sites = followed(self.model, inputs, self.forward).calls
                self._sites = {(site.path, site.index): site for site in sites}
                several = [site.path for site in sites if len(site.outputs) > 1 and site.path in self.layers]
                self._read = used_tensors(self.model, inputs, self.forward, several) if several else {}
            with contextlib.ExitStack() as stack:
                for path in self.layers:
                    before, after = self._hooks(path, inputs.batch)
                    stack.enter_context(Probe(self.model, [path], keep="reference", inputs=before, reduce=after))
                seed_torch(seed)
                inputs.run(self.model, self.forward)

    def finish(self) -> dict[str, str]:
        """Return why layers have no pairs; a layer that returns its input does nothing, and is not listed."""
        silent = silent_layers(self.layers, (*self.pairs, *self.left_out))
        return {name: why for name, why in self.left_out.items() if why != SAME} | silent

    def _hooks(self, path: LayerPath, batch: int) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
        entered: list[tuple[str, Any, Any]] = []  # of the first floating-point tensor
        count = iter(range(1 << 62))
        module = self.model.get_submodule(path)

        def before(given: object) -> None:
            floating = ((name, tensor) for name, tensor in named_tensors(given) if tensor.is_floating_point())
            name, tensor = next(floating, ("", None))
            key = None if tensor is None else (id(tensor), version(tensor))
            entered.append((name.partition(".")[2], None if tensor is None else tensor.detach().clone(), key))

        def after(output: object) -> None:
            index = next(count)
            name = f"{path} #{index}" if index else path
            argument, given, key = entered.pop()
            if name in self.left_out:
                return
            wanted = self.layers.tensors[path]
            found, site = changeable(module, output, wanted, path), self._sites.get((path, index))
            read = {one: found[one] for one in self._read.get((path, index), found) if one in found} or found
            read = found if wanted is not None else read
            made = {
                one: (part, None if site is None else site.names(one, part))
                for one, part in read.items()
                if not part.is_nested
            }
            if wanted is None:
                made = {one: pair for one, pair in made.items() if by_sample(*pair, batch)} or made
            if wanted is None and len(made) > 1:
                self._leave_out(name, f"the model reads several tensors of it, name some: {choices(path, made)}")
                return
            taken = None if site is None else site.inputs.get(argument)
            if not made:
                self._leave_out(name, "it returns no floating-point tensor")
            for one, (tensor, axes) in made.items():
                own = name if wanted is None else tensor_path(name, one)
                if own not in self.left_out:
                    self._leave_out(own, self._pair(own, module, (given, taken), tensor, axes, key, batch))

        return before, after

    def _leave_out(self, name: str, why: str) -> None:
        if why:
            self.left_out[name] = why
            self.pairs.pop(name, None)

    def _pair(
        self,
        name: str,
        module: nn.Module,
        taken: tuple[torch.Tensor | None, Axes | None],
        made: torch.Tensor,
        axes: tuple[str, ...] | None,
        key: tuple[int, int] | None,
        batch: int,
    ) -> str:
        """Add one call; return why it cannot be added, or the empty text."""
        given, known = taken
        if given is None or not made.is_floating_point():
            return "it takes or returns no floating-point tensor"
        if (id(made), version(made)) == key:
            return SAME
        if axes is None or len(axes) != made.ndim or "batch" not in axes:
            return "no axis of its output is the batch"
        axis = axes.index("batch")
        if made.shape[axis] != batch:
            return f"it returns {describe(made)} for {batch} sample(s)"
        source = None if known is None or len(known) != given.ndim else only(known, "batch")
        source = (axis if given.ndim == made.ndim else 0) if source is None else source
        if given.ndim <= source or given.shape[source] != batch:
            return f"it is given {describe(given)} for {batch} sample(s)"
        if not bool(given.isfinite().all() and made.isfinite().all()):
            return "its input or output holds NaN or infinity"
        made = made.detach()
        same_rank = given.ndim == made.ndim and source == axis
        y = units_first(made, axes).cpu()
        x = units_first(given, axes).cpu() if same_rank else given.movedim(source, 0).flatten(1).cpu()
        pairs = self.pairs.setdefault(name, Pairs(name, self.options))
        if given.shape == made.shape and any(module.children()) and x.shape[1] > 1:
            cosine = torch.cosine_similarity(x.double(), y.double(), dim=1)  # (batch, *places)
            pairs.influence.append(1 - cosine.reshape(batch, -1).mean(dim=1))
        if given.shape == made.shape and self.subtracts_input(name):
            y = y - x
        window = None
        if same_rank and y.ndim > 2 and not self.options.whole:
            window = window_of(module, axes, x.shape[2:], y.shape[2:], self.options.window)
        if window is None:
            kind = "sample" if y.ndim > 2 or x.ndim > 2 else "row"
            return pairs.add(x.flatten(1).unsqueeze(1), y.flatten(1).unsqueeze(1), kind)
        count = y.shape[2:].numel()
        kept = min(count, self.options.max_places)
        flat = torch.cat([x.flatten(2), x.new_zeros(*x.shape[:2], 1)], dim=2)
        rows, answers = [], []
        for sample in range(batch):
            chosen = torch.randperm(count, generator=pairs.places)[:kept]
            index = window.index(chosen, x.shape[2:], y.shape[2:])  # (places, window)
            rows.append(flat[sample][:, index].movedim(0, 1).flatten(1))  # (places, units * window)
            answers.append(y[sample].flatten(1)[:, chosen].T)
        size = " x ".join(str(one) for one in window.size)
        kind = "place" if max(window.size) == 1 else f"window {size}"
        return pairs.add(torch.stack(rows), torch.stack(answers), kind)
