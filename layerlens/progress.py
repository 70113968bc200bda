"""A progress bar for long work: one line on stderr, in terminals only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TypeVar

Item = TypeVar("Item")

WIDTH = 20
"""Characters of the bar."""

WAIT = 0.5
"""Seconds before the bar appears, so that short work writes nothing."""

INTERVAL = 0.1
"""Seconds between two updates."""


def track(
    iterable: Iterable[Item],
    label: str,
    total: int | None = None,
    enabled: bool | None = None,
    *,
    weigh: Callable[[Item], int] | None = None,
) -> Generator[Item, None, None]:
    """Yield the items, and show on stderr how many of them are done.

    The line is removed at the end, also after an error or Ctrl-C in the loop.

    Args:
        iterable: the items.
        label: name of the work.
        total: number of items; None for `len(iterable)`; without either only the count is shown.
        enabled: True shows the bar at once, also outside terminals, False never; None (default) shows it in a terminal
            if the work takes longer than half a second.
        weigh: number of samples in an item, if `total` counts samples; the bar then shows samples per second.

    Yields:
        The items.

    Example:
        >>> sum(track([1, 2, 3], "adding"))
        6
    """
    stream = sys.stderr
    if enabled is None and (stream is None or not stream.isatty()):
        enabled = False
    if enabled is False or stream is None:
        yield from iterable
        return
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    start = time.monotonic()
    shown, after, done = 0, start if enabled else start + WAIT, 0
    try:
        for item in iterable:
            now = time.monotonic()
            if now >= after:
                line = _line(label, done, total, now - start, rate=weigh is not None)
                stream.write("\r" + line.ljust(shown))
                stream.flush()
                shown, after = len(line), now + INTERVAL
            yield item
            done += 1 if weigh is None else weigh(item)
    finally:
        if shown:
            stream.write("\r" + " " * shown + "\r")
            stream.flush()


def _line(label: str, done: int, total: int | None, seconds: float, rate: bool) -> str:
    speed = f", {done / seconds:.3g}/s" if rate and done and seconds > 0 else ""
    if not total:
        return f"{label}  {done}  {seconds:.0f} s{speed}"
    filled = min(WIDTH, WIDTH * done // total)
    left = f", {seconds / done * max(total - done, 0):.0f} s left" if done else ""
    return f"{label}  [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}  {seconds:.0f} s{speed}{left}"
