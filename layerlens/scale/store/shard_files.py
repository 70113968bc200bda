"""One shard on disk: a safetensors file, written whole or not at all, with a checksum of every tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import StoreError
from layerlens.files import parse_json, whole
from layerlens.model.packing import packed, type_named

FORMAT = "layerlens-shard/2"
DIGITS = 6
MOST_HEADER = 100_000_000
"""The most bytes of a header, as safetensors allows."""
HOLE = b"0" * 64
"""Where the checksum of the header is written into the header."""
HEADER = b'"header sha256":"'
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""Names of types in safetensors; a tensor of another type is stored as bytes, with one axis more."""


def file_name(number: int) -> str:
    """Return the name of the file of a shard."""
    return f"shard-{number:0{DIGITS}d}.safetensors"


def number_of(path: Path) -> int | None:
    """Return the number of the shard in a file; None for other files."""
    digits = path.name.removeprefix("shard-").removesuffix(".safetensors")
    return int(digits) if digits.isdigit() and path.name == file_name(int(digits)) else None


def checksum(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of the bytes of a tensor."""
    flat = tensor.contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def write(folder: Path, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> Path:
    """Write a shard whole or not at all.

    Args:
        folder: folder of the store.
        number: number of the shard.
        tensors: tensors in main memory.
        about: everything else about the shard, as JSON.

    Raises:
        StoreError: when the folder cannot be written to, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    description = {"format": FORMAT, "shard": number, **about}
    stored = {name: packed(tensor) for name, tensor in tensors.items()}
    tensors = {name: tensor for name, (tensor, _) in stored.items()}
    description["types"] = {name: kind for name, (_, kind) in stored.items() if kind}
    description["sha256"] = {name: checksum(tensor) for name, tensor in tensors.items()}
    path = folder / file_name(number)
    try:
        with whole(path, durable=True) as file:
            about = {"layerlens": json.dumps(description), "header sha256": HOLE.decode()}
            save_file(dict(tensors), Path(file.name), metadata=about)
            _sign(Path(file.name))
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path} cannot be written ({error.__cause__ or error}). Finished shards are kept: fix this and start the "
            "run again."
        ) from error
    return path


def _header(path: Path) -> tuple[bytes, bytes]:
    """Return the header of a file with a hole for its checksum, and the checksum in it.

    Raises:
        ValueError: when it has none, or is too long.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError("its header is too long")
        header = file.read(length)
    start = header.find(HEADER) + len(HEADER)
    if start < len(HEADER):
        raise ValueError("its header has no checksum")
    return header[:start] + HOLE + header[start + len(HOLE) :], header[start : start + len(HOLE)]


def _sign(path: Path) -> None:
    """Write the checksum of a header into it."""
    header, _ = _header(path)
    with open(path, "r+b") as file:
        file.seek(8 + header.find(HEADER) + len(HEADER))
        file.write(hashlib.sha256(header).hexdigest().encode())


class ShardFile:
    """A shard that is read in parts.

    Args:
        path: its file.
        number: number of the shard.
        run: number of the run that it is of.

    Raises:
        StoreError: when the file is missing, damaged, not a shard, or of another place or run.
    """

    def __init__(self, path: Path, number: int, run: str) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            header, checksum = _header(path)
            opened: Any = safe_open(str(path), framework="pt")  # checks that the file is complete
            self.about: dict[str, Any] = parse_json((opened.metadata() or {})["layerlens"])
            if self.about["format"] != FORMAT:
                raise StoreError(f"{path} has format {self.about['format']!r}; this layerlens reads {FORMAT!r}.")
            if hashlib.sha256(header).hexdigest().encode() != checksum:
                raise ValueError("its header is not what was written, SHA-256")
            self._layout: dict[str, Any] = parse_json(header)
            length = len(header)
            if (self.about["run"], self.about["shard"]) != (run, number):
                what = f"shard {self.about['shard']}" if self.about["run"] == run else "a shard of another run"
                raise StoreError(f"{path} holds {what}. Remove the file and run again to recompute just this shard.")
            self._first, self.names = 8 + length, list(opened.keys())
            self._types = {name: type_named(kind) for name, kind in self.about["types"].items()}
            self._views: dict[str, torch.Tensor] = {}
        except FileNotFoundError as error:
            raise StoreError(f"there is no file {path}: the shard was not made, or was removed.") from error
        except StoreError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise StoreError(
                f"{path} is not a shard of layerlens, or is damaged ({error}). Remove the file and run again to "
                "recompute just this shard."
            ) from error

    def view(self, name: str) -> torch.Tensor:
        """Return a tensor whose numbers are read from the file on use; writing to it does not change the file."""
        if name not in self._views:
            entry = self._layout[name]
            start, stop = (self._first + offset for offset in entry["data_offsets"])
            if start % self._dtype(name).itemsize:  # some operations of torch crash on numbers that are not aligned
                return self._views.setdefault(name, self.tensor(name))
            # copy on write: torch warns about tensors from a read-only mapping
            with self._opened_file():
                some = stop > start
                mapped = np.memmap(self.path, np.uint8, "c", start, (stop - start,)) if some else np.empty(0, np.uint8)
            flat = torch.from_numpy(np.asarray(mapped)).view(self._dtype(name))
            self._views[name] = flat.reshape(self.shape(name))
        return self._views[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, in memory."""
        block = torch.empty(self.shape(name), dtype=self._dtype(name))
        self.read(name, block)
        return block

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows of a tensor, from `start`, into an existing contiguous tensor.

        Raises:
            EOFError: when the file ends too early; callers see a `StoreError`.
        """
        if into.numel():
            row = into[0].numel() * into.itemsize if into.ndim else into.itemsize
            with self._opened_file(), open(self.path, "rb") as file:
                file.seek(self._first + self._layout[name]["data_offsets"][0] + start * row)
                if file.readinto(into.reshape(-1).view(torch.uint8).numpy().data) != into.numel() * into.itemsize:
                    raise EOFError("it ends too early")

    @contextlib.contextmanager
    def _opened_file(self) -> Iterator[None]:
        """Read a file that was complete when it was opened.

        Yields:
            Nothing.

        Raises:
            StoreError: when it was removed or changed since.
        """
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            raise StoreError(
                f"{self.path} was removed or changed while it was read ({error}). Open the store again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        stored = tuple(self._layout[name]["shape"])
        return stored[:-1] if name in self._types else stored

    def _dtype(self, name: str) -> torch.dtype:
        return self._types[name] if name in self._types else DTYPES[self._layout[name]["dtype"]]

    def verify(self) -> None:
        """Compare the header and every tensor with their checksums.

        Raises:
            StoreError: when one differs; names it.
        """
        ShardFile(self.path, self.about["shard"], self.about["run"])
        for name in self.names:
            if checksum(self.view(name)) != self.about["sha256"].get(name):
                raise StoreError(
                    f"{self.path}: the bytes of {name!r} are not those that were written (SHA-256). Remove the file "
                    "and run again to recompute just this shard."
                )
