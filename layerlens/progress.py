"""Progress bars for long work: those of tqdm, in terminals and notebooks."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sized
from typing import Any, TypeVar

with warnings.catch_warnings():  # a notebook without ipywidgets gets the bar of a terminal
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm
    from tqdm.autonotebook import tqdm as chosen_bar
from tqdm.std import tqdm as terminal_bar

from .turns import raise_held

Item = TypeVar("Item")

WAIT = 0.5
"""Seconds before the bar appears, so that short work writes nothing."""

IN_NOTEBOOK = chosen_bar is not terminal_bar
"""Whether bars are widgets of a notebook."""

_ASKED: contextvars.ContextVar[bool | None] = contextvars.ContextVar("progress", default=None)


@contextlib.contextmanager
def showing(enabled: bool | None) -> Generator[None, None, None]:
    """Let every `track` inside show its bar, or not; None changes nothing.

    Example:
        >>> with showing(False):
        ...     sum(track([1, 2, 3], "adding"))
        6
    """
    if enabled is None:
        yield
        return
    token = _ASKED.set(enabled)
    try:
        yield
    finally:
        _ASKED.reset(token)


def track(
    iterable: Iterable[Item],
    label: str,
    total: int | None = None,
    enabled: bool | None = None,
    *,
    weigh: Callable[[Item], int] | None = None,
) -> Generator[Item, None, None]:
    """Yield the items, and show how many of them are done.

    The bar is removed at the end, also after an error or Ctrl-C in the loop. Bars of nested loops are shown below one
    another.

    Args:
        iterable: the items.
        label: name of the work.
        total: number of items; None for `len(iterable)`; without either only the count is shown.
        enabled: True shows the bar at once, also outside of terminals, False never; None (default) does what
            `showing` says, or else shows it if the work takes longer than half a second, in a terminal or a notebook
            that a person runs.
        weigh: number of samples in an item, if `total` counts samples.

    Yields:
        The items.

    Example:
        >>> sum(track([1, 2, 3], "adding"))
        6
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with counting(label, total, enabled, unit="steps" if weigh is None else "samples") as done:
        for item in iterable:
            raise_held()  # before the first item too
            yield item
            done(1 if weigh is None else weigh(item))


@contextlib.contextmanager
def counting(
    label: str, total: int | None, enabled: bool | None = None, *, unit: str = "steps"
) -> Generator[Callable[[int], object], None, None]:
    """Show how much of some work is done, by what is said to the function that this yields; see `track`.

    Yields:
        A function of the number of steps that were done since it was last called. It raises an interrupt that was held
        back: call it where nothing is half done.

    Example:
        >>> with counting("adding", total=3) as done:
        ...     done(3)
    """
    if enabled is None:
        enabled = _ASKED.get()
    stream = sys.stderr
    watched = _attended() if IN_NOTEBOOK else stream is not None and stream.isatty()
    if stream is None or not (watched if enabled is None else enabled):
        yield lambda count: raise_held()
        return
    with tqdm(
        desc=label.replace("_", " "),
        total=total,
        unit=f" {unit}",
        leave=False,
        delay=0 if enabled else WAIT,
        file=stream,
        dynamic_ncols=True,
    ) as bar:

        def done(count: int) -> None:
            raise_held()
            bar.update(count)

        yield done


def _attended() -> bool:
    """Whether somebody could be asked in the notebook; not where nbclient or papermill run it, which keep the bar."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return bool(request.get("content", {}).get("allow_stdin", True))
