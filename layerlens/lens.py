"""Lens: a model with what is known about it, and every analyzer bound to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from .analyzers import activation, compare_routes, layer_table, relevance, route, saliency, sensitivity
from .analyzers.relevance import Concept
from .borrow import borrowed
from .capturing import capture, run
from .errors import InputError, TargetError
from .functions import functions
from .inputs import Inputs, as_inputs
from .layers import Layers, Selection, parameter_count
from .matches import Matches
from .probe import Edits, Probe
from .record import Record
from .results import (
    ActivationMaps,
    AttentionWeights,
    Attribution,
    LayerProfile,
    LayerTable,
    Relevance,
    RouteComparison,
    Routes,
    TopInputs,
)
from .target import Names, Spec, Target, as_target

AnyAttribution = TypeVar("AnyAttribution", bound=Attribution)


class Lens:
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
        >>> lens = Lens(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), class_names=["cat", "dog"])
        >>> lens.saliency(torch.ones(1, 2), target="dog", method="gradient").values.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Names = None,
        tokenizer: Callable[..., Any] | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        with borrowed(model, grad=False):
            self.model = model
        if isinstance(class_names, str):
            raise TargetError(f"class_names must be a sequence or a mapping of names, got the text {class_names!r}.")
        self.class_names = class_names
        self.tokenizer = tokenizer
        self.forward = forward

    def target(self, spec: Spec) -> Target:
        """Read a target with this model's class names; see `as_target`.

        Raises:
            TargetError: when it cannot be read.
        """
        return as_target(spec, names=self.class_names)

    def inputs(self, x: Any) -> Inputs:
        """Read an input; text goes through the tokenizer, padded to the longest.

        Raises:
            InputError: when it cannot be read, or is text and there is no tokenizer.
        """
        texts = [x] if isinstance(x, str) else x
        is_text = isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(text, str) for text in texts)
        if not is_text:
            return as_inputs(x)
        if self.tokenizer is None:
            raise InputError("a text was given, but no tokenizer: Lens(model, tokenizer=...).")
        padded = {"padding": True} if len(texts) > 1 else {}
        return as_inputs(dict(self.tokenizer(list(texts), return_tensors="pt", **padded)))

    def layers(self, x: Any = None) -> LayerTable:
        """The layers of the model; see `layer_table`."""
        return layer_table(self.model, self._optional(x), forward=self.forward)

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
        if options.get("target") is not None:
            options["target"] = self.target(options["target"])
        return capture(self.model, self.inputs(x), layers, forward=self.forward, **options)

    def functions(self, x: Any, layers: Selection = None, names: Any = None, **options: Any) -> Record:
        """What torch functions return inside of layers; see `functions`."""
        return functions(self.model, self.inputs(x), layers, names, forward=self.forward, **options)

    def run(self, x: Any, *, edits: Edits | None = None) -> Any:
        """What the model returns when layers are edited; see `run`."""
        return run(self.model, self.inputs(x), edits=edits, forward=self.forward)

    def activation_maps(self, x: Any, layer: Selection, **options: Any) -> ActivationMaps:
        """One layer's output, unit by unit; see `activation_maps`."""
        return activation.activation_maps(self.model, self.inputs(x), layer, forward=self.forward, **options)

    def attention(self, x: Any, layers: Selection = None) -> AttentionWeights:
        """The weights of every attention; see `attention_weights`."""
        return activation.attention_weights(self.model, self.inputs(x), layers, forward=self.forward)

    def grad_cam(self, x: Any, layer: Selection = None, *, target: Spec = None, **options: Any) -> Attribution:
        """A class activation map; see `grad_cam`."""
        return self._attribute(activation.grad_cam, x, target, layer=layer, **options)

    def saliency(
        self, x: Any, *, target: Spec = None, method: str = "integrated_gradients", **options: Any
    ) -> Attribution:
        """What in the input the score depends on; see `saliency`."""
        return self._attribute(saliency.saliency, x, target, method=method, **options)

    def relevance(self, x: Any, *, target: Spec = None, **options: Any) -> Relevance:
        """Layer-wise relevance propagation with its ledger; see `relevance`."""
        return self._attribute(relevance.relevance, x, target, **options)

    def relevance_by_target(self, x: Any, *, targets: Sequence[Spec], **options: Any) -> list[Relevance]:
        """The relevance of several targets from one forward pass; see `relevance_by_target`."""
        inputs, specs = self.inputs(x), [self.target(spec) for spec in targets]
        found = relevance.relevance_by_target(self.model, inputs, targets=specs, forward=self.forward, **options)
        return [self._with_tokens(result, inputs) for result in found]

    def rank_concepts(self, x: Any, layer: Selection, *, target: Spec = None, **options: Any) -> list[Concept]:
        """The units of a layer by the relevance that passes them; see `rank_concepts`."""
        return relevance.rank_concepts(
            self.model, self.inputs(x), layer, target=self.target(target), forward=self.forward, **options
        )

    def concept_relevance(self, x: Any, layer: Selection, *, target: Spec = None, **options: Any) -> Relevance:
        """The relevance that passes single units of a layer; see `concept_relevance`."""
        return self._attribute(relevance.concept_relevance, x, target, layer=layer, **options)

    def top_inputs(self, data: Any, layer: Selection, *, target: Spec = None, **options: Any) -> TopInputs:
        """The samples of a data set that units of a layer respond to most; see `top_inputs`."""
        aim = target if isinstance(target, str) and target == "label" else self.target(target)
        return relevance.top_inputs(
            self.model, data, layer, target=aim, forward=self.forward, read=self.inputs, **options
        )

    def sensitivity(
        self, x: Any, layers: Selection = None, *, method: str = "jacobian", **options: Any
    ) -> LayerProfile:
        """Which layers respond most to the input; see `sensitivity`."""
        return sensitivity.sensitivity(
            self.model, self.inputs(x), layers, method=method, forward=self.forward, **options
        )

    def _optional(self, x: Any) -> Inputs | None:
        return None if x is None else self.inputs(x)

    def _attribute(
        self, analyzer: Callable[..., AnyAttribution], x: Any, target: Spec, **options: Any
    ) -> AnyAttribution:
        inputs = self.inputs(x)
        result = analyzer(self.model, inputs, target=self.target(target), forward=self.forward, **options)
        return self._with_tokens(result, inputs)

    def _with_tokens(self, result: AnyAttribution, inputs: Inputs) -> AnyAttribution:
        if self.tokenizer is None or result.axes != ("batch", "token") or result.tokens is not None:
            return result
        return dataclasses.replace(result, tokens=self._tokens(inputs))

    def _tokens(self, inputs: Inputs) -> list[list[str]] | None:
        """The text of each token id, when the tokenizer can tell."""
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        ids = inputs.tensors().get("input_ids")
        if convert is None or ids is None:
            return None
        rows: Sequence[Sequence[int]] = ids.tolist()
        return [[str(token) for token in convert(list(row))] for row in rows]

    def __repr__(self) -> str:
        parts = [f"{len(Layers(self.model)) - 1} layers", f"{parameter_count(self.model):,} parameters"]
        if isinstance(self.class_names, (Sequence, Mapping)):
            parts.append(f"{len(self.class_names)} class names")
        return f"Lens({type(self.model).__name__}: {', '.join(parts)})"
