"""Lens: a model with what is known about it, and every analyzer bound to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from . import families
from .analyzers import (
    activation,
    checks,
    concepts,
    dynamics,
    faithfulness,
    generation,
    groups,
    influence as training_data,
    relevance as lrp,
    sensitivity as measures,
)
from .analyzers.activation.feature_visualization.feature_visualization import feature_visualization as visualize
from .analyzers.saliency import grad_cam as class_activation_map, saliency_by_target as by_target
from .analyzers.saliency.perturbation.interactions import interactions as feature_interactions
from .analyzers.structure import compare_routes as difference_of_routes, layers as layer_table, route as route_of
from .analyzers.uncertainty import model_uncertainty as over_models
from .binding import bind
from .errors import TargetError
from .explorer import explore as explore_model
from .guide import guide as list_questions
from .inputs.inputs import Input, Inputs
from .inputs.sequences import sequences
from .model.layers import select as select_layers
from .probes.function_probe import functions as function_values
from .probes.probe import Probe
from .probes.run import capture as record_calls, run as run_edited
from .report import report as write_report
from .results import LogitLens, Matrix, RouteComparison, Routes
from .scale.over import over as over_data
from .targets.answers import Answers
from .targets.names import class_index
from .targets.tokens import Vocabulary, place_names, token_pairs
from .wrapped_model import WrappedModel


def _read_texts(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Read reference texts; other references are inputs or data sets, which the function reads."""
    reference = given.get("reference")
    if isinstance(reference, (list, tuple)) and all(isinstance(text, str) for text in reference):
        given["reference"] = lens.inputs(reference)


