"""Estimators that end in a torch model: nets of skorch, pipelines and searches of scikit-learn, known by attributes."""

from __future__ import annotations

from typing import Any

from torch import nn

from layerlens.errors import InputError


def torch_model(model: Any) -> tuple[Any, Any, list[str] | None]:
    """Return the torch model of an estimator, the fitted steps before it, and its class names; None for no such.

    Args:
        model: a module, which is returned as it is; a fitted net of skorch; a fitted pipeline of scikit-learn that ends
            in one; or a search over those, which has a `best_estimator_`.

    Raises:
        InputError: when the estimator was not fitted, or has several steps that cannot be run alone.
    """
    if isinstance(model, nn.Module):
        return model, None, None
    classes = getattr(model, "classes_", None)
    names = None if classes is None or list(classes) == list(range(len(classes))) else [str(one) for one in classes]
    if hasattr(model, "best_estimator_"):
        found, steps, own = torch_model(model.best_estimator_)
        return found, steps, names or own
    if isinstance(steps := getattr(model, "steps", None), list) and steps:
        found, inner, own = torch_model(steps[-1][1])
        if inner is not None:
            raise InputError("the pipeline ends in another pipeline: put the steps of both into one.")
        return found, model[:-1] if len(steps) > 1 else None, names or own
    if hasattr(model, "initialize") and hasattr(model, "module"):
        net = getattr(model, "module_", None)
        if not isinstance(net, nn.Module):
            raise InputError(
                f"the {type(model).__name__} has no model yet: fit it, or net.initialize() and net.load_params(...)."
            )
        return net, None, names
    return model, None, None
