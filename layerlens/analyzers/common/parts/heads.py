"""The heads of an attention, which lie side by side in the input of its output projection."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from torch import nn

from layerlens.axes.follow import Followed
from layerlens.errors import LayerNotFound, check_count
from layerlens.model.layers import LayerPath, Layers, Selection
from layerlens.model.selection import InputOf
from layerlens.model.tensors import tensor_path
from layerlens.probes.heads import head_sites, own_heads

from .hook_points import Kind


@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of one attention.

    Attributes:
        label: path of the attention, for names.
        kind: where the heads are read.
        path: path of the layer whose input, or inside, they are.
        count: number of heads.
        tensor: name of the argument, such as `"0"`, for the kind `"input"`.
    """

    label: LayerPath
    kind: Kind
    path: LayerPath
    count: int
    tensor: str = ""

    @property
    def place(self) -> str:
        """The layer, and the argument if it is one: `"attention.out/0"`."""
        return tensor_path(self.path, self.tensor)

    @property
    def taken(self) -> InputOf:
        """What the output projection takes, of heads that it is given."""
        return InputOf(f"{self.path}.out_proj".removeprefix(".") if self.kind == "attention" else self.path)


def find_heads(model: nn.Module, followed: Followed, layers: Selection, heads: int | None) -> list[Heads]:
    """Find the attentions that are selected, lie inside a selected layer, or whose output projection is selected.

    A selected layer without any is cut into the heads of what it returns, if attention splits that.

    Args:
        model: any module.
        followed: the axes of its run, which show the heads.
        layers: which layers, see `Selection`; None for the whole model.
        heads: number of heads of each, to cut it otherwise; None for its own. A selected layer that belongs to no
            attention is then cut into slices of the features that it is given.

    Raises:
        LayerNotFound: when there is no attention.
        OptionError: when `heads` is not a count, or a layer returns tensors with different numbers of heads.
    """
    if heads is not None:
        check_count("heads", heads)
    known = [Heads(one.attention, one.kind, one.path, one.count, one.tensor) for one in head_sites(model, followed)]
    if layers is not None:
        selected = list(Layers(model).select(layers))
        inside = tuple(f"{path}." if path else "" for path in selected)
        taken = [one for one in known if one.path in selected or f"{one.label}.".startswith(inside)]
        if heads is not None and not taken:
            return [_slices(followed, path, heads) for path in selected]
        known = taken or _returned(followed, selected)
    if heads is not None:
        known = [dataclasses.replace(one, count=heads) for one in known]
    if not known:
        returned = ", ".join(repr(one.path) for one in _returned(followed, {site.path for site in followed.calls}))
        where = "" if layers is None else " among the selected layers"
        raise LayerNotFound(
            f"no attention with an output projection that is a layer was found in {type(model).__name__}{where}. "
            f"Layers that return heads, to be named with layers=: {returned or 'none'}. To cut what a layer is given "
            "into slices, name the layer and their number: layers=..., heads=..."
        )
    return known


def _returned(followed: Followed, paths: Collection[LayerPath]) -> list[Heads]:
    """Return the heads in what layers returned, in the order of execution."""
    ran = dict.fromkeys(site.path for site in followed.calls if site.path in paths)
    counts = {path: own_heads(followed, path) for path in ran}
    return [Heads(path, "output", path, count) for path, count in counts.items() if count is not None]


def _slices(followed: Followed, path: LayerPath, count: int) -> Heads:
    """Return slices of the one tensor that a layer takes.

    Raises:
        LayerNotFound: when it takes several, or did not run.
    """
    taken = {name for one in followed.calls if one.path == path for name in one.inputs}
    if len(taken) != 1:
        raise LayerNotFound(
            f"layer {path!r} takes {', '.join(sorted(taken)) or 'no tensor'}: a layer that is cut into slices takes "
            "one tensor."
        )
    return Heads(path, "input", path, count, next(iter(taken)))
