"""Checkpointed blocks, which keep their input only and are computed again in the backward pass."""

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
"""Attribute of the hooks that change what a layer returns; a block computed again would miss what they changed."""


def pack_hooks() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """How the innermost checkpoint packs and unpacks a saved tensor; None outside of a checkpointed block.

    Reentrant checkpoints have none, nor has a block that is being computed again.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or not getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook"):
        return None
    found: tuple[Callable[..., Any], Callable[..., Any]] = hooks
    return found


def outside_checkpoints() -> contextlib.AbstractContextManager[Any]:
    """Return a context for operations outside the model: no checkpoint counts the tensors that they save."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def as_edit(hook: Hook) -> Hook:
    """A hook that changes what a layer takes or returns, marked as such."""
    setattr(hook, EDITING, True)
    return hook


def refuse_in_checkpoints(path: LayerPath) -> None:
    """Refuse an edit of a layer that runs inside of a checkpointed block.

    Raises:
        InputError: when it does.
    """
    if pack_hooks() is not None:
        raise InputError(
            f"layer {path!r} is edited inside of a checkpointed block, which the backward pass computes again without "
            "the edit: gradients would be wrong. Take the checkpoint out of the model's forward, or edit a layer "
            "outside of it."
        )


class Once:
    """A saved tensor of a checkpointed block, which its checkpoint hands out once in each backward pass.

    Relevance rules read it, and then the backward pass of the operation itself. It goes when autograd lets go of it.

    Args:
        tensor: tensor to save.
        hooks: hooks of the checkpoint.
        again: run in which the block is recomputed.
    """

    __slots__ = ("_again", "_packed", "_task", "_unpack", "_value")

    def __init__(
        self,
        tensor: torch.Tensor,
        hooks: tuple[Callable[..., Any], Callable[..., Any]],
        again: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        pack, self._unpack = hooks
        self._packed, self._again = pack(tensor), again
        self._value: torch.Tensor | None = None
        self._task = -1

    def read(self) -> torch.Tensor:
        """The tensor."""
        task = torch._C._current_graph_task_id()
        if self._value is None or task != self._task:
            with self._again():
                self._value = self._unpack(self._packed)
            self._task = task
        return self._value


@contextlib.contextmanager
def checkpoints_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have the layers of transformers that checkpoint do so in eval mode as well, for the length of a block.

    They ask for training mode, and would keep all activations in the mode in which models are explained. Inside of the
    block they are in training mode until they start to compute, and again when they are done; all that is in them is
    in eval mode throughout. Layers that an edit reaches into run as they are.

    Args:
        modules: all modules of a model that is in eval mode.
    """
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            given = vars(module).get("_gradient_checkpointing_func")
            run = _in_eval_of(module, given) if _wraps_itself(module) and not module.training else None
            if run is not None:
                changed.append((module, given))
                module._gradient_checkpointing_func = run  # type: ignore[assignment]
                module.training = True
        yield
    finally:
        for module, given in changed:
            module._gradient_checkpointing_func = given
            module.training = False


def _wraps_itself(module: nn.Module) -> bool:
    """Whether it is a `GradientCheckpointingLayer` that shall checkpoint; those ask for the mode at their start."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return "GradientCheckpointingLayer" in kinds and bool(getattr(module, "gradient_checkpointing", False))


def _in_eval_of(module: nn.Module, run: Any) -> Callable[..., Any] | None:
    """What checkpoints a layer as `run` does, in eval mode; None where it cannot."""
    if not isinstance(run, functools.partial):
        return None
    if run.func is _in_eval:  # the model is lent already
        return run
    if run.func is checkpoint:  # its reentrant form knows no autograd.grad; the numbers are the same
        again = functools.partial(checkpoint, **{**run.keywords, "use_reentrant": False})
    elif run.keywords.get("use_reentrant") is False:
        again = run
    else:
        return None
    return functools.partial(_in_eval, module, again)


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
