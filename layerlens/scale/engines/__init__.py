"""Who makes the shards: this process, the processes of torchrun, or Ray. None of them knows what is in a shard."""

from __future__ import annotations

import os
from typing import Any

from layerlens.errors import OptionError, choose

from .base import Engine
from .local import LocalEngine
from .ray import RayEngine
from .torchrun import TorchrunEngine

__all__ = ["Engine", "LocalEngine", "RayEngine", "TorchrunEngine", "as_engine"]

NAMES: dict[str, Any] = {"local": LocalEngine, "torchrun": TorchrunEngine, "ray": RayEngine}


def as_engine(engine: object) -> Engine:
    """Read what a user gives as an engine: a name, `"auto"`, or an engine with its options.

    Raises:
        OptionError: when it is none.
    """
    if engine == "auto":
        return TorchrunEngine() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else LocalEngine()
    if isinstance(engine, str):
        made: Engine = NAMES[choose("engine", engine, ["auto", *NAMES])]()
        return made
    if isinstance(engine, (LocalEngine, TorchrunEngine, RayEngine)):
        return engine
    raise OptionError(f"engine must be one of {', '.join(['auto', *NAMES])}, or such an engine; got {engine!r}.")