def _read_targets(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    if isinstance(given["targets"], (list, tuple)):  # others are refused by the function
        given["targets"] = [lens.target(spec, known) for spec in given["targets"]]


def _read_aims(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Read what feature visualization maximizes: one target, or a list of them."""
    target = given["target"]
    given["target"] = [lens.target(spec) for spec in target] if isinstance(target, list) else lens.target(target)


def _unwrap_other(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Take the model of another lens."""
    if isinstance(given.get("other"), WrappedModel):
        given["other"] = given["other"].model


def _unwrap_other_with_forward(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Take the model and the forward of another lens."""
    if isinstance(given.get("other"), WrappedModel):
        given.setdefault("other_forward", given["other"].forward)
        given["other"] = given["other"].model


def _unwrap_models(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Take the models of other lenses."""
    if isinstance(given.get("models"), (list, tuple)):
        given["models"] = [one.model if isinstance(one, WrappedModel) else one for one in given["models"]]


def _read_data(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    if given.get("data") is not None:
        given["data"] = lens.inputs(given["data"])


def _pass_lens(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    given["lens"] = lens


def _read_output_names(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Name the outputs by class names or tokens, and read a target by those names."""
    names = lens.class_names
    if names is None and lens.tokenizer is not None:
        names = Vocabulary(lens.tokenizer)
    given.setdefault("names", names)
    target = given.get("target")
    if isinstance(target, str):
        given["target"] = class_index(target, names)
    elif isinstance(target, list):
        given["target"] = [class_index(one, names) if isinstance(one, str) else one for one in target]


def _name_columns(lens: WrappedModel, found: LogitLens, given: Mapping[str, Any]) -> LogitLens:
    """Name the positions of a logit lens by their tokens."""
    if lens.tokenizer is None or found.axes[1] != "position":
        return found
    try:
        followed = Answers(given["x"], lens.run_inputs).sequence(len(found.columns))
    except TargetError:  # unknown, so they keep their numbers
        return found
    names = None if followed is None else place_names(lens.tokenizer, followed.ids)
    if names is None:
        return found
    return dataclasses.replace(
        found, columns=tuple(f"{k} {name!r}" for k, name in zip(found.columns, names, strict=True))
    )


def _name_pairs(lens: WrappedModel, found: Any, given: Mapping[str, Any]) -> Any:
    """Name the positions of a patched text by both of its tokens."""
    several = sum(one.ids is not None for one in sequences(given["x"])) > 1
    if lens.tokenizer is None or several:  # of several texts it is unknown which has these positions
        return found
    names = token_pairs(lens.tokenizer, given["x"], given["other"])
    if names is None or not isinstance(found, Matrix) or len(names) != len(found.columns):
        return found
    return dataclasses.replace(found, columns=names)


def _read_class_names(lens: WrappedModel, given: dict[str, Any], known: Inputs | None) -> None:
    """Read names of classes among the labels."""
    labels = given.get("labels")
    if isinstance(labels, str):
        given["labels"] = class_index(labels, lens.class_names)
    if isinstance(labels, (list, tuple)):
        given["labels"] = [class_index(one, lens.class_names) if isinstance(one, str) else one for one in labels]


class Lens(WrappedModel):
    """Look inside a model: what each layer holds, what in the input mattered, how the score flows back.

    The model is never changed; it runs in eval mode and is returned as it was. A Lens holds no state about past runs.

    Args:
        model: any `torch.nn.Module`; or a fitted net of skorch, or a pipeline or search of scikit-learn that ends in
            one: the steps before the net are then its transform.
        class_names: names of the model's classes, by index; targets can then be names.
        tokenizer: turns a text, or a list of texts, into an encoding (like those of `transformers`); inputs can then
            be texts.
        forward: `forward(model, *args, **kwargs)` to call instead of the model.
        transform: turns a picture (of PIL) into a sample, as for the training of the model: a transform of torchvision
            or timm, or a processor of transformers; inputs can then be pictures and lists of them. Or a function or
            fitted transformer of tables, for DataFrames and arrays. Tensors are what the model takes, and are not
            transformed.
        feature_names: names of the features of the input, in order; of several inputs a dict by input name. The columns
            of a DataFrame are known.
        axes: names of the axes of inputs and layers that cannot be followed, or have a better name; see `name_axes`.

    Raises:
        InputError: when `model` is not a module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> lens = Lens(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), class_names=["cat", "dog"])
        >>> lens.saliency.gradient(torch.ones(1, 2), target="dog").values.shape
        torch.Size([1, 2])
    """

    # what the layers hold
    layers = bind(layer_table)
    select = bind(select_layers)
    probe = bind(Probe, inputs=())
    capture = bind(record_calls, predicted=False)
    functions = bind(function_values)
    run = bind(run_edited)
    route = bind(route_of)
    attention = bind(activation.attention)
    activation_maps = bind(activation.activation_maps)
    layer_maps = bind(activation.layer_maps)
    recurrent_states = bind(activation.recurrent_states)

    # what the units respond to
    receptive_field = bind(activation.receptive_field)
    feature_visualization = bind(visualize, predicted=False, words=None, prepare=_read_aims)
    latent_traversal = bind(activation.latent_traversal, inputs=("z",))
    top_inputs = bind(concepts.top_inputs, words=("label",))

    # what mattered for the score
    saliency = families.saliency
    saliency_by_target = bind(by_target, prepare=_read_targets)
    model_uncertainty = bind(over_models, prepare=_unwrap_models)
    grad_cam = bind(class_activation_map)
    interactions = bind(feature_interactions)
    relevance = bind(lrp.relevance)
    relevance_by_target = bind(lrp.relevance_by_target, prepare=_read_targets)
    contributions = bind(lrp.contributions, inputs=("x", "other"))
    attribution_graph = bind(lrp.attribution_graph)
    rank_concepts = bind(concepts.rank_concepts)
    concept_relevance = bind(concepts.concept_relevance)
    tcav = bind(concepts.tcav, words=("label",))
    basis = bind(concepts.basis)
    feature_effects = bind(concepts.feature_effects)
    concept_activation = bind(concepts.concept_activation, inputs=())
    explain_answer = bind(generation.explain_answer, inputs=())
    evaluate = bind(faithfulness.evaluate)
    insertion = bind(faithfulness.insertion)
    deletion = bind(faithfulness.deletion)
    road = bind(faithfulness.road)
    check = bind(checks.check)
    check_gradient = bind(checks.check_gradient)
    compare_groups = bind(groups.compare_groups, words=("label",))
    explain_errors = bind(groups.explain_errors, words=("label",))
    explain_sampling = bind(generation.explain_sampling, predicted=False, words=None)
    influence = bind(training_data.influence, inputs=(), prepare=_read_class_names)

    # what each step of a text came from
    generate = bind(generation.generate, inputs=("prompt",))
    steer = bind(generation.steer, predicted=False)

    # which layers, inputs and weights are sensitive
    sensitivity = families.sensitivity
    jacobian = bind(measures.jacobian)
    lipschitz = bind(measures.lipschitz)
    noise_response = bind(measures.noise_response, predicted=False)
    ablate = bind(measures.ablate, predicted=False, prepare=_read_texts)
    patch = bind(measures.patch, inputs=("x", "other"), finish=_name_pairs)
    circuit_faithfulness = bind(measures.circuit_faithfulness, inputs=("x", "other"), prepare=_read_texts)
    sobol = bind(measures.sobol, predicted=False)
    morris = bind(measures.morris, predicted=False)
    weight_sensitivity = bind(measures.weight_sensitivity, predicted=False)
    attack = bind(measures.attack, predicted=False, prepare=_read_class_names)
    attack_curve = bind(measures.attack_curve, predicted=False, prepare=_read_class_names)
    attack_drift = bind(measures.attack_drift, predicted=False, prepare=_read_class_names)
    corruption_curve = bind(measures.corruption_curve, predicted=False, prepare=_read_class_names)

    # how layers transform data, and learn
    similarity = bind(dynamics.similarity, prepare=_unwrap_other_with_forward)
    geometry = bind(dynamics.geometry)
    health = bind(dynamics.health, predicted=False, words=("label", "loss"))
    nonlinearity = bind(dynamics.nonlinearity)
    logit_lens = bind(
        dynamics.logit_lens, words=None, hidden=("names",), prepare=_read_output_names, finish=_name_columns
    )
    linear_probe = bind(dynamics.linear_probe)
    generalization_gap = bind(dynamics.generalization_gap)
    compare = bind(dynamics.compare, prepare=_unwrap_other)
    watch = bind(dynamics.watch, prepare=_read_data)

    # which of all this to ask
    guide = bind(list_questions, inputs=(), words=None, prepare=_pass_lens)

    # whole data sets, and pages
    over = bind(over_data)
    report = bind(write_report, prepare=_pass_lens)
    explore = bind(explore_model, inputs=(), prepare=_pass_lens)

    def compare_routes(self, first: Input | Routes, second: Input | Routes) -> RouteComparison:
        """Compare the routes of two inputs, or two results of `route`; see `layerlens.compare_routes`.

        Args:
            first: an input, or its routes.
            second: another, compared with the first.
        """
        taken = (given if isinstance(given, Routes) else self.route(given) for given in (first, second))
        return difference_of_routes(*taken)
