"""Work that is done meanwhile in a thread: reading what comes next, writing what is finished."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()
PATIENCE = 1.0
"""Seconds that an end, as by Ctrl-C, waits for a sample that is being read; its thread ends by itself after it."""


def ahead(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items, of which up to `depth` are made in a thread before they are asked for.

    An error among them is raised where the item would have come. When the reader stops early, the
    thread ends after the item that it is at.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:
            put(_END, error)

    thread = threading.Thread(target=work, name="layerlens-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            del item
    finally:
        stop.set()
        thread.join(PATIENCE)


class Writer:
    """Calls that are made in a thread, in their order, one at a time and at most one waiting.

    Used as a context: at its end every call has been made, also after an error or Ctrl-C in the block. An error of a
    call is raised at the next one, or at the end.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="layerlens-writer", daemon=True)

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    call()
                except BaseException as error:
                    self._error = error
            del call

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call, later.

        Raises:
            Exception: what an earlier call raised.
        """
        self._raise()
        self._waiting.put(call)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
