"""Atomic writes: a reader sees the old content or the new one, and nothing is left behind after an error."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import math
import os
import socket
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from layerlens.errors import ResultFileError, WriteError

FORMATS = frozenset(
    """bmp csv feather gif h5 hdf5 htm html jpeg jpg json jsonl md npy npz onnx parquet pdf pickle pkl png pt pth
    safetensors svg tif tiff tsv txt webp xls xlsx yaml yml zip""".split()
)
"""Endings of files by which a reader knows what they hold."""
FREELY = 2**28
"""Bytes that a compressed file may hold whatever its size is."""
MOST_RATIO = 20
"""Bytes that a larger one may hold for each of its own."""


def with_ending(path: str | os.PathLike[str], own: str, what: str, instead: str) -> Path:
    """Return a path with the ending of the format that is written; one that has the ending of another is refused.

    Args:
        path: where the user wants the file.
        own: the ending, such as `".npz"`.
        what: what is written.
        instead: how to write the other formats.

    Raises:
        ResultFileError: when the path ends like another format.

    Example:
        >>> with_ending("run.v2", ".npz", "a result", "").name
        'run.v2.npz'
    """
    given = Path(path)
    if given.suffix.lower() == own:
        return given
    if given.suffix.lower().removeprefix(".") in FORMATS:
        raise ResultFileError(
            f"cannot write {given}: {what} is written as {own}, not as {given.suffix}. Give {given.stem + own!r}"
            f"{instead}."
        )
    return given.with_name(given.name + own)


def read_json(path: Path, most: int) -> Any:
    """Read a small JSON file.

    Raises:
        ValueError: when it is larger than `most` bytes, is nested too deeply, or is not JSON.
        OSError: when it cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return parse_json(content)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: when it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an npz file, or of an npy file under the name "", in memory bounded by the size of the file.

    Every size is compared with what the file holds before memory is allocated; nothing in it is run.

    Raises:
        ValueError: when it is damaged, or holds objects, two arrays of one name, or much more than a file of its size.
        OSError: when it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if path.suffix.lower() == ".npy":
            return {"": _read_array(file, size)}
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            whole_size = sum(entry.file_size for entry in entries)
            if whole_size > max(FREELY, MOST_RATIO * size):
                raise ValueError(f"it says that its {size:,} bytes hold {whole_size:,}")
            if len({entry.filename for entry in entries}) < len(entries):
                raise ValueError("it holds two arrays of one name")
            found = {}
            for entry in entries:
                with archive.open(entry) as part:
                    found[entry.filename.removesuffix(".npy")] = _read_array(part, entry.file_size)
    return found


def _read_array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """Read one array of a file of some size.

    Raises:
        ValueError: when the size is another one, or it holds objects.
    """
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the npy format")
    shape, by_column, dtype = readers[version](file)
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"an array {shape} of {dtype}")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"an array {shape} of {dtype} is not of {size:,} bytes")
    array = np.frombuffer(bytearray(file.read()), dtype=dtype)
    return array.reshape(shape[::-1]).T if by_column else array.reshape(shape)


@contextlib.contextmanager
def whole(path: Path, *, replace: bool = True, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` when the `with` block ends, and is removed after an error or Ctrl-C in it.

    Args:
        path: where the file appears.
        replace: whether an existing file is replaced; if not, it is kept.
        durable: whether to wait until the file is on the disk, so that it outlasts a crash of the machine.

    Yields:
        The file, to be written; other writers may use its `name`.

    Raises:
        FileExistsError: when there is a file that must not be replaced.
        WriteError: when the file cannot be written, with the reason.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:20]}.", suffix=f"-{owner()}.tmp")
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        raise WriteError(_why_not(path, error)) from error
    os.close(handle)
    try:
        with open(temporary, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        if durable:
            _sync(Path(temporary))
        if replace:
            os.replace(temporary, path)
        else:
            _move(temporary, path)
        if durable:
            _sync(path.parent)
    except (FileExistsError, WriteError):
        raise
    except OSError as error:
        raise WriteError(_why_not(path, error)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _why_not(path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or error
    return f"cannot write {printable(path)}: {no_place(path) or f'{why}.'}"


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are of one file, through links and in any spelling."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def printable(path: Path) -> str:
    """Return a path as text that can be printed."""
    return str(path).encode(errors="backslashreplace").decode()


def no_place(path: Path) -> str:
    """Say why there is no place for a file of this path; the empty string if there is one."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_dir():
            return "it is a folder. Give the name of a file in it."
        if path.parent.exists() and not path.parent.is_dir():
            return f"{path.parent} is a file, not a folder."
        if not path.parent.exists():
            return f"the folder {path.parent} does not exist. Make it first."
    return ""


@functools.cache
def _machine() -> str:
    """Return a digest of what differs between machines, and between containers that share a host name."""
    parts = [socket.gethostname(), str(uuid.getnode())]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def owner() -> str:
    """Return the end of the names of temporary files of this process, before `.tmp`."""
    return f"{_machine()}.{socket.gethostname()}.{os.getpid()}"


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed processes of this machine, of which a container counts as one."""
    end = f".{socket.gethostname()}."
    for path in folder.glob(f".*{glob.escape(end)}*.tmp"):
        machine, _, process = path.name.removesuffix(".tmp").rpartition(end)
        tag = machine.rpartition("-")[2]
        foreign = len(tag) == len(_machine()) and tag != _machine()
        if process.isdigit() and not foreign and not _is_running(int(process)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _move(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename, this fails if another process was first
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
