"""Where the weights of a model are: with a layer only while it runs (offloaded), or sharded over processes.

Neither accelerate nor torch.distributed is imported: if they placed a model, they are imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError

from .layers import LayerPath

MOST_NAMES = 4
"""Layers named in an error."""


def offloaded(model: nn.Module) -> list[LayerPath]:
    """Return the layers whose own parameters accelerate keeps elsewhere (main memory, disk) while they do not run."""
    return [path for path, module in model.named_modules() if _is_offloaded(module)]


def sharded(model: nn.Module) -> list[LayerPath]:
    """Return the layers whose own parameters are sharded over processes, by FSDP2 or tensor parallelism."""
    return [
        path
        for path, module in model.named_modules()
        if any(_is_sharded(parameter) for parameter in module._parameters.values()) or _is_managed_by_fsdp(module)
    ]


def is_fsdp(module: nn.Module) -> bool:
    """Return whether FSDP2 (`fully_shard`) gathers and frees the parameters of a module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    return kind is not None and isinstance(module, kind)


def home(model: nn.Module) -> torch.device | None:
    """Return the device for the input of a model; None if it has no parameters."""
    first = next(model.parameters(), None)
    if first is None or not first.is_meta:
        return None if first is None else first.device
    for module in model.modules():
        for hook in _accelerate_hooks(module):
            device = getattr(hook, "execution_device", None)
            if device is not None and str(device) != "meta":
                return torch.device(device)
    return next((parameter.device for parameter in model.parameters() if not parameter.is_meta), first.device)


def whole(module: nn.Module, name: str) -> torch.Tensor:
    """Return one parameter of a module as it is when the module runs, detached.

    For a sharded parameter every process must call this, because each sends its part.
    """
    parameter = module._parameters[name]
    assert parameter is not None
    for hook in _accelerate_hooks(module):
        if parameter.is_meta and getattr(hook, "weights_map", None) is not None:
            weight: torch.Tensor = hook.weights_map[name]
            return weight.detach()
    if _is_sharded(parameter):
        gathered: torch.Tensor = parameter.full_tensor().detach()  # type: ignore[attr-defined]
        return gathered
    return parameter.detach()


def need_weights(model: nn.Module, what: str) -> None:
    """Refuse a model whose weights are not all in this process.

    Args:
        model: any module.
        what: what reads or changes them, for the error.

    Raises:
        InputError: when some are offloaded or sharded.
    """
    away, split = offloaded(model), sharded(model)
    if away:
        raise InputError(
            f"{what} needs the weights themselves, and accelerate keeps those of {listed(away)} elsewhere while they "
            "do not run. Load the model in one place for this, such as from_pretrained(..., device_map={'': 'cpu'})."
        )
    if split:
        raise InputError(
            f"{what} needs the weights themselves, and those of {listed(split)} are sharded over processes. Use "
            "one process, with the model before fully_shard or parallelize_module (or loaded without tp_plan)."
        )


def refuse_sharded(model: nn.Module, what: str, instead: str) -> None:
    """Refuse a model whose weights are sharded over processes.

    Args:
        model: any module.
        what: what reads them when FSDP2 may have freed them, for the error.
        instead: what to do instead.

    Raises:
        InputError: when some are.
    """
    split = sharded(model)
    if split:
        raise InputError(
            f"{what} reads weights between the passes of their layers, and those of {listed(split)} are sharded over "
            f"processes, which gather them only for the passes. {instead}"
        )


