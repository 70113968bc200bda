"""Borrowing a model: everything that an analyzer changes is restored, also after an error or Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from layerlens.errors import InputError, choose, warn
from layerlens.turns import in_turn

from .checkpointing import checkpointing_in_eval
from .placement import Placement
from .state import Bits, State

Mode = Literal["eval", "train", "keep"]
_MODES = get_args(Mode)


@in_turn
def borrowed(model: nn.Module, *, mode: Mode = "eval", grad: bool = True) -> Iterator[nn.Module]:
    """Borrow `model` within a `with` block and restore it afterwards.

    Restored are train/eval flags of every module, `requires_grad` and `.grad` of every parameter, the buffers (their
    set, identity and bits), tensors that modules keep in attributes, lists, dicts and objects (a cache, a state) with
    the numbers next to them, the devices where accelerate or FSDP2 keep weights, and the random generators of torch,
    numpy and Python. `Probe` removes its hooks.

    Args:
        model: any module.
        mode: mode of the model in the block: `"eval"` (default), `"train"`, or `"keep"` for its own.
        grad: whether gradients are recorded in the block, in any grad mode or inference mode of the caller.

    Yields:
        The same model.

    Raises:
        InputError: when `model` is not a `torch.nn.Module`, is a TorchScript model, or has inference parameters.

    Example:
        >>> model = nn.Dropout().train()
        >>> with borrowed(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise InputError(f"a model must be a torch.nn.Module, got {given}. {_how_to_give(model)}")
    modules = modules_of(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript model has no layers or graph to look at; give the model it was made from.")
    if any(issubclass(kind, torch.jit.ScriptModule) for kind in set(map(type, modules))):
        path = next(path for path, one in model.named_modules() if isinstance(one, torch.jit.ScriptModule))
        raise InputError(
            f"layer {path!r} is TorchScript, which has no layers or graph to look at; replace it with the module that "
            "it was made from."
        )
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
    state = State(modules, {id(buffer.tensor) for buffer in buffers})
    placement, generators, failed = Placement(modules), generator_states(), True
    try:
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(grad))
            if any_compiled(modules):
                stack.enter_context(as_written(model))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
            if mode != "keep":
                for module in modules:
                    if module.training != (mode == "train"):
                        module.training = mode == "train"
            if mode == "eval" and grad and any(getattr(one, "gradient_checkpointing", None) is True for one in modules):
                stack.enter_context(checkpointing_in_eval(modules))
            yield model
        failed = False
    finally:
        placement.restore(failed=failed)
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
            for name in list(module._buffers):
                if (id(module), name) not in known:
                    delattr(module, name)
        state.restore()
        restore_generators(generators)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return `model` and all modules in it, in any order; much faster than the generators of torch."""
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
    """Return the parameters of the modules themselves, each once."""
    found = {
        id(parameter): parameter
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for parameter in module._parameters.values()
        if parameter is not None
    }
    return list(found.values())


def as_written(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Run a compiled model eagerly within a `with` block, with a warning."""
    warn(
        f"{type(model).__name__} is compiled; layerlens runs it eagerly, because compiled code shows neither its "
        "layers nor its operations. The compiled code is kept.",
    )
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def primitive_kernels() -> Iterator[None]:
    """Run recurrent layers step by step within a `with` block, not in one fused kernel that hides the steps.

    Yields:
        Nothing.
    """
    mkldnn, cudnn = torch.backends.mkldnn, torch.backends.cudnn
    before = mkldnn.set_flags(False, None, None, None)[0]  # type: ignore[no-untyped-call]
    try:
        with cudnn.flags(enabled=False):
            yield
    finally:
        mkldnn.set_flags(before, None, None, None)  # type: ignore[no-untyped-call]


class _BufferState:
    """One buffer of one module, with its bits, to be restored."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.tensor = module._buffers[name]
        self.bits = None if self.tensor is None else Bits(self.tensor)

    def restore(self) -> None:
        if self.module._buffers.get(self.name) is not self.tensor:
            self.module._buffers[self.name] = self.tensor
        if self.bits is not None:
            self.bits.restore()


def is_compiled(model: nn.Module) -> bool:
    """Return whether a module runs through torch.compile, which skips hooks added after its first call."""
    return any_compiled(modules_of(model))


def any_compiled(modules: Iterable[nn.Module]) -> bool:
    """Return whether one of some modules does."""
    for module in modules:
        if module.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules:
            return True
    return False


def generator_states() -> dict[str, Any]:
    """Return the states of the random generators of torch, numpy and Python."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": _numpy_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Set the random generators to `states`."""
    torch.set_rng_state(states["torch"])
    words, state = states["numpy"]
    if words is None or words != _numpy_words():
        np.random.set_state(state)
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


_known_numpy: tuple[bytes | None, Any] = (None, None)


def _numpy_state() -> tuple[bytes | None, Any]:
    """The words of numpy's generator, and its state; None for the words if they are not all of the state.

    Reading the state takes numpy 30 us and setting it as much; reading the words takes less than one.
    """
    global _known_numpy
    known, words = _known_numpy, _numpy_words()
    if words is None or known[0] != words:
        state = np.random.get_state()
        drawn_ahead = not isinstance(state, tuple) or state[3]  # `randn` takes it and leaves the words
        known = _known_numpy = (None if drawn_ahead else words, state)
    return known


def seed_numpy(number: int) -> None:
    """Seed numpy's global generator; its state is then known without being read."""
    global _known_numpy
    np.random.seed(number)
    words = _numpy_words()
    if words is not None:
        place = int.from_bytes(words[2496:], sys.byteorder)
        _known_numpy = words, ("MT19937", np.frombuffer(words, np.uint32, 624), place, 0, 0.0)


def _numpy_words() -> bytes | None:
    """The words of numpy's global generator; None if it is not the Mersenne twister."""
    generator = np.random.mtrand.get_bit_generator()
    return ctypes.string_at(generator.ctypes.state_address, 2500) if type(generator) is np.random.MT19937 else None


def seed_torch(number: int) -> None:
    """Seed the random generators of torch, on every device in use.

    `torch.manual_seed` takes 3 ms before the first use of a GPU, and then seeds the GPU at its first use too, which
    `restore_generators` cannot prevent.
    """
    torch.default_generator.manual_seed(number)
    for device in (torch.cuda, torch.xpu):
        if device.is_available() and device.is_initialized():
            device.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def freeze(model: nn.Module) -> None:
    """Switch off parameter gradients of a borrowed model.

    Linear layers then save no inputs: a ViT keeps 37 % fewer bytes; a convolution net keeps as many.

    Args:
        model: a model inside `borrowed`, which restores it.
    """
    for parameter in parameters_of(modules_of(model)):
        if parameter.requires_grad:
            parameter.requires_grad_(False)


def _how_to_give(model: Any) -> str:
    """Say how to make a module of what was given instead of one."""
    if isinstance(model, type):
        return f"Make one first: {model.__name__}(...)."
    if isinstance(model, Mapping) and any(isinstance(one, torch.Tensor) for one in model.values()):
        return "Weights go into a model that was made: model.load_state_dict(weights)."
    if isinstance(model, (str, os.PathLike)):
        return (
            "Load the file first: model.load_state_dict(torch.load(name, weights_only=True)), or from_pretrained(name)."
        )
    if isinstance(model, (list, tuple)) and any(isinstance(one, nn.Module) for one in model):
        return "Give one of them at a time."
    if isinstance(getattr(model, "model", None), nn.Module):
        return "Give the model that it holds, as its .model."
    return "Wrap a function in a module."
