"""The methods that put a number on every place of an input, by name, with what each costs and needs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from layerlens.results import Attribution
from layerlens.signatures import public

Family = Literal["gradient", "path", "perturbation", "cam", "relevance", "automatic"]
AnyMethod = TypeVar("AnyMethod", bound=Callable[..., Attribution])


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of attribution.

    Attributes:
        name: the field's name for it, in snake case.
        function: takes `(model, x, *, target, forward, **options)`.
        family: what it is made of.
        passes: its cost per sample, in forward passes or gradients (a forward and a backward pass).
        needs: what it asks of model and input; empty for any that can be differentiated.
        source: where it was published.
    """

    name: str
    function: Callable[..., Attribution]
    family: Family
    passes: str
    needs: str
    source: str

    def cost(self, settings: Mapping[str, Any]) -> str:
        """Its cost per sample with these settings: the number that an option sets is that of the option.

        Example:
            >>> import layerlens.analyzers.saliency
            >>> row = METHODS["smooth_grad"]
            >>> row.passes, row.cost({"samples": 4})
            ('25 gradients (samples)', '4 gradients (samples)')
        """
        found = re.match(r"\d+(?= [^(]*\((\w+))", self.passes)
        given = settings.get(found.group(1)) if found else None
        whole = isinstance(given, int) and not isinstance(given, bool)
        return f"{given}{self.passes[found.end() :]}" if found and whole else self.passes


METHODS: dict[str, Method] = {}
"""Name -> method, filled by the decorator `method` as `layerlens.analyzers.saliency` is imported."""


def method(
    *,
    family: Family,
    passes: str,
    source: str,
    needs: str = "",
    name: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Callable[[AnyMethod], AnyMethod]:
    """Make a function known as a method of attribution; see `Method`.

    Args:
        family: what it is made of.
        passes: its cost per sample.
        source: where it was published.
        needs: what it asks of model and input.
        name: its name; that of the function when None.
        renamed: old name of an option -> its name, see `public`.
    """

    def known(function: AnyMethod) -> AnyMethod:
        function = public(renamed=renamed or {})(function)
        called = name or function.__name__
        METHODS[called] = Method(called, function, family, passes, needs, source)
        return function

    return known
