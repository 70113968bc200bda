"""Atomic writes: a reader sees the old content or the new one, and nothing is left behind after an error."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from layerlens.errors import ResultFileError

FORMATS = frozenset(
    """bmp csv feather gif h5 hdf5 htm html jpeg jpg json jsonl md npy npz onnx parquet pdf pickle pkl png pt pth
    safetensors svg tif tiff tsv txt webp xls xlsx yaml yml zip""".split()
)
"""Endings of files by which a reader knows what they hold."""


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
    """
    owner = f".{socket.gethostname()}.{os.getpid()}.tmp"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=owner)
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
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files of killed processes of this machine."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
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
