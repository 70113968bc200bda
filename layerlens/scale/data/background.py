"""Work in background threads: reading the next items, writing finished shards."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()
QUICK = 0.002
"""Seconds of reading after which the items that were read are handed on."""
MOMENT = 0.01
"""Seconds of using a list of items up to which the next list may be longer."""
SLOW = 0.05
"""Seconds of reading items one by one after which a thread reads them."""
PATIENCE = 1.0
"""Seconds to wait, on Ctrl-C, for a sample that is being read; its thread then ends by itself."""


def read_ahead(items: Iterator[Item], depth: int = 2) -> Generator[list[Item], None, None]:
    """Yield the items of an iterator in lists: as many together as are read and used in a moment.

    After `SLOW` seconds of items that are not quick, a thread reads the others, up to `depth` of them in advance; for
    quick ones that takes longer than reading them. An error is raised where its item would be. When the consumer stops
    early, the thread ends after the current item.

    Yields:
        Lists of items, in order.
    """
    slow, in_a_row, most = 0.0, 0, 1
    failed: BaseException | None = None
    ended = False
    while not ended and (in_a_row < 2 or slow < SLOW * (10 if in_a_row < 4 else 1)):  # a few may wait for other reasons
        found: list[Item] = []
        start = time.perf_counter()
        try:
            for item in items:
                found.append(item)
                del item
                if len(found) >= most or time.perf_counter() - start > QUICK:
                    break
            else:
                ended = True
        except BaseException as error:
            failed, ended = error, True
        begun = time.perf_counter()
        in_a_row = in_a_row + 1 if len(found) == 1 and begun - start > QUICK else 0
        slow = slow + begun - start if in_a_row else 0.0
        if found:
            yield found
            most = 2 * most if time.perf_counter() - begun < MOMENT else 1
    if failed is not None:
        raise failed
    if not ended:
        yield from _in_thread(items, depth)


def _in_thread(items: Iterator[Item], depth: int) -> Generator[list[Item], None, None]:
    """Read items in a thread.

    Yields:
        Each item, in a list.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def add(item: Any, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((item, error), timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not add(item):
                    return
            add(_END)
        except BaseException as error:
            add(_END, error)

    thread = threading.Thread(target=work, name="layerlens-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield [item]
            del item
    finally:
        stop.set()
        thread.join(PATIENCE)


class Writer:
    """Makes calls in a thread, in order, one at a time, with at most one waiting.

    When its `with` block ends, every call has been made, also after an error or Ctrl-C in the block. An error of a
    call is raised at the next call, or at the end.
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
        """Add a call.

        Raises:
            Exception: the error of an earlier call.
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
