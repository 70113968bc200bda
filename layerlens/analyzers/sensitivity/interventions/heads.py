"""The heads of an attention, which lie side by side in the input of its output projection."""

from __future__ import annotations

import dataclasses
import re

from torch import nn

from layerlens.errors import LayerNotFound, check_count
from layerlens.model.layers import LayerPath, Layers, Selection

from .hook_points import Kind

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
"""Attributes, of an attention or of its `config`, that hold the number of heads."""

WIDTHS = ("head_dim", "attention_head_size", "dim_head", "head_size")
"""Attributes that hold the number of features of a head."""

PROJECTIONS = ("o_proj", "out_proj", "c_proj", "proj", "dense", "out_lin", "to_out", "wo", "o", "out", "fc_out")
"""Names of output projections; `output.dense` next to an attention counts as a part of it."""

_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of one attention.

    Attributes:
        label: path of the attention, for names.
        kind: where the heads are read.
        path: path of the layer whose input, or inside, they are.
        count: number of heads; 0 when only the width is known.
        width: number of features of each; 0 when only the count is known.
    """

    label: LayerPath
    kind: Kind
    path: LayerPath
    count: int
    width: int


def find_heads(model: nn.Module, layers: Selection, heads: int | None) -> list[Heads]:
    """Find the attentions that are selected, lie inside a selected layer, or whose output projection is selected.

    Args:
        model: any module.
        layers: which layers, see `Selection`; None for the whole model.
        heads: number of heads of each; None for the number in the modules. A selected layer that belongs to no known
            attention is then taken for an output projection.

    Raises:
        LayerNotFound: when there is no attention, or nothing says how many heads it has.
        OptionError: when `heads` is not a count.
    """
    if heads is not None:
        check_count("heads", heads)
    known = _known_attentions(model)
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


def _known_attentions(model: nn.Module) -> list[Heads]:
    layers = Layers(model)
    attentions: dict[LayerPath, Heads] = {}
    for path, module in layers.items():
        if isinstance(module, nn.MultiheadAttention):
            attentions[path] = Heads(path, "attention", path, module.num_heads, 0)
            continue
        count, width = _number(module, COUNTS), _number(module, WIDTHS)
        projection = _projection(layers, path) if count or width else None
        if projection is None or not (_states_heads(module) or _ATTENTION.search(type(module).__name__)):
            continue
        attentions.pop(projection, None)  # of nested attentions the inner one, which comes later, counts
        attentions[projection] = Heads(path, "input", projection, count, 0 if count else width)
    inner = [one.path for one in attentions.values() if one.kind == "attention"]
    return [
        one for path, one in attentions.items() if path in inner or not path.startswith(tuple(f"{p}." for p in inner))
    ]


def _states_heads(module: nn.Module) -> bool:
    """Return whether the module itself, not its config, states the number or size of heads."""
    return any(_is_positive_int(getattr(module, name, None)) for name in (*COUNTS, *WIDTHS))


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    """Return the first of the attributes that is a positive whole number, of the module or its config; 0 for none."""
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if _is_positive_int(value):
                return int(value)  # type: ignore[arg-type]
    return 0


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _projection(layers: Layers, path: LayerPath) -> LayerPath | None:
    """Return the path of the output projection of the attention at `path`."""
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
                linear = next((k for k, part in module.named_children() if _has_weight_matrix(part)), None)
                if linear is not None:
                    return f"{start}{name}.{linear}"
            elif _has_weight_matrix(module):
                return f"{start}{name}"
    return None


def _has_weight_matrix(module: nn.Module) -> bool:
    """Return whether a layer has a weight matrix."""
    weight = getattr(module, "weight", None)
    return hasattr(module, "in_features") or getattr(weight, "ndim", 0) >= 2
