"""Atomic writes: a reader sees the old content or the new one, and nothing is left behind after an error."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the `with` block ends, and is removed after an error or Ctrl-C in it.

    Yields:
        The file, to be written; other writers may use its `name`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        with open(temporary, "wb") as file:
            yield file
        os.chmod(temporary, 0o666 & ~umask())  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def umask() -> int:
    """Return the permissions that new files of this process do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
