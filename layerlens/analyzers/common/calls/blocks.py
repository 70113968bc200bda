"""The blocks that most of a model is made of: layers of a list that follow each other with outputs of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from torch import nn

from layerlens.errors import LayerNotFound, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import seed_torch
from layerlens.model.layers import LayerPath
from layerlens.probes.probe import Probe

from .measured_calls import floating, main_index

MANY: Final = 64
"""Layers of a model whose blocks are measured if no layers are chosen."""

Runs = dict[LayerPath, list[list[LayerPath]]]


def find_stack(model: nn.Module, inputs: Inputs, forward: Forward | None, seed: int) -> list[LayerPath]:
    """Find the layers of a list (`blocks.0`, `blocks.1`, ...) that ran one after another with outputs of one shape.

    Of several such lists the one nearest to the model itself is taken, then the one that ran last: the decoder.

    Raises:
        LayerNotFound: when there is none.
    """
    if not any(_numbered(path, module) for path, module in model.named_modules()):
        raise LayerNotFound("this model has no numbered blocks. Give the layers: layers=[...].")
    best: list[LayerPath] = []
    depth = 1 << 30
    for parent, lists in _runs(model, inputs, forward, seed, _numbered).items():
        for paths in lists:
            here = parent.count(".") + bool(parent)
            if len(paths) > 1 and here <= depth:
                best, depth = paths, here
    if not best:
        raise LayerNotFound(
            "this model has no list of blocks with outputs of one shape. Give the layers: layers=[...], the last of "
            "which is where the model continues."
        )
    return best


def usual_layers(model: nn.Module, inputs: Inputs, forward: Forward | None, seed: int) -> list[LayerPath] | None:
    """Return the blocks of a model with many layers, and say so; None for every layer.

    The blocks are the outermost layers, with layers inside, that are numbered under one parent and ran one after
    another with outputs of one shape; and the layers of their classes elsewhere, such as a stage of a single block.

    Warns:
        UserWarning: when only blocks are returned, with the number of the other layers.
    """
    modules = dict(model.named_modules())
    if len(modules) - 1 <= MANY or not any(map(_counted, modules, modules.values())):
        return None
    found: dict[LayerPath, None] = {}
    runs = _runs(model, inputs, forward, seed, _counted)
    ran = {path for lists in runs.values() for paths in lists for path in paths}
    for parent in sorted(runs, key=lambda path: path.count(".") + bool(path)):
        lists = [paths for paths in runs[parent] if len(paths) > 1 and not _inside(paths[0], found)]
        classes = {type(modules[path]) for paths in lists for path in paths}
        alike = [path for path in ran if type(modules[path]) in classes and not _inside(path, found)]
        found.update(dict.fromkeys([*(path for paths in lists for path in paths), *alike]))
    if not found:
        return None
    others = len(modules) - 1 - len(found)
    warn(
        f"only the {len(found)} blocks of {type(model).__name__} are measured, such as {next(iter(found))!r}, without "
        f'{others} other layers. Choose layers=, or layers="**" for every layer.'
    )
    return [path for path in modules if path in found]


def _inside(path: LayerPath, layers: Iterable[LayerPath]) -> bool:
    return any(path.startswith(f"{layer}.") for layer in layers)


def _runs(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None,
    seed: int,
    chosen: Callable[[LayerPath, nn.Module], bool],
) -> Runs:
    """Return parent -> runs of its layers with outputs of one shape, in the order in which they began to return."""
    seed_torch(seed)
    with Probe(model, chosen, reduce=_shape) as record:
        inputs.run(model, forward)
    runs: dict[LayerPath, list[list[tuple[LayerPath, Any]]]] = {}
    for call in record.order:
        lists = runs.setdefault(call.layer.rpartition(".")[0], [])
        if call.output is not None and lists and lists[-1][-1][1] == call.output:
            lists[-1].append((call.layer, call.output))
        elif call.output is not None:
            lists.append([(call.layer, call.output)])
    return {parent: [list(dict.fromkeys(p for p, _ in run)) for run in lists] for parent, lists in runs.items()}


def _numbered(path: LayerPath, module: nn.Module) -> bool:
    return path.rpartition(".")[2].isdigit()


def _counted(path: LayerPath, module: nn.Module) -> bool:
    return path[-1:].isdigit() and next(module.children(), None) is not None


def _shape(output: Any) -> Any:
    tensors = floating(output)
    return tuple(tensors[main_index(output)].shape) if tensors else None
