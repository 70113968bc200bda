"""A store: the results of an analysis for every sample of a data set, read in parts."""

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

    A store can be read while it is filled, by this process or another: it shows the finished shards. `store["layer"]`
    is a column whose rows are read on use.

    Attributes:
        manifest: content and origin of the store.
        folder: folder of the files; None in memory.
    """

    def __init__(self, storage: Folder | Memory, manifest: Manifest) -> None:
        self.storage, self.manifest = storage, manifest
        self.folder: Path | None = storage.folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """Read a store from its folder; see `open_store`.

        Raises:
            StoreError: when there is none, or it is damaged or incomplete.
        """
        folder = Path(path).absolute()
        if os.path.isfile(folder):
            raise StoreError(f"{folder} is a file; a store is a folder. Give the folder that it is in.")
        if not os.path.isdir(folder):
            raise StoreError(f"there is no folder {folder}.")
        manifest = manifests.read(folder)
        storage = Folder(folder, manifest.run)
        storage.check(manifest.plan.shards)
        store = cls(storage, manifest)
        if store.manifest.complete and store.missing:
            raise StoreError(
                f"{folder}: the run was complete, and now {len(store.missing)} of its shards are missing "
                f"({', '.join(map(str, store.missing[:8]))}). Run it again with the same store to recompute them."
            )
        return store

    @property
    def shards(self) -> list[Shard]:
        """The finished shards, in order."""
        return [self.storage.shard(number) for number in self.storage.numbers()]

    @property
    def missing(self) -> list[int]:
        """The missing shards, if the length of the data is known."""
        there, plan = set(self.storage.numbers()), self.manifest.plan
        return [number for number in range(plan.shards or 0) if number not in there]

    @property
    def complete(self) -> bool:
        """Whether every sample of the data has been read."""
        if self.folder is not None and not self.manifest.complete:
            self.manifest = manifests.read(self.folder)  # another process may have finished
        return self.manifest.complete and not self.missing

    @property
    def ids(self) -> torch.Tensor:
        """The numbers of the samples that have rows, in order, `(n,)`."""
        parts = [shard.tensor("ids") for shard in self.shards]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    @property
    def errors(self) -> dict[int, str]:
        """The bad samples, with their errors."""
        return {int(key): text for shard in self.shards for key, text in shard.about["errors"].items()}

    @property
    def warnings(self) -> list[tuple[range, str]]:
        """The warnings of the analysis, with the samples of the batch; numbers in the text count within the batch."""
        return [(range(a, b), text) for shard in self.shards for a, b, text in shard.about.get("warnings", ())]

    def __getitem__(self, name: str) -> Column:
        """Return a column, such as the outputs of a layer.

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
        """Return the attribution of some samples, as the analyzer would for them, without the input.

        Args:
            samples: numbers of the samples.

        Raises:
            StoreError: when the store has no attributions, or a sample is not in it.
        """
        return attribution(self, [samples] if isinstance(samples, int) else list(samples))

    def verify(self) -> None:
        """Compare every byte of every finished shard with its checksum, and its place with the plan.

        Raises:
            StoreError: when a file is damaged; names it and says how to repair it.
        """
        if isinstance(self.storage, Folder):
            self.storage.check(self.manifest.plan.shards)
        for shard in self.shards:
            shard.verify()

    def texts(self, name: str) -> list[Any]:
        """Return a column of texts, such as `"tokens"`, as Python values."""
        return [json.loads(bytes(row.tolist())) for row in self[name]]

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every column whose rows have one shape as an array `(samples, ...)` in memory."""
        return {name: column.numpy() for name, column in self.items() if column.shape is not None}

    def to_xarray(self) -> Any:
        """Return a Dataset of the columns with a row of one shape for every sample, in memory, by sample number.

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
        """Return the columns of one number per sample, such as scores and checks, indexed by sample number.

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
        """Return the content of the store, how much of it is finished, and what failed."""
        plan, bad = self.manifest.plan, self.errors
        whole = "an unknown number of" if plan.count is None else f"{plan.count:,}"
        state = "complete" if self.complete else "not complete"
        rows = [("kind", self.manifest.kind), ("samples", f"{len(self.ids):,} of {whole}, {state}")]
        rows.append(("columns", self._listed()))
        if bad:
            errors = "; ".join(f"{key}: {text[:60]}" for key, text in list(bad.items())[:MOST_ERRORS])
            rows.append(("bad samples", f"{len(bad)} ({errors}{'; ...' if len(bad) > MOST_ERRORS else ''})"))
        if count := len(self.warnings):
            rows.append(("warnings", f"{count}, see .warnings"))
        return [*rows, ("at", str(self.folder or "memory"))]

    def __repr__(self) -> str:
        return f"Store({', '.join(f'{name}: {text}' for name, text in self.summary())})"


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open the store of an analysis of a data set, also while it is still running.

    Args:
        path: the folder given as `store=`.

    Raises:
        StoreError: when the folder has no store, a damaged one, one of another format, shards of another run or
            place, or lacks shards of a complete run.

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
