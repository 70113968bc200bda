"""Calls that are whole: an interrupt waits until nothing is half done, a thread until no other one has its turn.

An interrupt is an exception that a signal handler raises, such as KeyboardInterrupt: between any two steps of Python,
also inside of a `finally`. While layerlens runs, such an exception is held back and raised where the model could have
raised one: before the next pass or step (`raise_held`), or at the end of the call. Handlers that raise nothing run at
once. If that takes longer than `GRACE` seconds it is raised as soon as code of the model, or of the user, runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from _signal import getsignal as _handler_of, signal as _set_handler  # type: ignore[import-not-found]
from _thread import get_ident, interrupt_main, start_new_thread
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast

from .errors import LayerLensError

P = ParamSpec("P")
Value = TypeVar("Value")
Class = TypeVar("Class", bound=type[Any])
Handler: TypeAlias = Callable[[int, FrameType | None], Any]

GRACE = 0.5
"""Seconds that an interrupt is held back before it may end code of the model in the middle."""

PATIENCE = 10.0
"""Seconds that a thread waits for one that waits for other threads itself."""

_SIGNALS = [number for number in sorted(signal.valid_signals()) if number < 32]  # without those of real time
_replaced: list[tuple[int, Handler, Handler]] = []
_held: list[BaseException] = []
_guards = 0
_given = False  # whether what is held back was raised
_reminder = 0
_lock = threading.RLock()
_owner = 0
_main = threading.main_thread().ident or 0


def raise_held() -> None:
    """Raise the interrupt that is held back, if any; for moments at which any exception is well."""
    if _held and get_ident() == _main:
        raise _raised()


class Interrupted(BaseException):
    """An Exception that a signal handler raised, on its way out of layerlens, where nothing takes it for another."""


class _Guard:
    """A `with` block that no interrupt cuts short, in a function of layerlens."""

    def __enter__(self) -> None:
        _begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        _end(error, sys._getframe(2))


class _Turn:
    """A `with` block of one thread at a time, which no interrupt cuts short; a thread may nest them."""

    def __enter__(self) -> None:
        global _owner
        _begin()
        try:
            if not _lock.acquire(blocking=False):
                _wait()
            _owner = get_ident()
        except BaseException as error:
            _end(error, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        _lock.release()
        _end(error, sys._getframe(2))


guarded = _Guard()
"""`with guarded:` no interrupt cuts the block short."""
turn = _Turn()
"""`with turn:` the same, and no other thread is in such a block."""


def whole(kind: Class) -> Class:
    """Let no interrupt cut short how a context manager is entered and left; its block can be interrupted.

    Args:
        kind: class with `__enter__` and `__exit__`.
    """
    enter, leave = kind.__enter__, kind.__exit__

    @functools.wraps(enter)
    def enter_whole(self: Any) -> Any:
        return _enter(guarded, functools.partial(enter, self), functools.partial(leave, self))

    @functools.wraps(leave)
    def leave_whole(self: Any, *details: Any) -> Any:
        return _leave(guarded, functools.partial(leave, self), details)

    kind.__enter__, kind.__exit__ = enter_whole, leave_whole
    return kind


class _Context(Generic[Value]):
    """A context manager made of a generator, in a turn."""

    def __init__(self, made: contextlib.AbstractContextManager[Value]) -> None:
        self._made = made

    def __enter__(self) -> Value:
        return cast(Value, _enter(turn, self._made.__enter__, self._made.__exit__))

    def __exit__(self, *details: Any) -> bool | None:
        return cast("bool | None", _leave(turn, self._made.__exit__, details))


def in_turn(function: Callable[P, Iterator[Value]]) -> Callable[P, _Context[Value]]:
    """Make a context manager of a generator, as contextlib does: one thread at a time, entered and left whole."""
    make = contextlib.contextmanager(function)

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> _Context[Value]:
        return _Context(make(*args, **kwargs))

    return made


def _enter(around: _Guard | _Turn, enter: Callable[[], Any], leave: Callable[..., Any]) -> Any:
    around.__enter__()
    try:
        value = enter()
        if _held and not _of_layerlens(sys._getframe(2)):
            try:
                raise_held()
            except BaseException as error:
                leave(type(error), error, None)
                raise
        return value
    except BaseException as error:
        around.__exit__(type(error), error, None)
        raise


def _leave(around: _Guard | _Turn, leave: Callable[..., Any], details: tuple[Any, ...]) -> Any:
    try:
        handled = leave(*details)
    except BaseException as error:
        around.__exit__(type(error), error, None)
        raise
    around.__exit__(*((None, None, None) if handled else details))
    return handled


def _begin() -> None:
    """Replace the handlers of signals, unless they are replaced."""
    global _guards
    if get_ident() != _main:
        return
    if _guards:
        _guards += 1
        return
    try:
        _guards = 1
        for number, handler in zip(_SIGNALS, map(_handler_of, _SIGNALS), strict=True):
            if handler.__class__ is not int and callable(handler):
                held = functools.partial(_handle, handler)
                _replaced.append((number, held, handler))
                _set_handler(number, held)
    except ValueError:  # an embedded Python whose signals another thread handles
        _replaced.clear()
    except BaseException:
        _guards = 0
        _restore_handlers()
        raise


def _end(error: BaseException | None, caller: FrameType | None) -> None:
    """Restore the handlers when the last guard ends, and raise what was held back unless layerlens is the caller.

    Args:
        error: the exception that ends the block.
        caller: frame of the caller.
    """
    global _given, _guards
    if get_ident() != _main:
        return
    _guards -= 1
    if _guards and (not _held or _of_layerlens(caller)):
        return
    if _held:
        _given = True
        until = time.monotonic() + 0.1
        while _reminder and time.monotonic() < until:  # a signal is on its way
            time.sleep(0)
    try:
        if not _guards:
            _restore_handlers()
    finally:
        first = _held[0] if _held else None
        _held.clear()
    if first is not None and error is not first:
        raise first


def _raised() -> BaseException:
    """What is raised for the interrupt that is held back, until the call ends."""
    global _given
    _given, first = True, _held[0]
    return Interrupted(first) if isinstance(first, Exception) else first


def _restore_handlers() -> None:
    try:
        while _replaced:
            number, held, handler = _replaced[-1]
            if _handler_of(number) is held:
                _set_handler(number, handler)
            _replaced.pop()
    finally:  # an interrupt may have come just now
        if _replaced:
            _restore_handlers()


def _of_layerlens(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, is of this package."""
    while frame is not None:
        if _module(frame).partition(".")[0] == "layerlens":
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _ends_well(frame: FrameType | None) -> bool:
    """Whether an exception of this frame is one of the model or the user, not of what layerlens or torch set up."""
    name = "" if frame is None else _module(frame)
    first = name.partition(".")[0]
    return first not in ("layerlens", "contextlib") and (first != "torch" or name.startswith("torch.nn."))


