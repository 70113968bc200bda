"""Every error that layerlens raises on purpose: what failed, what was given, what to try."""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any

AGAIN = "_layerlens_again"
"""Attribute of an error after which the same call works: the model was found to differentiate inside of its forward."""


class LayerLensError(Exception):
    """Base of all errors of layerlens; catch it to catch them all."""


class LayerNotFound(LayerLensError, LookupError):
    """A layer name, pattern or predicate matched no layer of the model."""


class SelectionError(LayerLensError, TypeError):
    """A layer selection has a type that cannot be understood."""


class RecordError(LayerLensError, LookupError):
    """A record was asked for something it does not hold."""


class OverwrittenError(RecordError):
    """A recorded tensor was changed in place by a later operation before it was read."""


class InputError(LayerLensError, ValueError):
    """The model input is of a kind that the analyzer cannot use."""


class TargetError(LayerLensError, ValueError):
    """The target does not fit the model's output."""


class AxesUnknown(LayerLensError, LookupError):
    """What an axis of a tensor holds is not known, and the analyzer needs to know it."""


class OptionError(LayerLensError, ValueError):
    """An option has a value outside of those that exist."""


class UnknownOption(OptionError, TypeError):
    """A function was called with an option that it does not have."""


class RelevanceError(LayerLensError, RuntimeError):
    """Relevance could not be propagated through the model."""


class UnknownOperation(RelevanceError):
    """The graph holds an operation for which no relevance rule is known."""


class ResultFileError(LayerLensError, ValueError):
    """A file does not hold a result of layerlens, or is damaged."""


class WriteError(ResultFileError, OSError):
    """A file cannot be written: no space, no permission, or a name that the file system does not take."""


class StoreError(LayerLensError, ValueError):
    """A store is missing, damaged, incomplete, foreign, or holds another run than the one asked for."""


class SampleError(LayerLensError, RuntimeError):
    """One sample of a data set could not be read, or the analyzer failed on it."""


class PlotError(LayerLensError, ValueError):
    """The data cannot be drawn as asked."""


class MissingPackage(LayerLensError, ImportError):
    """An optional package is needed and not installed."""


def closest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like `name`, best first; at most `count`."""
    pool = list(dict.fromkeys(str(entry) for entry in names))
    lowered = {entry.lower(): entry for entry in reversed(pool)}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=count, cutoff=0.4)
    return [lowered[entry] for entry in near]


def suggestion(name: str, names: Iterable[str]) -> str:
    """`' Closest: a, b.'`, or the empty string when nothing is near."""
    near = closest(name, names)
    return f" Closest: {', '.join(near)}." if near else ""


def choose(what: str, value: object, options: Iterable[str]) -> str:
    """Check that `value` is one of `options` and return it.

    Raises:
        OptionError: with the options and the nearest of them.
    """
    known = list(options)
    if isinstance(value, str) and value in known:
        return value
    near = suggestion(value, known) if isinstance(value, str) else ""
    raise OptionError(f"unknown {what} {value!r}.{near} Known: {', '.join(known)}.")


def check_count(name: str, value: object, *, least: int = 1, also: str = "") -> None:
    """Check that an option is a whole number, at least 1, or `least`.

    Raises:
        OptionError: when it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        other = f" or {also}" if also else ""
        raise OptionError(f"{name} must be a whole number of at least {least}{other}, got {value!r}.")


def check_seed(seed: object) -> None:
    """Check that a seed is a whole number.

    Raises:
        OptionError: when it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise OptionError(f"seed must be a whole number, got {seed!r}.")


def need(package: str, what: str, extra: str | None = None) -> Any:
    """Import an optional package, whose extra is named as it is, or `extra`.

    Raises:
        MissingPackage: when it is not installed; says that `what` needs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(f"{what} needs {package}: pip install 'layerlens-torch[{extra or package}]'.") from error


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the caller that entered layerlens, however deep the warning arises.

    Args:
        message: text of the warning.
        category: class of the warning.
    """
    frame: FrameType | None = sys._getframe(1)
    level, depth = 1, 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "layerlens":
            level = depth
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=level + 2)
