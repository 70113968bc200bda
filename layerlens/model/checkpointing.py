"""Checkpointed blocks, which keep only their input and are recomputed in the backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerlens.errors import InputError

from .layers import LayerPath

Hook = TypeVar("Hook", bound=Callable[..., Any])

EDITING = "layerlens_edit"
"""Attribute of hooks that change the output of a layer; a recomputed block would miss the change."""


def pack_hooks() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """Return how the innermost checkpoint packs and unpacks a saved tensor; None outside checkpointed blocks.

    It is also None in reentrant checkpoints and while a block is recomputed.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or not getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook"):
        return None
    found: tuple[Callable[..., Any], Callable[..., Any]] = hooks
    return found


def saved_by_hooks() -> bool:
    """Whether hooks save the tensors of operations: in a checkpointed block, and while it is recomputed."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def outside_checkpoints() -> contextlib.AbstractContextManager[Any]:
    """Return a context for operations outside the model, whose saved tensors no checkpoint counts."""
    if not saved_by_hooks():
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)


def as_edit(hook: Hook) -> Hook:
    """Mark a hook that changes the arguments or the output of a layer."""
    setattr(hook, EDITING, True)
    return hook


def refuse_in_checkpoints(path: LayerPath) -> None:
    """Refuse an edit of a layer inside a checkpointed block.

    Raises:
        InputError: when the layer is in one.
    """
    if pack_hooks() is not None:
        raise InputError(
            f"layer {path!r} is edited inside a checkpointed block, which the backward pass recomputes without the "
            "edit: gradients would be wrong. Remove the checkpoint from the model's forward, or edit a layer outside "
            "it."
        )


class SavedInCheckpoint:
    """A saved tensor of a checkpointed block, which its checkpoint returns only once in each backward pass.

    It is read several times: by relevance rules, and by the backward pass of the operation. Autograd frees it.

    Args:
        tensor: the tensor to save.
        hooks: pack and unpack functions of the checkpoint.
        context: context in which the block is recomputed.
    """

    __slots__ = ("_context", "_packed", "_task", "_unpack", "_value")

    def __init__(
        self,
        tensor: torch.Tensor,
        hooks: tuple[Callable[..., Any], Callable[..., Any]],
        context: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        pack, self._unpack = hooks
        self._packed, self._context = pack(tensor), context
        self._value: torch.Tensor | None = None
        self._task = -1

    def read(self) -> torch.Tensor:
        """Return the tensor."""
        task = torch._C._current_graph_task_id()
        if self._value is None or task != self._task:
            with self._context():
                self._value = self._unpack(self._packed)
            self._task = task
        return self._value


@contextlib.contextmanager
def checkpointing_in_eval(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let checkpointing layers of transformers checkpoint in eval mode as well, within a `with` block.

    They checkpoint only in training mode, and would keep all activations in eval mode. In the block they are in
    training mode except while they compute; everything inside them is always in eval mode. Layers with edits inside
    run as usual.

    Args:
        modules: all modules of a model that is in eval mode.

    Yields:
        Nothing.
    """
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            original = vars(module).get("_gradient_checkpointing_func")
            run = _in_eval_of(module, original) if _wraps_itself(module) and not module.training else None
            if run is not None:
                changed.append((module, original))
                module._gradient_checkpointing_func = run  # type: ignore[assignment]
                module.training = True
        yield
    finally:
        for module, original in changed:
            module._gradient_checkpointing_func = original
            module.training = False


def _wraps_itself(module: nn.Module) -> bool:
    """Whether a module is an enabled `GradientCheckpointingLayer`, which checks the mode when called."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return "GradientCheckpointingLayer" in kinds and bool(getattr(module, "gradient_checkpointing", False))


def _in_eval_of(module: nn.Module, run: Any) -> Callable[..., Any] | None:
    """Return a function that checkpoints a layer as `run` does, in eval mode; None if it cannot."""
    if not isinstance(run, functools.partial):
        return None
    if run.func is _in_eval:  # the model is borrowed already
        return run
    if run.func is checkpoint:  # its reentrant form does not support autograd.grad; the numbers are the same
        recompute = functools.partial(checkpoint, **{**run.keywords, "use_reentrant": False})
    elif run.keywords.get("use_reentrant") is False:
        recompute = run
    else:
        return None
    return functools.partial(_in_eval, module, recompute)


def _in_eval(module: nn.Module, run: Callable[..., Any], function: Callable[..., Any], *args: Any) -> Any:
    def body(*args: Any) -> Any:
        module.training = False
        try:
            return function(*args)
        finally:
            module.training = True

    if any(getattr(hook, EDITING, False) for part in module.modules() for hook in _hooks(part)):
        return body(*args)
    return run(body, *args)


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
