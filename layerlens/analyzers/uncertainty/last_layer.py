"""The posterior of the weights of a last linear layer, by laplace-torch."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from layerlens.analyzers.common.last_linear import last_linear
from layerlens.errors import InputError, OptionError, need
from layerlens.inputs.batches import Data, Samples
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.trees import describe
from layerlens.probes.probe import Probe

ROWS = 256
"""Samples in a batch of the fit."""


def last_layer_weights(
    model: nn.Module,
    inputs: Inputs,
    training: Samples,
    options: Mapping[str, Any],
    count: int,
    seed: int,
    forward: Forward | None,
) -> tuple[nn.Linear, torch.Tensor]:
    """Return the last linear layer of a borrowed model, and draws of its weights, `(draws, parameters)`.

    laplace-torch is given a copy of the layer, and what the layer takes as its data, so it never sees the model.

    Args:
        model: a model inside `borrowed`.
        inputs: what it runs on.
        training: data with labels.
        options: options of `laplace.Laplace`.
        count: number of draws.
        seed: seed of the draws.
        forward: what to call instead of the model.

    Raises:
        InputError: when the output is not that of a linear layer with weights of its own, or labels are missing or do
            not fit.
        OptionError: when `laplace.Laplace` does not take an option.
        MissingPackage: when laplace-torch is not installed.
    """
    laplace = need("laplace", 'model_uncertainty(models="laplace")', "laplace")
    names = last_linear(model, lambda: inputs.run(model, forward))
    if not names:
        raise InputError(
            f"the output of {type(model).__name__} is not that of a linear layer, whose weights could be drawn. Give a "
            "model that returns logits, or models=[...], such as draws of your own posterior."
        )
    layer = model.get_submodule(names[-1])
    assert isinstance(layer, nn.Linear)
    _check_own_weights(model, names[-1], layer)
    features, labels = _features(model, names[-1], training, forward)
    alone = copy.deepcopy(layer).requires_grad_(True)
    if layer.weight.dtype.itemsize < 4:  # what it decomposes needs more digits
        alone, features = alone.float(), features.float()
    classes = not labels.is_floating_point()
    labels = _fitting_labels(labels, layer.out_features).to(torch.int64 if classes else features.dtype)
    chosen = {"hessian_structure": "kron", **options}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        if not classes:
            residuals = labels - alone(features).detach()
            chosen = {"sigma_noise": float(residuals.square().mean().sqrt()), **chosen}
        kind = "classification" if classes else "regression"
        try:
            found = laplace.Laplace(alone, kind, subset_of_weights="all", **chosen)
        except (TypeError, ValueError) as error:
            raise OptionError(f"posterior={dict(options)!r} has what laplace.Laplace does not take: {error}") from error
        try:
            found.fit(DataLoader(TensorDataset(features, labels), batch_size=ROWS))
            if "prior_precision" not in options:
                found.optimize_prior_precision(method="marglik")
            drawn: torch.Tensor = found.sample(count, generator=torch.Generator().manual_seed(seed))
        except (SystemExit, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined] # exits where it fails
            raise InputError(
                "laplace-torch could not decompose the second derivatives by the weights of the last layer. Give more "
                'training data, or posterior={"hessian_structure": "diag"}.'
            ) from error
    return layer, drawn.detach()


def _check_own_weights(model: nn.Module, name: str, layer: nn.Linear) -> None:
    """Check that a layer has weights of its own, which can be drawn without changing anything else.

    Raises:
        InputError: when they are computed from others, or belong to another layer as well.
    """
    own = dict(layer.named_parameters())
    if "weight" not in own or not own.keys() <= {"weight", "bias"}:
        raise InputError(
            f"the weights of the last layer {name!r} are computed from {', '.join(own)} (such as weight norm), and "
            "cannot be drawn. Make them plain weights (torch.nn.utils.parametrize.remove_parametrizations), or give "
            "models=[...]."
        )
    for path, one in model.named_modules():
        if one is not layer and any(mine is other for mine in own.values() for other in one.parameters(recurse=False)):
            raise InputError(
                f"the last layer {name!r} shares its weights with {path!r}, which draws of them would change as well. "
                "Give models=[...]."
            )


def _fitting_labels(labels: torch.Tensor, outputs: int) -> torch.Tensor:
    """Return class indices `(samples,)`, or numbers `(samples, outputs)`.

    Raises:
        InputError: when they do not fit the outputs.
    """
    if labels.is_floating_point():
        labels = labels.reshape(len(labels), -1)
        if labels.shape[1] != outputs:
            raise InputError(
                f"labels that are real numbers need one for each of {outputs} output(s); got {labels.shape[1]} for "
                "each sample. Classes are whole numbers: labels=y.long()."
            )
        return labels
    if outputs < 2:
        raise InputError("class labels need an output (batch, classes); for one logit give models=[...].")
    if labels.ndim != 1 or not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        raise InputError(
            f"class labels must be whole numbers from 0 to {outputs - 1}, one for each sample; got "
            f"{int(labels.min())} to {int(labels.max())}, {describe(labels)}."
        )
    return labels


def _features(
    model: nn.Module, name: str, training: Samples, forward: Forward | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer takes from each sample of the training data, `(samples, features)`, and the labels.

    Raises:
        InputError: when labels are missing or are names, or the layer is called more than once.
    """
    features, labels = [], list[Any]()
    for batch in Data.of(training).batches(model, "the training data"):
        if batch.labels is None:
            raise InputError("the posterior needs labels: training=Data(x, labels=...), or pairs (x, label).")
        with torch.no_grad(), Probe(model, name, inputs=True) as record:
            batch.inputs.run(model, forward)
        calls = record.calls(name)
        if len(calls) > 1:
            raise InputError(f"the last layer {name!r} is called {len(calls)} times in a pass: give models=[...].")
        args, kwargs = calls[0].inputs
        features.append((args[0] if args else kwargs["input"]).detach())
        labels += batch.labels
    if any(isinstance(label, str) for label in labels):
        raise InputError(f"labels of the training data are names, such as {labels[0]!r}; give class indices.")
    return torch.cat(features), torch.tensor(labels, device=features[0].device)


@contextlib.contextmanager
def with_weights(layer: nn.Linear, weights: torch.Tensor) -> Iterator[None]:
    """Give a layer other weights within a `with` block; its own tensors are put back afterwards.

    Args:
        layer: a linear layer.
        weights: its weight and bias in one row, `(parameters,)`.

    Yields:
        Nothing.
    """
    parameters = [one for one in (layer.weight, layer.bias) if one is not None]
    before = [one.data for one in parameters]
    parts = torch.split(weights, [one.numel() for one in parameters])
    try:
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part.reshape(parameter.shape).to(parameter)
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data
