"""Where finished shards stand: in memory for small runs, or as files in a folder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from layerlens.files import remove_leftovers

from .shard_files import ShardFile, file_name, number_of, write


class Shard(Protocol):
    """A finished shard."""

    about: dict[str, Any]
    names: list[str]

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        ...

    def view(self, name: str) -> torch.Tensor:
        """A tensor that is not to be written to, of which only what is used is read."""
        ...

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows from `start` on into memory that is there."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def verify(self) -> None:
        """Compare with the checksums."""
        ...


class Shelf(Protocol):
    """Finished shards by number."""

    def numbers(self) -> list[int]:
        """Those that are there, in order."""
        ...

    def put(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Keep a shard."""
        ...

    def shard(self, number: int) -> Shard:
        """One of them."""
        ...


class MemoryShard:
    """A shard in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        self.tensors, self.about, self.names = dict(tensors), dict(about), list(tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        return self.tensors[name]

    def view(self, name: str) -> torch.Tensor:
        """A tensor that is not to be written to."""
        return self.tensors[name]

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows from `start` on into memory that is there."""
        into.copy_(self.tensors[name][start : start + len(into)])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.tensors[name].shape)

    def verify(self) -> None:
        """Nothing to compare with: it never left this process."""


class Memory:
    """Shards that live as long as this process."""

    folder = None

    def __init__(self) -> None:
        self._shards: dict[int, MemoryShard] = {}

    def numbers(self) -> list[int]:
        """Those that are there, in order."""
        return sorted(self._shards)

    def put(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Keep a shard."""
        self._shards[number] = MemoryShard(tensors, about)

    def shard(self, number: int) -> MemoryShard:
        """One of them."""
        return self._shards[number]


class Folder:
    """Shards as files; several processes may add to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened = functools.lru_cache(maxsize=32)(self._open)

    def _open(self, number: int, stamp: tuple[int, int]) -> ShardFile:
        return ShardFile(self.folder / file_name(number))

    def numbers(self) -> list[int]:
        """Those that are there, in order."""
        return sorted(self._found())

    def holds(self, number: int) -> bool:
        """Whether a shard is there, without a look at the others."""
        return (self.folder / file_name(number)).exists()

    def _found(self) -> Iterator[int]:
        for path in self.folder.iterdir():
            number = number_of(path)
            if number is not None:
                yield number

    def put(self, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Keep a shard."""
        write(self.folder, number, tensors, about)

    def shard(self, number: int) -> ShardFile:
        """One of them; read anew where the file has changed."""
        path = self.folder / file_name(number)
        found = path.stat() if path.exists() else None
        return self._opened(number, (0, 0) if found is None else (found.st_mtime_ns, found.st_size))

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half-written."""
        remove_leftovers(self.folder)
