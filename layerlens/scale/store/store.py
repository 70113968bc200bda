"""A store: what an analysis gave for every sample of a data set, read by parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import StoreError, need, suggestion
from layerlens.results import Attribution

from . import manifest as manifests
from .attributions import attribution
from .columns import Column
from .manifest import Manifest
from .shard_builder import VALUES
from .shard_storage import Folder, Memory, Shard

MOST_ERRORS = 3


class Store(Mapping[str, Column]):
    """The rows of every sample, by column; in files, or in memory for small runs.

    A store can be read while it is filled, by this process or another: it shows the shards that are finished.
    `store["layer"]` is a column whose rows are read when they are asked for.

    Attributes:
        manifest: what the store holds and how it was made.
        folder: where the files are; None in memory.
    """

    def __init__(self, shelf: Folder | Memory, manifest: Manifest) -> None:
        self.shelf, self.manifest = shelf, manifest
        self.folder: Path | None = shelf.folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Read a store from its folder; see `open_store`."""
        folder = Path(path).absolute()
        if folder.is_file():
            raise StoreError(f"{folder} is a file; a store is a folder. Give that which it is in.")
        if not folder.is_dir():
            raise StoreError(f"there is no folder {folder}.")
        store = cls(Folder(folder), manifests.read(folder))
        if store.manifest.complete and store.missing:
            raise StoreError(
                f"{folder}: the run was complete, and now {len(store.missing)} of its shards are missing "
                f"({', '.join(map(str, store.missing[:8]))}). Run it again with the same store to make them anew."
            )
        return store

    @property
    def shards(self) -> list[Shard]:
        """The finished shards, in order."""
        return [self.shelf.shard(number) for number in self.shelf.numbers()]

    @property
    def missing(self) -> list[int]:
        """The shards that are not there yet, where the length of the data is known."""
        there, plan = set(self.shelf.numbers()), self.manifest.plan
        return [number for number in range(plan.shards or 0) if number not in there]

    @property
    def complete(self) -> bool:
        """Whether every sample of the data has been read."""
        if self.folder is not None and not self.manifest.complete:
            self.manifest = manifests.read(self.folder)  # another process may have come to the end
        return self.manifest.complete and not self.missing

    @property
    def ids(self) -> torch.Tensor:
        """The numbers of the samples that have rows, in order, `(n,)`."""
        parts = [shard.tensor("ids") for shard in self.shards]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    @property
    def errors(self) -> dict[int, str]:
        """The samples that were noted as bad, with what failed."""
        return {int(key): text for shard in self.shards for key, text in shard.about["errors"].items()}

    @property
    def warnings(self) -> list[tuple[range, str]]:
        """What the analysis warned of, with the samples of the batch; numbers in the text count within the batch."""
        return [(range(a, b), text) for shard in self.shards for a, b, text in shard.about.get("warnings", ())]

    def __getitem__(self, name: str) -> Column:
        """A column, such as the outputs of a layer.

        Raises:
            StoreError: when there is none of that name.
        """
        shards = self.shards
        if not any(VALUES + name in shard.names for shard in shards):
            raise StoreError(
                f"there is no column {name!r} in this store.{suggestion(name, self)} Known: {self._listed()}."
            )
        return Column(name, shards)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for shard in self.shards for name in shard.about.get("columns", ())))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _listed(self) -> str:
        names = list(self)
        return ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "") or "none yet"

    def attribution(self, samples: int | Sequence[int]) -> Attribution:
        """The attribution of some samples, as the analyzer would return it for them, without the input.

        Args:
            samples: their numbers in the data.

        Raises:
            StoreError: when the store holds no attributions, or a sample is not in it.
        """
        return attribution(self, [samples] if isinstance(samples, int) else list(samples))

    def verify(self) -> None:
        """Compare every tensor of every finished shard with its checksum.

        Raises:
            StoreError: when a file is damaged; names it and says how to mend it.
        """
        for shard in self.shards:
            shard.verify()

    def texts(self, name: str) -> list[Any]:
        """A column of texts, such as `"tokens"`, as Python values."""
        return [json.loads(bytes(row.tolist())) for row in self[name]]

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Every column whose rows have one shape, as an array `(samples, ...)` in memory."""
        return {name: column.numpy() for name, column in self.items() if column.shape is not None}

    def to_xarray(self) -> Any:
        """A Dataset of the columns that have a row of one shape for every sample, in memory, by sample number.

        Raises:
            MissingPackage: when xarray is not installed.
        """
        xarray = need("xarray", "to_xarray")
        ids, arrays = self.ids.numpy(), {}
        for name, column in self.items():
            if column.shape is not None and len(column) == len(ids):
                dims = ["sample", *(f"{name}_{axis}" for axis in range(len(column.shape) - 1))]
                arrays[name] = xarray.DataArray(column.numpy(), dims=dims)
        about = {"kind": self.manifest.kind, "settings": json.dumps(self.manifest.settings)}
        return xarray.Dataset(arrays, coords={"sample": ids}, attrs=about)

    def to_pandas(self) -> Any:
        """The columns of one number per sample, such as scores and checks, indexed by sample number.

        Raises:
            MissingPackage: when pandas is not installed.
        """
        pandas = need("pandas", "to_pandas")
        ids, columns = self.ids.numpy(), {}
        for name, column in self.items():
            if column.shape is not None and len(column.shape) == 1:
                columns[name] = pandas.Series(column.numpy(), index=column.ids.numpy())
        return pandas.DataFrame(columns, index=pandas.Index(ids, name="sample"))

    def summary(self) -> list[tuple[str, str]]:
        """What it holds, how much of it is there, and what failed."""
        plan, bad = self.manifest.plan, self.errors
        whole = "an unknown number of" if plan.count is None else f"{plan.count:,}"
        state = "complete" if self.complete else "not complete"
        rows = [("kind", self.manifest.kind), ("samples", f"{len(self.ids):,} of {whole}, {state}")]
        rows.append(("columns", self._listed()))
        if bad:
            told = "; ".join(f"{key}: {text[:60]}" for key, text in list(bad.items())[:MOST_ERRORS])
            rows.append(("bad samples", f"{len(bad)} ({told}{'; ...' if len(bad) > MOST_ERRORS else ''})"))
        if count := len(self.warnings):
            rows.append(("warnings", f"{count}, see .warnings"))
        return [*rows, ("at", str(self.folder or "memory"))]

    def __repr__(self) -> str:
        return f"Store({', '.join(f'{name}: {text}' for name, text in self.summary())})"


def open_store(path: str | os.PathLike[str]) -> Store:
    """Read what an analysis of a data set wrote, also while it is still running.

    Args:
        path: the folder that was given as `store=`.

    Raises:
        StoreError: when the folder holds no store, a damaged one, one of another format, or lacks shards of a run that
            was complete.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from layerlens import over
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = over(nn.Linear(2, 3), torch.ones(5, 2), store=folder.name + "/run").capture("")
        >>> open_store(folder.name + "/run")["(model)"].shape
        (5, 3)
        >>> folder.cleanup()
    """
    return Store.open(path)