class Placement:
    """The devices of the weights of some modules, to be restored after a run, also after a failed one.

    Args:
        modules: all modules of a model.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        hooked = [module for module in modules if "_hf_hook" in module.__dict__]
        self._hooked = [(module, dict(module._parameters)) for module in hooked if _accelerate_hooks(module)]
        sharding = "torch.distributed.fsdp" in sys.modules
        self._fsdp = [module for module in modules if is_fsdp(module)] if sharding else []

    def restore(self, *, failed: bool) -> None:
        """Move the parameters of offloaded layers back, and let FSDP2 free gathered ones.

        Args:
            failed: whether the use of the model ended by an error.
        """
        for module, parameters in self._hooked:
            before = [name for name, parameter in parameters.items() if parameter is not None and parameter.is_meta]
            if any(not module._parameters[name].is_meta for name in before):  # type: ignore[union-attr]
                for hook in _accelerate_hooks(module):  # an error ended the layer's call in between
                    hook.post_forward(module, None)
            for name, parameter in parameters.items():
                if module._parameters.get(name) is not parameter:
                    module._parameters[name] = parameter
        for module in self._fsdp:
            if failed or _is_running(module):
                _reset_iteration(module)
        for module in self._fsdp:
            module.reshard()  # type: ignore[operator]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor in this process."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def _accelerate_hooks(module: nn.Module) -> list[Any]:
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _is_running(module: nn.Module) -> bool:
    """Whether FSDP2 waits for the end of an interrupted forward pass."""
    context = getattr(module._get_fsdp_state(), "_state_ctx", None)  # type: ignore[operator]
    return getattr(context, "iter_forward_root", None) is not None


def _reset_iteration(module: nn.Module) -> None:
    """Have FSDP2 forget an interrupted pass, at its root module."""
    reset = getattr(module, "reset_iter_state", None)
    if reset is not None and getattr(module._get_fsdp_state(), "_is_root", False):  # type: ignore[operator]
        reset()


def _is_offloaded(module: nn.Module) -> bool:
    hooked = bool(_accelerate_hooks(module))
    return hooked and any(parameter is not None and parameter.is_meta for parameter in module._parameters.values())


def _is_sharded(parameter: torch.Tensor | None) -> bool:
    return shards(parameter) > 0


def shards(parameter: torch.Tensor | None) -> int:
    """Return over how many axes of the process mesh a parameter is sharded."""
    if parameter is None or not is_dtensor(parameter):
        return 0
    return sum(not placement.is_replicate() for placement in parameter.placements)  # type: ignore[attr-defined]


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is distributed over processes by torch.distributed."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


def _is_managed_by_fsdp(module: nn.Module) -> bool:
    """Whether FSDP2 manages the parameters of a module, even if they are gathered now."""
    return is_fsdp(module) and next(module.parameters(), None) is not None


def listed(paths: list[LayerPath]) -> str:
    """Return the names of the first of some layers, for an error."""
    named = ", ".join(repr(path) if path else "the model itself" for path in paths[:MOST_NAMES])
    more = f" and {len(paths) - MOST_NAMES} more" if len(paths) > MOST_NAMES else ""
    return f"layer{'s' * (len(paths) > 1)} {named}{more}"


# Tensor parallel models, whose layers compute with the part of their weights in this process.

GATHERED = "Shard the model by FSDP2 (fully_shard) instead, which gathers the weights of each layer as it runs."
"""What to do if parts of layers are not enough."""


def tensor_parallel(model: nn.Module) -> list[LayerPath]:
    """Return the layers that compute with a part of their weights: tensor parallel ones, not those of FSDP2."""
    found: list[LayerPath] = []
    stack: list[tuple[LayerPath, nn.Module, bool]] = [("", model, False)]
    while stack:
        path, module, gathered = stack.pop()
        gathered = gathered or is_fsdp(module)
        if any(shards(parameter) > gathered for parameter in module._parameters.values()):
            found.append(path)
        stack += [
            (f"{path}.{name}" if path else name, child, gathered)
            for name, child in reversed(module._modules.items())
            if child is not None
        ]
    return found


def refuse_parts(model: nn.Module, what: str, instead: str) -> None:
    """Refuse a tensor parallel model, of which each process computes a part.

    Args:
        model: any module.
        what: what cannot be computed from a part, for the error.
        instead: what to do instead.

    Raises:
        InputError: if some layers compute with a part of their weights.
    """
    parts = tensor_parallel(model)
    if parts:
        raise InputError(
            f"{what} cannot be computed for a tensor parallel model: {listed(parts)} compute with the part of their "
            f"weights in this process, so no process sees all of it. {instead}"
        )


def parts(model: nn.Module) -> dict[LayerPath, tuple[int, int] | None]:
    """Return the layers that may return this process's part of their output, as a tensor that does not say so.

    Linear layers split by columns, with (features of the whole, features of this process); layers next to one that have
    no parameters, such as an activation function, with the same; layers that sequence parallelism made, with None.
    """
    found: dict[LayerPath, tuple[int, int] | None] = {}
    for path in tensor_parallel(model):
        parent, _, name = path.rpartition(".")
        sizes = _whole_and_own_features(model.get_submodule(path))
        if sizes is None:
            continue
        found[path] = sizes
        for other, module in model.get_submodule(parent).named_children():
            if other != name and next(module.parameters(), None) is None:
                found[f"{parent}.{other}" if parent else other] = sizes
    for path, module in model.named_modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if own and all(is_dtensor(parameter) and not shards(parameter) for parameter in own):
            found[path] = None
    return found


def _whole_and_own_features(module: nn.Module) -> tuple[int, int] | None:
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or not isinstance(module, nn.Linear):
        return None
    whole, own = int(weight.shape[0]), int(local(weight).shape[0])
    return None if own == whole else (whole, own)
