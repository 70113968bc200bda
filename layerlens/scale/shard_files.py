"""One shard on disk: a safetensors file that is there as a whole or not at all, with a checksum of every tensor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import StoreError
from ..results.files import umask

FORMAT = "layerlens-shard/1"
DIGITS = 6


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
    """
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
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
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
            opened: Any = safe_open(str(path), framework="pt")
            self._file = opened
            self.about: dict[str, Any] = json.loads((opened.metadata() or {})["layerlens"])
            if self.about["format"] != FORMAT:
                raise StoreError(f"{path} has format {self.about['format']!r}; this layerlens reads {FORMAT!r}.")
            self.names = list(opened.keys())
        except FileNotFoundError as error:
            raise StoreError(f"there is no file {path}: the shard was never made, or was removed.") from error
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{path} is no shard of layerlens, or is damaged ({error}). Remove the file and run again to make just "
                "this shard anew."
            ) from error

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        found: torch.Tensor = self._file.get_tensor(name)
        return found

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of a tensor, without reading the others."""
        found: torch.Tensor = self._file.get_slice(name)[start:stop]
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._file.get_slice(name).get_shape())

    def verify(self) -> None:
        """Compare every tensor with its checksum.

        Raises:
            StoreError: when one differs; names it.
        """
        for name in self.names:
            if checksum(self.tensor(name)) != self.about["sha256"].get(name):
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
