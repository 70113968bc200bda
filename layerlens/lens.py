"""Lens: a model with what is known about it, and every analyzer bound to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .analyzers import activation, concepts, faithfulness, groups as group_analyzers, relevance, saliency
from .analyzers.activation.attention.weights import Part
from .analyzers.concepts.concept_relevance import Concept
from .analyzers.structure.layer_table import layer_table
from .analyzers.structure.routes import compare_routes, route
from .lens_dynamics import DynamicsLens
from .lens_sensitivity import SensitivityLens
from .model.layers import Layers, Selection
from .model.selection import Matches
from .probes.function_probe import Functions, Keep, capture_functions
from .probes.probe import Edits, Probe
from .probes.record import Record
from .probes.run import capture, run
from .results import (
    ActivationMaps,
    AttentionWeights,
    Attribution,
    ErrorExplanation,
    FeatureVisualization,
    GroupComparison,
    LatentTraversal,
    LayerTable,
    Leaderboard,
    ReceptiveField,
    RecurrentStates,
    Relevance,
    RouteComparison,
    Routes,
    TopInputs,
)
from .targets.target import Spec
from .targets.tokens import token_texts

if TYPE_CHECKING:
    from .scale import Over


class Lens(SensitivityLens, DynamicsLens):
    """Look inside a model: what each layer holds, what in the input mattered, how the score flows back.

    The model is never changed; it is run in eval mode and given back as it was. A Lens holds no state about past runs.

    Args:
        model: any `torch.nn.Module`.
        class_names: names of the model's classes, by index; with them targets can be names.
        tokenizer: a callable that turns a text, or a list of texts, into an encoding (as those of `transformers`);
            with it inputs can be text.
        forward: `forward(model, *args, **kwargs)` to use in place of calling the model.

    Raises:
        InputError: when `model` is no module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> lens = Lens(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), class_names=["cat", "dog"])
        >>> lens.saliency(torch.ones(1, 2), target="dog", method="gradient").values.shape
        torch.Size([1, 2])
    """

    def layers(self, x: Any = None) -> LayerTable:
        """The layers of the model; see `layer_table`."""
        return layer_table(self.model, None if x is None else self.inputs(x), forward=self.forward)

    def route(self, x: Any, layers: Selection = None) -> Routes:
        """Which layers ran for each sample; see `route`."""
        return route(self.model, self.inputs(x), layers, forward=self.forward)

    def compare_routes(self, first: Any, second: Any) -> RouteComparison:
        """Where the routes of two inputs, or of two results of `route`, differ; see `compare_routes`."""
        taken = (given if isinstance(given, Routes) else self.route(given) for given in (first, second))
        return compare_routes(*taken)

    def select(self, layers: Selection = None) -> Matches:
        """What a selection matches and why, to look at and to combine; see `Selection`."""
        return Layers(self.model).select(layers, calls=True)

    def probe(self, layers: Selection = None, **options: Any) -> Probe:
        """A `Probe` to run the model under yourself: `with lens.probe("blocks.*") as record: model(x)`."""
        return Probe(self.model, layers, **options)

    def capture(self, x: Any, layers: Selection = None, **options: Any) -> Record:
        """Run once and record every call of the selected layers; see `capture`."""
        inputs = self.inputs(x)
        if options.get("target") is not None:
            options["target"] = self.target(options["target"], inputs)
        return capture(self.model, inputs, layers, forward=self.forward, **options)

    def functions(
        self,
        x: Any,
        layers: Selection = None,
        functions: Functions = None,
        *,
        keep: Keep = "shapes",
        reduce: Callable[[Any], Any] | None = None,
    ) -> Record:
        """What torch functions return inside of layers; see `capture_functions`."""
        return capture_functions(
            self.model, self.inputs(x), layers, functions, keep=keep, reduce=reduce, forward=self.forward
        )

    def run(self, x: Any, *, edits: Edits | None = None) -> Any:
        """What the model returns when layers are edited; see `run`."""
        return run(self.model, self.inputs(x), edits=edits, forward=self.forward)

    def activation_maps(self, x: Any, layer: Selection, **options: Any) -> ActivationMaps:
        """One layer's output, unit by unit; see `activation_maps`."""
        return activation.activation_maps(self.model, self.inputs(x), layer, forward=self.forward, **options)

    def feature_visualization(self, target: Any, shape: Sequence[int], **options: Any) -> FeatureVisualization:
        """Inputs made to raise the score of a class, a unit or a layer; see `feature_visualization`."""
        aims = [self.target(spec) for spec in target] if isinstance(target, list) else self.target(target)
        return activation.feature_visualization(self.model, aims, shape, forward=self.forward, **options)

    def latent_traversal(self, z: Any, dimensions: Any = None, **options: Any) -> LatentTraversal:
        """What a generator makes when single latents change; see `latent_traversal`."""
        return activation.latent_traversal(self.model, self.inputs(z), dimensions, forward=self.forward, **options)

    def receptive_field(self, x: Any, layer: Selection, **options: Any) -> ReceptiveField:
        """What the places of a layer can see of the input, and do see; see `receptive_field`."""
        return activation.receptive_field(self.model, self.inputs(x), layer, forward=self.forward, **options)

    def recurrent_states(self, x: Any, layer: Selection = None, **options: Any) -> RecurrentStates:
        """States and gates of a recurrent layer over time; see `recurrent_states`."""
        return activation.recurrent_states(self.model, self.inputs(x), layer, forward=self.forward, **options)

    def layer_maps(self, x: Any, layers: Selection, **options: Any) -> list[ActivationMaps]:
        """The outputs of several layers, unit by unit; see `layer_maps`."""
        return activation.layer_maps(self.model, self.inputs(x), layers, forward=self.forward, **options)

    def attention(
        self,
        x: Any,
        layers: Selection = None,
        *,
        heads: Literal["each", "mean"] = "each",
        queries: Part = None,
        keys: Part = None,
    ) -> AttentionWeights:
        """The weights of every attention; see `attention_weights`."""
        inputs = self.inputs(x)
        found = activation.attention_weights(
            self.model, inputs, layers, heads=heads, queries=queries, keys=keys, forward=self.forward
        )
        return (
            found if self.tokenizer is None else dataclasses.replace(found, tokens=token_texts(self.tokenizer, inputs))
        )

    def grad_cam(self, x: Any, layer: Selection = None, *, target: Spec = None, **options: Any) -> Attribution:
        """A class activation map; see `grad_cam`."""
        return self._attribute(saliency.grad_cam, x, target, layer=layer, **options)

    def saliency(
        self, x: Any, *, target: Spec = None, method: str = "integrated_gradients", **options: Any
    ) -> Attribution:
        """What in the input the score depends on; see `saliency`."""
        return self._attribute(saliency.saliency, x, target, method=method, **options)

    def evaluate(self, x: Any, attributions: Any, *, target: Spec = None, **options: Any) -> Leaderboard:
        """Which map is faithful to the model; see `evaluate`."""
        inputs = self.inputs(x)
        return faithfulness.evaluate(
            self.model, inputs, attributions, target=self.target(target, inputs), forward=self.forward, **options
        )

    def relevance(self, x: Any, *, target: Spec = None, **options: Any) -> Relevance:
        """Layer-wise relevance propagation with its ledger; see `relevance`."""
        return self._attribute(relevance.relevance, x, target, **options)

    def relevance_by_target(self, x: Any, *, targets: Sequence[Spec], **options: Any) -> list[Relevance]:
        """The relevance of several targets from one forward pass; see `relevance_by_target`."""
        inputs = self.inputs(x)
        specs = [self.target(spec, inputs) for spec in targets]
        found = relevance.relevance_by_target(self.model, inputs, targets=specs, forward=self.forward, **options)
        return [self.with_tokens(result, inputs) for result in found]

    def rank_concepts(self, x: Any, layer: Selection, *, target: Spec = None, **options: Any) -> list[Concept]:
        """The units of a layer by the relevance that passes them; see `rank_concepts`."""
        inputs = self.inputs(x)
        return concepts.rank_concepts(
            self.model, inputs, layer, target=self.target(target, inputs), forward=self.forward, **options
        )

    def concept_relevance(self, x: Any, layer: Selection, *, target: Spec = None, **options: Any) -> Relevance:
        """The relevance that passes single units of a layer; see `concept_relevance`."""
        return self._attribute(concepts.concept_relevance, x, target, layer=layer, **options)

    def top_inputs(self, data: Any, layer: Selection, *, target: Spec = None, **options: Any) -> TopInputs:
        """The samples of a data set that units of a layer respond to most; see `top_inputs`."""
        return concepts.top_inputs(
            self.model, data, layer, target=self._aim(target), forward=self.forward, read=self.inputs, **options
        )

    def compare_groups(
        self, data: Any, groups: Any = None, layers: Selection = None, *, target: Spec = None, **options: Any
    ) -> GroupComparison:
        """What sets groups of samples apart, in every layer and over the input; see `compare_groups`."""
        return group_analyzers.compare_groups(
            self.model,
            data,
            groups,
            layers,
            target=self._aim(target),
            forward=self.forward,
            read=self.inputs,
            **options,
        )

    def explain_errors(
        self, data: Any, labels: Any = None, layers: Selection = None, *, target: Spec = None, **options: Any
    ) -> ErrorExplanation:
        """What tells the model's errors from its hits; see `explain_errors`."""
        return group_analyzers.explain_errors(
            self.model,
            data,
            labels,
            layers,
            target=self._aim(target),
            forward=self.forward,
            read=self.inputs,
            **options,
        )

    def over(self, data: Any, **options: Any) -> Over:
        """Analyses of a whole data set, larger than memory if need be; see `over`."""
        from .scale import over

        known = {"forward": self.forward, "read": self.inputs, "aim": self.target, "tokenizer": self.tokenizer}
        return over(self.model, data, **{**known, **options})

    def report(
        self, inputs: Any, targets: Any = None, path: str | os.PathLike[str] = "report.html", **options: Any
    ) -> Path:
        """Write one self-contained HTML page on the model and these inputs; see `layerlens.report.report`."""
        from .report import report

        return report(self, inputs, targets, path, **options)


Lens.saliency.methods = saliency.methods  # type: ignore[attr-defined]
