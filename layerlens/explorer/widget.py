"""An explorer as a widget of a notebook: Python knows what is selected on its page, and can select."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from layerlens.errors import OptionError, need
from layerlens.model.tensors import tensor_path

from .page import template

if TYPE_CHECKING:
    from anywidget import AnyWidget

    from .content import Explorer

SIDE = ("input", "target", "method")
KEYS = ("view", *SIDE, "compared", "layer", "call", "unit", "token", "head")
"""What `selected` holds."""


def make(explorer: Explorer, height: int) -> AnyWidget:
    """Return the widget.

    Raises:
        MissingPackage: when anywidget is not installed.
    """
    need("anywidget", "explorer.widget()", "widget")
    made: AnyWidget = _widget_class()(explorer, height)
    return made


@functools.cache
def _widget_class() -> Any:
    """The class of the widget, which needs anywidget."""
    import anywidget
    import traitlets

    class Selected(traitlets.Dict):
        """What is selected, checked before it is kept."""

        def validate(self, obj: Any, value: Any) -> dict[str, Any]:
            try:
                return check_selected(value, obj.explorer)
            except OptionError as error:
                raise traitlets.TraitError(str(error)) from error

    class ExplorerWidget(anywidget.AnyWidget):
        """The page of an explorer; `selected` follows what is clicked."""

        _esm = template("widget.js")
        title = traitlets.Unicode().tag(sync=True)
        page = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int().tag(sync=True)
        selected = Selected().tag(sync=True)

        def __init__(self, explorer: Explorer, height: int) -> None:
            self.explorer = explorer
            first = {"title": explorer.title, "page": explorer.to_html(), "height": height}
            super().__init__(**first, selected=first_selected(explorer.content))

        def __repr__(self) -> str:
            return f"ExplorerWidget({self.explorer.title}: selected {self.selected})"

    return ExplorerWidget


def layer_keys(content: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return name and call of each layer of a page, as selections name them."""
    return [(tensor_path(one["path"], one["tensor"]), one["call"]) for one in content["layers"]]


def first_selected(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page shows when it is opened."""
    layer, call = ([(None, 0), *layer_keys(content)])[-1]
    shown = {"view": "Input", **dict.fromkeys(SIDE, 0), "compared": None}
    return {**shown, "layer": layer, "call": call, "unit": None, "token": None, "head": None}


def check_selected(value: object, explorer: Explorer) -> dict[str, Any]:
    """Return what is selected, after a check that the explorer has it; it comes from a page, or from Python.

    Raises:
        OptionError: when something is selected that is not there.
    """
    content = explorer.content
    if not isinstance(value, dict) or set(value) != set(KEYS):
        raise OptionError(f"selected must be a dict of {', '.join(KEYS)}, got {value!r}.")
    _one_of("view", value["view"], (*explorer.views, "About"))
    sides = [value]
    if value["compared"] is not None:
        sides.append(value["compared"])
        if not isinstance(value["compared"], dict) or set(value["compared"]) != set(SIDE):
            raise OptionError(f"selected: compared must be None or a dict of {', '.join(SIDE)}, got {sides[1]!r}.")
    for side in sides:
        for name, many in zip(SIDE, ("samples", "targets", "methods"), strict=True):
            _below(name, side[name], len(content[many]))
    keys = layer_keys(content)
    key = (value["layer"], value["call"])
    _one_of("layer and call", key, keys or [(None, 0)])
    if value["unit"] is not None:
        _below("unit", value["unit"], content["layers"][keys.index(key)]["units"] if keys else 0)
    if value["token"] is not None:
        texts = [part["tokens"] or () for sample in content["samples"] for part in sample["parts"]]
        _below("token", value["token"], max(map(len, texts), default=0))
    if value["head"] is not None:
        head, parts = value["head"], content["heads"]["parts"] if content["heads"] else []
        if not isinstance(head, dict) or set(head) != {"layer", "head"}:
            raise OptionError(f"selected: head must be None or a dict of layer, head, got {head!r}.")
        _one_of("head", (head["layer"], head["head"]), [(one["layer"], one["head"]) for one in parts])
    return {name: value[name] for name in KEYS}


def _one_of(name: str, value: object, options: Any) -> None:
    """Check that a value is one of some; True is not 1.

    Raises:
        OptionError: when it is not.
    """
    if not any(repr(value) == repr(option) for option in options):
        raise OptionError(f"selected: there is no {name} {value!r} in this explorer.")


def _below(name: str, value: object, count: int) -> None:
    """Check a number counted from 0.

    Raises:
        OptionError: when it is none, or there are fewer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise OptionError(f"selected: {name} must be a whole number from 0 to {count - 1}, got {value!r}.")
