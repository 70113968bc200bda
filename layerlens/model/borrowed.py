"""A model is borrowed: everything an analyzer changes to do its work is put back, also after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from layerlens.errors import InputError, choose, warn

from .checkpointing import checkpoints_kept
from .placement import InPlace
from .trees import version

Mode = Literal["eval", "train", "keep"]
_MODES = get_args(Mode)


@contextlib.contextmanager
def borrowed(model: nn.Module, *, mode: Mode = "eval", grad: bool = True) -> Iterator[nn.Module]:
    """Lend `model` for the length of a `with` block and give it back as it was.

    Returned in their old state: train/eval flags of every module, `requires_grad` and `.grad` of every parameter, the
    buffers (which there are, their identity and their bits), tensors that modules keep as plain attributes or in a dict
    (a cache, a state), the places where accelerate or FSDP2 keep weights, and the random generators of torch, numpy and
    Python.
    Hooks are the business of `Probe`, which removes its own.

    Args:
        model: any module.
        mode: the mode to lend the model in: `"eval"` (default), `"train"`, or `"keep"` as it is.
        grad: whether gradients are recorded inside, whatever grad mode or inference mode the caller is in.

    Yields:
        The same model.

    Raises:
        InputError: when `model` is no `torch.nn.Module`.

    Example:
        >>> model = nn.Dropout().train()
        >>> with borrowed(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module.")
    modules = modules_of(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise InputError("a TorchScript model shows neither its layers nor its graph; give the model it was made from.")
    own = parameters_of(modules)
    if grad and any(parameter.is_inference() for parameter in own):
        raise InputError(
            "the model was made inside torch.inference_mode(), so autograd cannot use its parameters. Make or load it "
            "outside, or take copy.deepcopy(model) outside."
        )
    if mode not in _MODES:
        choose("mode", mode, _MODES)
    flags = [(module, module.training) for module in modules]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in own]
    buffers = [_BufferState(module, name) for module in modules for name in module._buffers]
    attributes = [_Attributes(module) for module in modules if not _of_torch(type(module))]
    places, generators, failed = InPlace(modules), generator_states(), True
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(grad))
            if is_compiled(model):
                stack.enter_context(as_written(model))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
            if mode != "keep":
                for module in modules:
                    if module.training != (mode == "train"):
                        module.training = mode == "train"
            if mode == "eval" and grad and any(getattr(one, "gradient_checkpointing", None) is True for one in modules):
                stack.enter_context(checkpoints_kept(modules))
            yield model
        failed = False
    finally:
        places.restore(failed=failed)
        for module, training in flags:
            if module.training != training:
                module.training = training
        for parameter, requires_grad, gradient in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not gradient:
                parameter.grad = gradient
        for buffer in buffers:
            buffer.restore()
        known = {(id(buffer.module), buffer.name) for buffer in buffers}
        for module in modules:
            for name in [name for name in module._buffers if (id(module), name) not in known]:
                delattr(module, name)
        for held in attributes:
            held.restore()
        restore_generators(generators)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """`model` and all modules in it, in no order, by a loop: the generators of torch take several times as long."""
    seen, found, stack = {id(model)}, list[nn.Module](), [model]
    while stack:
        module = stack.pop()
        found.append(module)
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    return found


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of some modules themselves, each once."""
    found = {
        id(parameter): parameter
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for parameter in module._parameters.values()
        if parameter is not None
    }
    return list(found.values())


def as_written(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Run a compiled model eagerly for the length of a block; says so, once with Python's usual filters."""
    warn(
        f"{type(model).__name__} is compiled; layerlens runs it as it was written, for compiled code shows neither its "
        "layers nor its operations. The compiled code stays as it is.",
    )
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def primitive_kernels() -> Iterator[None]:
    """Run recurrent layers step by step for the length of a block, not in one fused kernel that hides the steps."""
    mkldnn, cudnn = torch.backends.mkldnn, torch.backends.cudnn
    before = mkldnn.set_flags(False, None, None, None)[0]  # type: ignore[no-untyped-call]
    try:
        with cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.set_flags(before, None, None, None)  # type: ignore[no-untyped-call]


class _BufferState:
    """One buffer of one module, with its bits, and the way back."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.tensor = module._buffers[name]
        self.bits = None if self.tensor is None else self.tensor.detach().clone()
        self.version = -1 if self.tensor is None else version(self.tensor)

    def restore(self) -> None:
        if self.module._buffers.get(self.name) is not self.tensor:
            self.module._buffers[self.name] = self.tensor
        if self.tensor is None or self.bits is None or self.tensor.is_inference():
            return
        if self._written(self.tensor, self.bits):
            with torch.no_grad():
                self.tensor.copy_(self.bits)

    def _written(self, tensor: torch.Tensor, bits: torch.Tensor) -> bool:
        """Whether the bits differ: the version alone is blind to BatchNorm's own update and to writes by `.data`."""
        if version(tensor) != self.version or tensor.is_meta or tensor.layout is not torch.strided:
            return version(tensor) != self.version
        return not torch.equal(tensor, bits)


def _of_torch(kind: type) -> bool:
    """Whether a class is one of torch's own layers, which keep no tensors but parameters and buffers."""
    return kind.__module__.startswith("torch.nn.modules.")


class _Attributes:
    """The tensors that a module keeps as plain attributes, or in a dict: caches, a state, what it saw last.

    Those made while the model is lent would hold its graph, or hinder a copy of the model; they are taken back.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = {
            name: (value, value.copy() if type(value) is dict else None)
            for name, value in vars(module).items()
            if name[0] != "_" and (value is None or isinstance(value, (torch.Tensor, dict)))
        }

    def restore(self) -> None:
        own = vars(self.module)
        for name, value in list(own.items()):
            if name[0] == "_":
                continue
            before, copied = self.before.get(name, (None, None))
            if isinstance(value, torch.Tensor) and value is not before:
                if name in self.before:
                    own[name] = before
                else:
                    del own[name]
            elif type(value) is dict and value is before and copied is not None:
                made = [key for key, part in value.items() if isinstance(part, torch.Tensor)]
                for key in made:
                    if key not in copied:
                        del value[key]
                    elif value[key] is not copied[key]:
                        value[key] = copied[key]


def is_compiled(model: nn.Module) -> bool:
    """Whether some module runs through torch.compile: hooks added after its first call would be skipped silently."""
    return any(
        module.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules
        for module in modules_of(model)
    )


def generator_states() -> dict[str, Any]:
    """The states of the random generators of torch, numpy and Python."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Set the random generators to `states`."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
