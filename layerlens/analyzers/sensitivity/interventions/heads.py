"""Where the heads of an attention lie side by side: in what its output projection is given."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from torch import nn

from layerlens.errors import LayerNotFound, check_count
from layerlens.model.layers import LayerPath, Layers, Selection

from .hook_points import Kind

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
"""Attributes, of an attention or of its `config`, that hold the number of heads."""

WIDTHS = ("head_dim", "attention_head_size", "dim_head", "head_size")
"""Attributes that hold the number of features of a head."""

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "proj", "dense", "out_lin", "to_out", "wo", "o", "out", "fc_out")
"""Names of output projections; in `output.dense` beside an attention `output` counts as a part of it."""

_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of one attention.

    Attributes:
        label: path of the attention, for names.
        kind: where the heads are read.
        path: of the layer whose input, or inside, they are.
        count: how many; 0 when only the width is known.
        width: features of each; 0 when only the count is known.
    """

    label: LayerPath
    kind: Kind
    path: LayerPath
    count: int
    width: int


def find_heads(model: nn.Module, layers: Selection, heads: int | None) -> list[Heads]:
    """The attentions that are selected, lie inside of what is selected, or whose output projection is selected.

    Args:
        model: any module.
        layers: as in `Selection`; None for all of the model.
        heads: how many; None for what the modules say. A selected layer that belongs to no known attention is then
            taken for an output projection.

    Raises:
        LayerNotFound: when there is no attention, or nothing says how many heads it has.
        OptionError: when `heads` is no count.
    """
    if heads is not None:
        check_count("heads", heads)
    known = _known(model)
    if layers is not None:
        selected = list(Layers(model).select(layers))
        inside = tuple(f"{path}." if path else "" for path in selected)
        taken = [one for one in known if one.path in selected or f"{one.label}.".startswith(inside)]
        if heads is not None and not taken:
            return [Heads(path, "input", path, heads, 0) for path in selected]
        known = taken
    if heads is not None:
        known = [dataclasses.replace(one, count=heads, width=0) for one in known]
    if not known:
        where = "" if layers is None else " among the selected layers"
        raise LayerNotFound(
            f"no attention with a number of heads and an output projection was found in {type(model).__name__}{where}. "
            f"Known are nn.MultiheadAttention and modules with {', '.join(COUNTS[:3])} and a layer named as "
            f"{', '.join(PROJECTIONS[:4])}. Name the output projections and give the number: layers=..., heads=..."
        )
    return known


def _known(model: nn.Module) -> list[Heads]:
    layers = Layers(model)
    found: dict[LayerPath, Heads] = {}
    for path, module in layers.items():
        if isinstance(module, nn.MultiheadAttention):
            found[path] = Heads(path, "attention", path, module.num_heads, 0)
            continue
        count, width = _number(module, COUNTS), _number(module, WIDTHS)
        projection = _projection(layers, path) if count or width else None
        if projection is None or not (_own(module) or _ATTENTION.search(type(module).__name__)):
            continue
        found.pop(projection, None)  # of an attention inside another one, the inner is meant: it comes later
        found[projection] = Heads(path, "input", projection, count, 0 if count else width)
    inner = [one.path for one in found.values() if one.kind == "attention"]
    return [one for path, one in found.items() if path in inner or not path.startswith(tuple(f"{p}." for p in inner))]


def _own(module: nn.Module) -> bool:
    return any(_whole(getattr(module, name, None)) for name in (*COUNTS, *WIDTHS))


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    """The first of the attributes that is a positive whole number, of the module or of its config; 0 for none."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if _whole(value):
                return int(value)  # type: ignore[arg-type]
    return 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _projection(layers: Layers, path: LayerPath) -> LayerPath | None:
    """The path of the output projection of the attention at `path`."""
    parent = path.rpartition(".")[0]
    starts = [f"{path}." if path else ""]
    if path and _ATTENTION.search(type(layers[parent]).__name__):
        starts.append(f"{parent}.output." if parent else "output.")
    for start in starts:
        for name in PROJECTIONS:
            if f"{start}{name}" not in layers:
                continue
            module = layers[f"{start}{name}"]
            if isinstance(module, nn.Sequential):
                linear = next((k for k, part in module.named_children() if _mixes(part)), None)
                if linear is not None:
                    return f"{start}{name}.{linear}"
            elif _mixes(module):
                return f"{start}{name}"
    return None


def _mixes(module: nn.Module) -> bool:
    """Whether it is a layer with a weight matrix."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "in_features") or getattr(weight, "ndim", 0) >= 2
