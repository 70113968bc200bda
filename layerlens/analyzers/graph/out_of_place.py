"""Operations that write into a view: autograd hides them in one node, so they are run as what they mean.

`view.gelu_()` becomes `view.copy_(gelu(view))`: the function gets a node, and with it a rule, and the copy is linear.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]

WRITES = {
    "copy_",
    "zero_",
    "detach_",
    "requires_grad_",
    "set_",
    "resize_",
    "t_",
    "transpose_",
    "squeeze_",
    "unsqueeze_",
}
"""In-place methods that are linear, or write no numbers."""


def out_of_place(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Function, Any, Any] | None:
    """(function, args, kwargs) that compute what `function` would write into its first argument, a view.

    None when it writes into nothing, into no view, or is linear as it is.
    """
    form = _form(function)
    if form is None or not args or not isinstance(args[0], torch.Tensor) or not args[0]._is_view():
        return None
    if not torch.is_grad_enabled() or not any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
        return None
    counterpart, place = form
    if place is None:
        return counterpart, (args[0].clone(), *args[1:]), kwargs
    if not (kwargs.get("inplace", False) or (place < len(args) and args[place])):
        return None
    kwargs = {**kwargs, "inplace": False} if "inplace" in kwargs else kwargs
    rest = tuple(False if index == place else value for index, value in enumerate(args))
    return counterpart, (args[0].clone(), *rest[1:]), kwargs


@functools.cache
def _form(function: Function) -> tuple[Function, int | None] | None:
    """The function that makes a new tensor, and the position of its argument `inplace`, when it has one."""
    name = getattr(function, "__name__", "")
    if inspect.isfunction(function):
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        if "inplace" in names:
            return function, names.index("inplace")
    if (
        name.startswith("__i")
        and name.endswith("__")
        and name not in ("__init__", "__iter__", "__index__", "__int__", "__invert__")
    ):
        return _named(torch.Tensor, f"__{name[3:]}")
    if function is torch.Tensor.fill_:
        return _filled, None
    if name.endswith("_") and not name.endswith("__") and name not in WRITES:
        for home in (torch.Tensor, torch, torch._C._nn, torch.nn.functional):
            found = getattr(home, name, None)
            if found is function:
                return _named(home, name[:-1])
    return None


def _filled(tensor: torch.Tensor, value: Any) -> torch.Tensor:
    return torch.where(torch.ones_like(tensor, dtype=torch.bool), value, tensor)


def _named(home: Any, name: str) -> tuple[Function, None] | None:
    found = getattr(home, name, None)
    return None if found is None else (found, None)
