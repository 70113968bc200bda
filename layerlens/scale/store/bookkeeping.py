"""What packages that spread or offload a model put into its modules, which says where it runs."""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn

SPREAD = ("torch.nn.parallel", "torch.distributed", "torch._dynamo", "abc")
"""Modules that wrap a model for one process: their attributes differ between processes."""
BOOKKEEPERS = ("torch.distributed", "torch._dynamo", "accelerate", "lightning", "pytorch_lightning", "deepspeed")
"""Packages whose private attributes of modules say where a model runs, and not what it computes."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_bookkeeping(name: str, value: Any) -> bool:
    """Return whether a private attribute is of a package that spreads or offloads models."""
    moved = name == "forward" and isinstance(value, functools.partial) and not value.keywords
    if moved and all(isinstance(one, nn.Module) for one in value.args):
        value = value.func
    elif name[0] != "_":
        return False
    if isinstance(value, (dict, list, tuple)) and value:
        return all(is_bookkeeping("_", one) for one in (value.values() if isinstance(value, dict) else value))
    if isinstance(value, types.MethodType) and value.__name__ == "forward" and isinstance(value.__self__, nn.Module):
        return value.__func__ is type(value.__self__).forward  # reached in any case
    function = getattr(value, "__func__", value)
    is_function = isinstance(function, types.FunctionType)
    home = function.__globals__.get("__name__") if is_function else type(value).__module__
    return str(home).startswith(BOOKKEEPERS)
