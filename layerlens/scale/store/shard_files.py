"""One shard on disk: a safetensors file that is there as a whole or not at all, with a checksum of every tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerlens.errors import StoreError
from layerlens.files import umask

FORMAT = "layerlens-shard/1"
DIGITS = 6
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
"""The names of types in safetensors."""


def file_name(number: int) -> str:
    """The name of the file of a shard."""
    return f"shard-{number:0{DIGITS}d}.safetensors"


def number_of(path: Path) -> int | None:
    """The shard that a file holds; None for other files."""
    digits = path.name.removeprefix("shard-").removesuffix(".safetensors")
    return int(digits) if digits.isdigit() and path.name == file_name(int(digits)) else None


def checksum(tensor: torch.Tensor) -> str:
    """The SHA-256 of the bytes of a tensor."""
    plain = tensor.contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().data if plain.numel() else b"").hexdigest()


def write(folder: Path, number: int, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> Path:
    """Write a shard in one step; a process that is killed leaves no part of it under its name.

    Args:
        folder: of the store.
        number: of the shard.
        tensors: in main memory.
        about: what else is known of it, as JSON.

    Raises:
        StoreError: when the folder cannot be written to, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {"format": FORMAT, "shard": number, **about}
    whole["sha256"] = {name: checksum(tensor) for name, tensor in tensors.items()}
    path = folder / file_name(number)
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        save_file(dict(tensors), temporary, metadata={"layerlens": json.dumps(whole)})
        os.chmod(temporary, 0o666 & ~umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, (OSError, SafetensorError)):
            raise StoreError(
                f"{path} cannot be written ({error}). What was finished is kept: mend this, and start the run again."
            ) from error
        raise
    return path


def sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not _lives(int(process)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


class ShardFile:
    """A shard that is read by parts.

    Raises:
        StoreError: when the file is missing, damaged, or no shard.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            opened: Any = safe_open(str(path), framework="pt")  # sees whether the file is whole
            self.about: dict[str, Any] = json.loads((opened.metadata() or {})["layerlens"])
            if self.about["format"] != FORMAT:
                raise StoreError(f"{path} has format {self.about['format']!r}; this layerlens reads {FORMAT!r}.")
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self._layout: dict[str, Any] = json.loads(file.read(length))
            self._first, self.names = 8 + length, list(opened.keys())
            self._views: dict[str, torch.Tensor] = {}
        except FileNotFoundError as error:
            raise StoreError(f"there is no file {path}: the shard was never made, or was removed.") from error
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{path} is no shard of layerlens, or is damaged ({error}). Remove the file and run again to make just "
                "this shard anew."
            ) from error

    def view(self, name: str) -> torch.Tensor:
        """A tensor whose numbers are read from the file when they are used; writing to it does not reach the file."""
        if name not in self._views:
            place = self._layout[name]
            start, stop = (self._first + offset for offset in place["data_offsets"])
            # copy on write: a mapping for reading alone would make tensors that torch warns about
            with self._there():
                some = stop > start
                mapped = np.memmap(self.path, np.uint8, "c", start, (stop - start,)) if some else np.empty(0, np.uint8)
            flat = torch.from_numpy(np.asarray(mapped)).view(DTYPES[place["dtype"]])
            self._views[name] = flat.reshape(place["shape"])
        return self._views[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor, in memory."""
        place = self._layout[name]
        block = torch.empty(place["shape"], dtype=DTYPES[place["dtype"]])
        self.read(name, block)
        return block

    def read(self, name: str, into: torch.Tensor, start: int = 0) -> None:
        """Read rows of a tensor, from `start` on, into memory that is there: `into`, contiguous, says how many."""
        if into.numel():
            row = into[0].numel() * into.itemsize if into.ndim else into.itemsize
            with self._there(), open(self.path, "rb") as file:
                file.seek(self._first + self._layout[name]["data_offsets"][0] + start * row)
                if file.readinto(into.reshape(-1).view(torch.uint8).numpy().data) != into.numel() * into.itemsize:
                    raise OSError("it ends too early")

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """Reading a file that was whole when it was opened.

        Raises:
            StoreError: when it was removed or cut since.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{self.path} was removed or changed while it was read ({error}). Open the store again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._layout[name]["shape"])

    def verify(self) -> None:
        """Compare every tensor with its checksum.

        Raises:
            StoreError: when one differs; names it.
        """
        for name in self.names:
            if checksum(self.view(name)) != self.about["sha256"].get(name):
                raise StoreError(
                    f"{self.path}: the bytes of {name!r} are not those that were written (SHA-256). Remove the file "
                    "and run again to make just this shard anew."
                )


def _sync(path: Path) -> None:
    """See that what was written stands on the disk, so that a machine that goes down loses no finished shard."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(handle)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
