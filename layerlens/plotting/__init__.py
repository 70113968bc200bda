"""Figures of results: each function takes results and returns one `Plot`. matplotlib is loaded on first use.

Every file in `figures/` holds one figure, a function of the same name; type checkers see them in `__init__.pyi`.
"""

import importlib
import pkgutil

from . import figures, style
from .plot import FIGURES, Plot, figure, figures_of, plot, plot_method, through

__all__ = ["FIGURES", "Plot", "figure", "figures_of", "plot", "plot_method", "style", "through"]
__all__ += [module.name for module in pkgutil.iter_modules(figures.__path__)]

for _name in __all__[8:]:
    globals()[_name] = getattr(importlib.import_module(f"{figures.__name__}.{_name}"), _name)
