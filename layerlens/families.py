"""Families of methods that one function calls by name: `lens.saliency`, `lens.sensitivity`.

Their types, an overload for each method, are in the generated `families.pyi`.
"""

from __future__ import annotations

from .analyzers.common.measure_registry import MEASURES
from .analyzers.common.registry import METHODS
from .analyzers.saliency.fitting import fitting_methods
from .analyzers.saliency.saliency import methods as saliency_methods, saliency as attribute
from .analyzers.sensitivity.sensitivity import methods as sensitivity_methods, sensitivity as measure
from .binding import bind_family

saliency = bind_family(
    attribute,
    lambda: {name: row.function for name, row in METHODS.items()},
    saliency_methods,
    fitting=fitting_methods,
)
sensitivity = bind_family(
    measure, lambda: {name: row.function for name, row in MEASURES.items()}, sensitivity_methods, predicted=False
)