def _handle(handler: Handler, number: int, frame: FrameType | None) -> None:
    """Run the user's handler of a signal; hold back what it raises while layerlens runs."""
    global _given, _reminder
    if _reminder == number:
        _reminder = 0
        if _held and not _of_layerlens(frame):
            raise _held.pop(0)
        if _held and _ends_well(frame):
            raise _raised()
        return
    try:
        handler(number, frame)
    except BaseException as error:
        if not _of_layerlens(frame):
            raise
        _held.append(error.with_traceback(None))
        if len(_held) == 1:
            _given = False
            with contextlib.suppress(RuntimeError):  # no further thread
                start_new_thread(_remind, (number, error))


def _remind(number: int, error: BaseException) -> None:
    """Send a signal again from time to time until what its handler raised is raised."""
    global _reminder
    time.sleep(GRACE)
    while True:
        _reminder = number
        if _given or not _held or _held[0] is not error:
            _reminder = 0
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(_main, number)
        else:
            interrupt_main(signal.Signals(number))
        time.sleep(0.05)


def _wait() -> None:
    """Wait for the lock.

    Raises:
        LayerLensError: when the thread that has it waits for other threads, perhaps this one.
    """
    seen: tuple[FrameType, int] | None = None
    since = time.monotonic()
    while not _lock.acquire(timeout=0.05):
        raise_held()
        frame = sys._current_frames().get(_owner)
        now = None if frame is None else (frame, frame.f_lasti)
        if now != seen or frame is None or _module(frame).partition(".")[0] not in _WAITING:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise LayerLensError(
                f"this thread waits for its turn, which another one has that has waited for {PATIENCE:.0f} s itself "
                f"({_module(frame)}.{frame.f_code.co_name}). One thread at a time runs an analysis: a forward pass, or "
                "a `with borrowed(model)` block, must not wait for a thread that starts one. Run that one first."
            )


_WAITING = {"threading", "queue", "concurrent", "multiprocessing", "asyncio", "selectors"}
"""Modules in whose functions a thread waits for others."""


def _after_fork() -> None:
    """Give a child process a free lock, unless the thread that it comes from has it."""
    global _lock, _main
    _main = get_ident()
    if _owner != get_ident():
        _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
