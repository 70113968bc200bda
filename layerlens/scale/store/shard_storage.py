"""Storage of finished shards: in memory for small runs, or as files in a folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from layerlens.errors import StoreError
from layerlens.files import remove_leftovers

from .shard_files import ShardFile, file_name, number_of, write


class Shard(Protocol):
    """A finished shard."""

    about: dict[str, Any]
    names: list[str]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        ...

    def view(self, name: str) -> torch.Tensor:
        """Return a read-only tensor; only the used part is read from the file."""
        ...

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows from `start` into an existing tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        ...

    def verify(self) -> None:
        """Compare the tensors with their checksums."""
        ...


class ShardStorage(Protocol):
    """Finished shards by number."""

    def numbers(self) -> list[int]:
        """Return the numbers of the stored shards, in order."""
        ...

    def add(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Store a shard."""
        ...

    def shard(self, number: int) -> Shard:
        """Return a shard."""
        ...


class MemoryShard:
    """A shard in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        self.tensors, self.about, self.names = dict(tensors), dict(about), list(tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor."""
        return self.tensors[name]

    def view(self, name: str) -> torch.Tensor:
        """Return a read-only tensor."""
        return self.tensors[name]

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows from `start` into an existing tensor."""
        into.copy_(self.tensors[name][start : start + len(into)])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def verify(self) -> None:
        """Do nothing: the shard never left this process."""


class Memory:
    """Shards that live as long as this process."""

    folder = None

    def __init__(self) -> None:
        self._shards: dict[int, MemoryShard] = {}

    def numbers(self) -> list[int]:
        """Return the numbers of the stored shards, in order."""
        return sorted(self._shards)

    def add(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Store a shard."""
        self._shards[number] = MemoryShard(tensors, about)

    def shard(self, number: int) -> MemoryShard:
        """Return a shard."""
        return self._shards[number]


class Folder:
    """Shards as files; several processes may add to one folder.

    Args:
        folder: the folder.
        run: number of the run that the shards belong to.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self._opened = functools.lru_cache(maxsize=32)(self._open)

    def _open(self, number: int, stamp: tuple[int, int]) -> ShardFile:
        return ShardFile(self.folder / file_name(number), number, self.run)

    def check(self, shards: int | None) -> None:
        """Check that each shard is of this run, in its place, and one of `shards`, if their number is known.

        Raises:
            StoreError: when one is not.
        """
        for number in self.numbers():
            if shards is not None and number >= shards:
                raise StoreError(f"{self.folder / file_name(number)} is not of this run, which has {shards} shards. "
                                 "Remove the file.")  # fmt: skip
            self.shard(number)

    def numbers(self) -> list[int]:
        """Return the numbers of the stored shards, in order."""
        return sorted(self._numbers())

    def has(self, number: int) -> bool:
        """Return whether a shard is stored, without looking at the others."""
        return (self.folder / file_name(number)).exists()

    def _numbers(self) -> Iterator[int]:
        for path in self.folder.iterdir():
            number = number_of(path)
            if number is not None:
                yield number

    def add(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Store a shard."""
        write(self.folder, number, tensors, {**about, "run": self.run})

    def shard(self, number: int) -> ShardFile:
        """Return a shard, reopened if its file has changed."""
        path = self.folder / file_name(number)
        found = path.stat() if path.exists() else None
        return self._opened(number, (0, 0) if found is None else (found.st_mtime_ns, found.st_size))

    def remove_leftovers(self) -> None:
        """Remove unfinished files of killed processes."""
        remove_leftovers(self.folder)
