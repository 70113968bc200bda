"""What every layer makes of each sample, as rows of numbers: `(samples, features)` for each layer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from layerlens.axes.call_site import CallSite
from layerlens.axes.followed import followed
from layerlens.axes.layout import unit_name
from layerlens.errors import InputError, OptionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.selection import Names, split_tensor
from layerlens.model.tensors import changeable, tensor_path
from layerlens.model.trees import describe, named_tensors, padded, version
from layerlens.probes.probe import Probe

from ..calls.used_tensors import used_tensors
from ..messages import first_reasons

POOLS = ("mean", "last", "flatten")

Pool: TypeAlias = Literal["mean", "last", "flatten"] | Callable[[torch.Tensor], torch.Tensor]
"""How the places (pixels, tokens, time steps) of an output become one row per sample: the mean over places of each
unit, the last place of a text or series, all numbers as they are, or a function from `(batch, units, *places)` to
`(batch, features)`."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The features of one run.

    Attributes:
        layers: call of a layer (`"rnn"`, `"rnn #1"`), or a tensor of it that was named or is one of several that the
            model reads (`"rnn/h_n"`), -> `(batch, features)` on the CPU.
        left_out: call of a layer -> why it has none.
        output: what the model returned.
        batch: samples.
    """

    layers: dict[str, torch.Tensor]
    left_out: dict[str, str]
    output: Any
    batch: int


class FeatureReader:
    """A reader that runs a model batch by batch and reads the selected layers, reduced inside the hooks.

    Means are taken in float64; with `"flatten"` numbers keep their dtype, at least float32. The model is borrowed for
    each run; layers are read in eval mode.

    Args:
        model: any module.
        layers: which; None for every layer.
        pool: how places become features.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        distinct: whether layers that return what another returned are dropped, where every layer was asked for.

    Raises:
        OptionError: when `pool` is unknown.
        LayerNotFound: when the selection matches no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Selection = None,
        *,
        pool: Pool = "mean",
        forward: Forward | None = None,
        distinct: bool = False,
    ) -> None:
        if not callable(pool) and pool not in POOLS:
            raise OptionError(f"unknown pool {pool!r}. Known: {', '.join(POOLS)}, or a function.")
        self.model, self.forward, self.pool = model, forward, pool
        self.layers = Layers(model).select(layers, tensors=True)
        self._distinct = distinct and layers is None
        self._sites: dict[tuple[str, int], CallSite] = {}
        self._read: dict[tuple[str, int], list[str]] = {}

    def drop_repeated(self, inputs: Inputs) -> None:
        """Drop the layers that return what another returned, the first time that this is called.

        Such are containers that return the output of their last child, identities, and dropout in eval mode. The
        model is run on the first sample.
        """
        if not self._distinct:
            return
        self._distinct = False
        with (
            borrowed(self.model, grad=False),
            layers_called(),
            Probe(self.model, keep="reference", reduce=_Kept) as record,
        ):
            inputs.rows(torch.arange(1)).run(self.model, self.forward)
        ran, first = dict[LayerPath, None](), dict[tuple[int, int], LayerPath]()
        for call in record.order:
            ran[call.layer] = None
            for key in call.output.keys:
                first.setdefault(key, call.layer)
        repeated = ran.keys() - set(first.values())
        self.layers = Layers(self.model).select([path for path in self.layers if path not in repeated])

    def read(self, inputs: Inputs) -> Rows:
        """Return the features of one batch; a layer whose numbers are not finite is left out.

        The first batch takes two forward passes, for the names of the axes have to be known before places can be
        reduced; every other one, unless the route or the number of axes changes.

        Raises:
            OptionError: when a pool function returns something else than `(batch, features)`.
        """
        with borrowed(self.model, grad=False), layers_called():
            known = bool(self._sites)
            if not known:
                self._look(inputs)
            run = _Run(self, inputs.batch)
            run.do(inputs)
            if known and run.stale:
                self._look(inputs)
                run = _Run(self, inputs.batch)
                run.do(inputs)
        return Rows(run.layers, run.left_out, run.output, inputs.batch)

    def reduced(self, name: str, path: LayerPath, values: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        """Return what is kept of one call, or None and why; a reader that keeps something else overrides this.

        Args:
            name: name of the call.
            path: path of the layer.
            values: what it returned, `(batch, units, *places)`, not copied.
        """
        rows = _pooled(values, self.pool, path)
        return (rows.cpu(), "") if bool(rows.isfinite().all()) else (None, "it holds NaN or infinity")

    def _look(self, inputs: Inputs) -> None:
        sites = followed(self.model, inputs, self.forward, again=bool(self._sites)).calls
        self._sites.update({(site.path, site.index): site for site in sites})
        several = [site.path for site in sites if len(site.outputs) > 1 and site.path in self.layers]
        self._read = used_tensors(self.model, inputs, self.forward, several) if several else {}


class _Kept:
    """Tensors as their hook saw them, held so that no others get their ids."""

    def __init__(self, output: Any) -> None:
        self.tensors = [tensor for _, tensor in named_tensors(output)]
        self.keys = [(id(tensor), version(tensor)) for tensor in self.tensors] or [(id(self), 0)]


class _Run:
    """One run of a borrowed model, read by hooks."""

    def __init__(self, reader: FeatureReader, batch: int) -> None:
        self.reader, self.batch = reader, batch
        self.layers: dict[str, torch.Tensor] = {}
        self.left_out: dict[str, str] = {}
        self.output: Any = None
        self.stale = False

    def do(self, inputs: Inputs) -> None:
        tensors = self.reader.layers.tensors
        edits = {path: self._tap(path, tensors[path]) for path in self.reader.layers}
        with Probe(self.reader.model, (), edits=edits):
            self.output = inputs.run(self.reader.model, self.reader.forward)

    def _tap(self, path: str, wanted: Names) -> Callable[[Any], Any]:
        calls, module = itertools.count(), self.reader.model.get_submodule(path)

        def tap(output: object) -> object:
            index = next(calls)
            call = f"{path} #{index}" if index else path
            found, site = changeable(module, output, wanted, path), self.reader._sites.get((path, index))
            read = [name for name in self.reader._read.get((path, index), ()) if name in found]
            names = list(found) if wanted is not None else read or list(found) or [""]
            tensors = {name: padded(found[name]) if found else None for name in names}
            axes = {name: None if t is None or site is None else site.names(name, t) for name, t in tensors.items()}
            if wanted is None:  # what all samples share, such as position tables, is not of a sample
                names = [name for name in names if by_sample(tensors[name], axes[name], self.batch)] or names
            for name in names:
                self.stale |= tensors[name] is not None and (axes[name] is None or site is None)
                short = tensor_path(call, name) if wanted is not None or len(names) > 1 else call
                rows, why = self._rows(tensors[name], axes[name], short, path)
                if rows is None:
                    self.left_out[short] = why
                else:
                    self.layers[short] = rows
            return output

        return tap

    def _rows(
        self, tensor: torch.Tensor | None, axes: Sequence[str] | None, name: str, path: LayerPath
    ) -> tuple[torch.Tensor | None, str]:
        """`(batch, features)`, or why there is none."""
        if tensor is None or not tensor.is_floating_point() or axes is None:
            return None, "it returns no floating-point tensor whose axes are known (name them: Lens(model, axes=...))"
        if tensor.ndim != len(axes) or "batch" not in axes:
            return None, f"none of its axes is the batch: ({', '.join(axes)})"
        axis = axes.index("batch")
        if tensor.shape[axis] != self.batch:
            return None, f"it returns {describe(tensor)} for {self.batch} sample(s)"
        return self.reader.reduced(name, path, units_first(tensor.detach(), axes))


def silent_layers(layers: Collection[LayerPath], calls: Iterable[str]) -> dict[str, str]:
    """Return by path why layers without any of the calls have no numbers."""
    known = set(layers)
    ran = {split_tensor(name.split(" #")[0], known)[0] for name in calls}
    return {path: "did not run" for path in layers if path not in ran}


def by_sample(tensor: torch.Tensor | None, axes: Sequence[str] | None, batch: int) -> bool:
    """Return whether a tensor has one entry for each sample; one that all samples share, such as positions, has not."""
    return tensor is not None and axes is not None and "batch" in axes and tensor.shape[axes.index("batch")] == batch


def pool_name(pool: Pool) -> str:
    """Name a pool in settings."""
    return pool if isinstance(pool, str) else getattr(pool, "__name__", type(pool).__name__)


def units_first(tensor: torch.Tensor, axes: Sequence[str]) -> torch.Tensor:
    """Return `(batch, units, *places)`; an output without units has one."""
    rows, name = axes.index("batch"), unit_name(axes)
    tensor = tensor.movedim(rows, 0)
    if name is None:
        return tensor.unsqueeze(1)
    unit = axes.index(name)
    return tensor.movedim(unit if unit > rows else unit + 1, 1)


def _pooled(values: torch.Tensor, pool: Pool, path: str) -> torch.Tensor:
    if pool == "flatten":
        return values.flatten(1).to(torch.promote_types(values.dtype, torch.float32), copy=True)
    if callable(pool):
        rows = pool(values.double())
        if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != len(values):
            raise OptionError(
                f"pool must return (batch, features); of layer {path!r}, {describe(values)}, it returned "
                f"{describe(rows)}."
            )
        return rows
    places = values.double().flatten(2) if values.ndim > 2 else values.double().unsqueeze(2)
    return places[:, :, -1].clone() if pool == "last" else places.mean(dim=2)


class Features:
    """The rows of a data set, batch by batch.

    Attributes:
        left_out: call of a layer -> why it has no features.
        count: samples so far.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {}
        self.left_out: dict[str, str] = {}
        self.count = 0

    def add(self, rows: Rows) -> None:
        """Take the next batch. A layer that does not fit what came before is left out."""
        self.left_out.update(rows.left_out)
        for name, part in rows.layers.items():
            if name in self.left_out:
                continue
            known = self._parts.setdefault(name, [])
            if sum(map(len, known)) != self.count:
                self.left_out[name] = "it did not run for every sample"
            elif known and known[0].shape[1] != part.shape[1]:
                self.left_out[name] = "its number of units changes between samples"
            else:
                known.append(part)
        for name in self._parts.keys() - rows.layers.keys():
            self.left_out.setdefault(name, "it did not run for every sample")
        self.count += rows.batch

    def keep(self, index: torch.Tensor) -> None:
        """Keep these samples alone."""
        for name, parts in self._parts.items():
            if name not in self.left_out:
                parts[:] = [torch.cat(parts)[index]]
        self.count = len(index)

    def joined(self, doing: str) -> dict[str, torch.Tensor]:
        """Return call of a layer -> `(samples, features)`, of the layers that have them for every sample.

        Args:
            doing: what is done with the layers, for the error.

        Raises:
            InputError: when there is no such layer.
        """
        whole = {name: torch.cat(parts) for name, parts in self._parts.items() if name not in self.left_out}
        if not whole:
            raise InputError(f"no layer can be {doing}. {first_reasons(self.left_out)}")
        return whole
