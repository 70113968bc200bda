"""Checks of options, and the warnings that measures of sensitivity share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerlens.errors import warn

NO_BATCH = "its output has no batch axis, so it has no value per sample"
"""Why a layer such as one that returns position tables has no value."""


def listed(names: Sequence[str], count: int = 4) -> str:
    """Return the first names as text: `layer a, b, ... (7 layers)`."""
    shown = ", ".join(names[:count])
    if len(names) > count:
        return f"layers {shown}, ... ({len(names)})"
    return f"layer{'s' * (len(names) > 1)} {shown}"


def first_reasons(left_out: Mapping[str, str], count: int = 5) -> str:
    """List why the first layers were left out."""
    return "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:count])


def warn_left_out(method: str, left_out: Mapping[str, str], explicit: bool) -> None:
    """Warn of layers without a value; of those that cannot have one only when they were asked for by name."""
    named = {name: why for name, why in left_out.items() if explicit or why not in ("did not run", NO_BATCH)}
    if named:
        more = f"; and {len(named) - 4} more, see settings['left_out']" if len(named) > 4 else ""
        warn(f"{method}: {len(named)} layer(s) left out. {first_reasons(named, 4)}{more}.")
