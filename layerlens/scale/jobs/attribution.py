"""Saliency and relevance of every sample."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import of_batch
from layerlens.analyzers.relevance.relevance import relevance
from layerlens.analyzers.saliency.auto import judged_by
from layerlens.analyzers.saliency.saliency import one_method, saliency
from layerlens.axes.followed import followed
from layerlens.errors import RecordError
from layerlens.inputs.batches import Batch
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.token_texts import known_tokens, token_ids
from layerlens.model.layers import Layers
from layerlens.model.selection import split_tensor
from layerlens.model.trees import describe
from layerlens.results import Attribution, Relevance
from layerlens.targets.target import Target

from ..data.source import Source
from ..store.fingerprint import as_json, target_settings
from .base import RowsJob, cast, registered


@dataclasses.dataclass
class Saliency(RowsJob):
    """An attribution by any method of `saliency`.

    Attributes:
        rows_of_data: rows of the tables of the data, by name, by which `auto` judges their columns.
    """

    aim: Target | None
    method: str
    options: dict[str, Any]
    dtype: torch.dtype | None
    tokenizer: Any
    forward: Forward | None
    rows_of_data: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict, compare=False)
    used: str = dataclasses.field(default="", init=False, compare=False)
    kind = "saliency"

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON."""
        options = {name: as_json(value) for name, value in self.options.items()}
        settings = {"method": self.method, "target": target_settings(self.aim), **options, "dtype": as_json(self.dtype)}
        return settings | registered(self.method)

    def analyze(self, model: nn.Module, batch: Batch) -> Attribution:
        """Return the attribution of a batch."""
        options = {"method": self.method, **self.options}
        with judged_by(self.rows_of_data):
            found = saliency(model, batch.inputs, target=of_batch(self.aim, batch), forward=self.forward, **options)
        self.used = one_method(self.used, found.how)
        return found

    def rows(self, model: nn.Module, batch: Batch) -> tuple[dict[str, torch.Tensor], Callable[[], dict[str, Any]]]:
        """Return values, score, checks, standard errors and skewness."""
        found = self.analyze(model, batch)
        rows = {name: cast(tensor, self.dtype) for name, tensor in _parts("values", found.values)}
        rows["score"] = cast(found.score, None)
        rows |= {
            f"checks/{name}": cast(check, None) for name, check in found.checks.items() if _by_sample(check, batch)
        }
        rows |= {name: cast(tensor, self.dtype) for name, tensor in _parts("standard error", found.standard_error)}
        rows |= {name: cast(tensor, self.dtype) for name, tensor in _parts("skewness", found.skewness)}
        rows |= self.more(model, batch, found)
        for name, texts in zip(("tokens", "texts"), self._tokens(found, batch.inputs), strict=True):
            if texts is not None:
                rows[name] = _texts(_by_sample_of(texts))
        if found.index is not None:
            rows["index"] = _texts(list(found.index))
        rows["target"] = _texts([found.target_of(sample) for sample in range(batch.inputs.batch)])
        kept = ("axes", "signed", "units", "target", "method", "settings", "cost", "features", "degrees")
        return rows, lambda: {"class": type(found).__name__, **{name: as_json(getattr(found, name)) for name in kept}}

    def more(self, model: nn.Module, batch: Batch, found: Any) -> dict[str, torch.Tensor]:
        """Return the columns that only this kind of attribution has."""
        return {}

    def _tokens(self, found: Attribution, inputs: Inputs) -> tuple[Any, Any]:
        """The names of the tokens and what they read."""
        ids = token_ids(found.values, found.inputs)
        if found.tokens is not None or self.tokenizer is None or ids is None:
            return found.tokens, found.texts
        return known_tokens(self.tokenizer, ids, inputs.texts)


@dataclasses.dataclass
class RelevanceJob(Saliency):
    """Relevance of the input and at layers, and the sums of the ledger."""

    kind = "relevance"

    def settings(self) -> dict[str, Any]:
        """Return all options as JSON."""
        return {name: value for name, value in super().settings().items() if name != "method"}

    def analyze(self, model: nn.Module, batch: Batch) -> Relevance:
        """Return the relevance of a batch."""
        return relevance(model, batch.inputs, target=of_batch(self.aim, batch), forward=self.forward, **self.options)

    def more(self, model: nn.Module, batch: Batch, found: Any) -> dict[str, torch.Tensor]:
        """Return the sums of the ledger in float64, and relevance at layers.

        Raises:
            RecordError: when the ledger or a layer's relevance cannot be split by sample.
        """
        rows = {f"ledger/{kind}": cast(found.ledger.total(kind), None) for kind in ("input", "additive", "absorbed")}
        if not found.ledger.by_sample:
            raise RecordError(
                "the ledger of this model is exact for the whole batch only, not sample by sample, because the model "
                "mixes the batch with other axes. Use batch_size=1."
            )
        modules, known = Layers(model), followed(model, batch.inputs, self.forward)
        for path, calls in found.layers.items():
            for number, tensor in enumerate(calls):
                name = f"layers/{path}" + (f"#{number}" if number else "")
                layer, part = split_tensor(path, modules)
                axis = known.site(layer, number).batch_axis(tensor, part)
                if axis is None or tensor.shape[axis] != batch.inputs.batch:
                    raise RecordError(f"relevance at layer {path!r}, {describe(tensor)}, has no axis of the samples.")
                rows[name] = cast(tensor.movedim(axis, 0), self.dtype)
        return rows


def rows_of_tables(source: Source) -> dict[str, torch.Tensor]:
    """Return rows of the tables of a data set, evenly spread over it; none if its first sample holds no table."""
    rows: dict[str, list[torch.Tensor]] = {}
    for batch in source.spread():
        found = {name: tensor for name, tensor in batch.inputs.floating().items() if tensor.ndim == 2}
        if not found:
            break
        for name, tensor in found.items():
            rows.setdefault(name, []).append(tensor.detach())
    return {name: torch.cat(one) for name, one in rows.items() if len({part.shape[1] for part in one}) == 1}


def _by_sample(check: torch.Tensor, batch: Batch) -> bool:
    return check.ndim >= 1 and len(check) == batch.inputs.batch


def _by_sample_of(texts: Any) -> list[Any]:
    """The texts of each sample: a list, or a dict of lists by input."""
    if not isinstance(texts, dict):
        return list(texts)
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _parts(name: str, values: Any) -> list[tuple[str, torch.Tensor]]:
    """Return (column, tensor) of one tensor, or of several by the name of their input."""
    if values is None:
        return []
    if isinstance(values, torch.Tensor):
        return [(name, values)]
    return [(f"{name}/{part}", tensor) for part, tensor in values.items()]


def _texts(rows: list[Any]) -> torch.Tensor:
    """Return texts as rows of bytes, padded with spaces, which JSON ignores."""
    few = {row: json.dumps(row).encode() for row in set(rows)} if all(isinstance(row, str) for row in rows) else {}
    coded = [few[row] for row in rows] if few else [json.dumps(row).encode() for row in rows]
    most = max(map(len, coded))
    joined = bytearray().join(row.ljust(most) for row in coded)
    return torch.frombuffer(joined, dtype=torch.uint8).reshape(len(coded), most)
