"""Engines make shards: in this process, in the processes of torchrun, or on Ray; they do not depend on the analysis."""

from __future__ import annotations

import os
from typing import Any

from layerlens.errors import OptionError, choose

from .local import Engine, LocalEngine
from .ray import RayEngine
from .torchrun import TorchrunEngine

__all__ = ["Engine", "LocalEngine", "RayEngine", "TorchrunEngine", "as_engine"]

NAMES: dict[str, Any] = {"local": LocalEngine, "torchrun": TorchrunEngine, "ray": RayEngine}


def as_engine(engine: object) -> Engine:
    """Return an engine from a name, `"auto"`, or an engine with its options.

    Raises:
        OptionError: when it is none of these.
    """
    if engine == "auto":
        return TorchrunEngine() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else LocalEngine()
    if isinstance(engine, str):
        chosen: Engine = NAMES[choose("engine", engine, ["auto", *NAMES])]()
        return chosen
    if isinstance(engine, (LocalEngine, TorchrunEngine, RayEngine)):
        return engine
    raise OptionError(f"engine must be one of {', '.join(['auto', *NAMES])}, or such an engine; got {engine!r}.")
