"""Gram matrices of every layer, minibatch by minibatch, for one model or for two models that see the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from layerlens.analyzers.common.features.feature_batches import run_once
from layerlens.analyzers.common.features.layer_features import FeatureReader, Rows, silent_layers
from layerlens.analyzers.common.messages import first_reasons
from layerlens.errors import InputError
from layerlens.inputs.batches import Batch, grouped
from layerlens.inputs.inputs import Inputs
from layerlens.model.layers import LayerPath

from .similarity_measures import LEAST, gram

Grams = dict[str, torch.Tensor]
"""Call of a layer -> `(n, n)`."""


class GramReader(FeatureReader):
    """Reads layers whole and keeps only the samples' inner products, `(batch, batch)`."""

    def reduced(self, name: str, path: LayerPath, values: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        """Return the Gram matrix of one call."""
        if not bool(values.isfinite().all()):
            return None, "it holds NaN or infinity"
        self.widths[name] = values[0].numel()
        return gram(values.flatten(1)), ""

    widths: dict[str, int]


class Side:
    """One of the models compared: reads layers, and notes what cannot be compared."""

    def __init__(self, reader: FeatureReader, seed: int) -> None:
        self.reader, self.seed = reader, seed
        self.count = 0
        self.names: list[str] | None = None
        self.left_out: dict[str, str] = {}
        self.widths: dict[str, int] = {}
        if isinstance(reader, GramReader):
            reader.widths = self.widths

    def read(self, inputs: Inputs) -> Rows:
        """Read the rows, or Gram matrices, of one batch."""
        rows = run_once(self.reader, inputs, self.seed + self.count)
        self.count += inputs.batch
        self.left_out.update(rows.left_out)
        return rows

    def grams(self, parts: list[Rows]) -> Grams:
        """Return the Gram matrices of the rows of some batches together."""
        if isinstance(self.reader, GramReader):
            (rows,) = parts
            found = dict(rows.layers)
        else:
            found = {}
            for name in parts[0].layers:
                tables = [part.layers[name] for part in parts if name in part.layers]
                if len(tables) < len(parts):
                    continue
                if len({table.shape[1] for table in tables}) > 1:
                    self.left_out[name] = "its number of units changes between samples"
                    continue
                self.widths[name] = tables[0].shape[1]
                found[name] = gram(torch.cat(tables))
        seen = {name for part in parts for name in part.layers}
        for name in seen | set(self.names or ()):
            if name not in found or (self.names is not None and name not in self.names):
                self.left_out.setdefault(name, "it did not run for every sample")
        self.names = list(found) if self.names is None else self.names
        return found

    def finish(self) -> list[str]:
        """Return the calls that were read in every minibatch, in order, and note the layers that did not run.

        Raises:
            InputError: when there are none.
        """
        self.left_out.update(silent_layers(self.reader.layers, (*(self.names or ()), *self.left_out)))
        names = [name for name in self.names or () if name not in self.left_out]
        if not names:
            raise InputError(f"no layer can be compared. {first_reasons(self.left_out)}")
        return names


def whole_minibatches(pairs: Iterable[tuple[Inputs, ...]], sides: list[Side]) -> Iterator[list[Grams]]:
    """Make a minibatch of each batch, in which layers are read whole; batches that are too small join a neighbor.

    Yields:
        The Gram matrices of both sides.

    Raises:
        InputError: when there are too few samples, or too few of one shape.
    """
    held: tuple[Inputs, ...] | None = None
    start = 0
    for inputs in pairs:
        if held is not None and min(held[0].batch, inputs[0].batch) < LEAST:
            joined = tuple(_joined(first, second) for first, second in zip(held, inputs, strict=True))
            if all(one is not None for one in joined):
                held = tuple(one for one in joined if one is not None)
                continue
        if held is not None:
            start += held[0].batch
            yield _minibatch(held, sides, start - held[0].batch)
        held = inputs
    if held is not None:
        yield _minibatch(held, sides, start)


def _minibatch(held: tuple[Inputs, ...], sides: list[Side], start: int) -> list[Grams]:
    """Read a minibatch that starts at a sample.

    Raises:
        InputError: when it is too small.
    """
    if held[0].batch < LEAST:
        alone = (
            f"samples {start} to {start + held[0].batch - 1} differ in shape from those around them: " if start else ""
        )
        raise InputError(
            f"{alone}{held[0].batch} sample(s) are too few: the unbiased estimator needs {LEAST} at a time. "
            "Give more, or read one number per unit, whatever the shape: pool='mean'."
        )
    return [side.grams([side.read(inputs)]) for side, inputs in zip(sides, held, strict=True)]


def _joined(first: Inputs, second: Inputs) -> Inputs | None:
    """Join both as one batch; None when their samples differ in shape."""
    singles = [(inputs.rows(torch.tensor([row])), None) for inputs in (first, second) for row in range(inputs.batch)]
    parts = list(grouped(singles, len(singles)))
    return parts[0][0] if len(parts) == 1 else None


def row_minibatches(pairs: Iterable[tuple[Inputs, ...]], sides: list[Side], size: int) -> Iterator[list[Grams]]:
    """Make minibatches of at least `size` samples, from the rows of one batch or of several; the rest joins the last.

    Yields:
        The Gram matrices of both sides.

    Raises:
        InputError: when there are too few samples.
    """
    done: list[list[Rows]] | None = None
    parts: list[list[Rows]] = [[] for _ in sides]
    for inputs in pairs:
        for side, part, one in zip(sides, parts, inputs, strict=True):
            part.append(side.read(one))
        if sum(rows.batch for rows in parts[0]) >= max(size, LEAST):
            if done is not None:
                yield [side.grams(rows) for side, rows in zip(sides, done, strict=True)]
            done, parts = parts, [[] for _ in sides]
    if done is not None and sum(rows.batch for rows in parts[0]) < LEAST:
        done, parts = [before + rest for before, rest in zip(done, parts, strict=True)], [[] for _ in sides]
    for held in (done, parts):
        if held is None or not held[0]:
            continue
        count = sum(rows.batch for rows in held[0])
        if count < LEAST:
            raise InputError(f"{count} sample(s) are too few: the unbiased estimator needs {LEAST}. Give more.")
        yield [side.grams(rows) for side, rows in zip(sides, held, strict=True)]


def side_by_side(pairs: Iterable[tuple[Inputs, ...]], others: Iterable[Batch]) -> Iterator[tuple[Inputs, ...]]:
    """Pair the batches of two data sets that hold the same samples.

    Yields:
        The inputs of both models.

    Raises:
        InputError: when they do not hold as many samples in batches of the same sizes.
    """
    second = iter(others)
    for (inputs,) in pairs:
        other = next(second, None)
        if other is None or other.inputs.batch != inputs.batch:
            where = "ends" if other is None else f"has one of {other.inputs.batch}"
            raise InputError(
                "the two models must see the same samples in the same order: where data has a batch of "
                f"{inputs.batch}, other_data {where}."
            )
        yield inputs, other.inputs
    if next(second, None) is not None:
        raise InputError("the two models must see the same samples: other_data holds more of them than data.")
