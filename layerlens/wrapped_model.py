"""WrappedModel: a model with what is known about it, which reads inputs and targets for every analyzer."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from .axes.follow import AxisNames
from .axes.followed import name_axes
from .errors import InputError, TargetError
from .inputs.inputs import Inputs, as_inputs
from .model.borrowed import borrowed
from .model.layers import Layers, parameter_count
from .results import AttentionWeights, Attribution
from .signatures import public
from .targets.target import Names, Spec, Target, as_target
from .targets.tokens import Vocabulary, token_texts

Found = TypeVar("Found")


class WrappedModel:
    """A model, its class names, tokenizer and forward, see `Lens`, which adds the analyzers."""

    @public
    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Names = None,
        tokenizer: Callable[..., Any] | None = None,
        forward: Callable[..., Any] | None = None,
        axes: AxisNames | None = None,
    ) -> None:
        with borrowed(model, grad=False):
            self.model = model
        if axes:
            name_axes(model, axes)
        if isinstance(class_names, str):
            raise TargetError(f"class_names must be a sequence or a mapping of names, got the text {class_names!r}.")
        self.class_names = class_names
        self.tokenizer = tokenizer
        self.forward = forward

    def target(self, spec: Spec, inputs: Inputs | None = None) -> Target:
        """Read a target with this model's class names, or as the next token of a text; see `as_target`.

        Raises:
            TargetError: when it cannot be read.
        """
        if self.class_names is None and self.tokenizer is not None:
            return as_target(spec, names=Vocabulary(self.tokenizer, self._run, self._positional()))
        return as_target(spec, names=self.class_names)

    def _run(self, inputs: Inputs) -> Any:
        with borrowed(self.model, grad=False):
            return inputs.run(self.model, self.forward)

    def _positional(self) -> list[str]:
        """The names of the positional arguments of the model, or of `forward` after the model."""
        function = self.model.forward if self.forward is None else self.forward
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a function without a signature
            return []
        named = itertools.takewhile(lambda one: one.kind is one.POSITIONAL_OR_KEYWORD, parameters)
        return [one.name for one in named][self.forward is not None :]

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

    def with_tokens(self, result: Found, inputs: Inputs | None) -> Found:
        """Return a result, or each of a list, with the texts of its tokens, where they are known."""
        if self.tokenizer is None or inputs is None:
            return result
        if isinstance(result, list):
            return [self.with_tokens(one, inputs) for one in result]  # type: ignore[return-value]
        unnamed = isinstance(result, Attribution) and result.axes == ("batch", "token") and result.tokens is None
        if unnamed or isinstance(result, AttentionWeights):
            return dataclasses.replace(result, tokens=token_texts(self.tokenizer, inputs))  # type: ignore[type-var]
        return result

    def __repr__(self) -> str:
        parts = [f"{len(Layers(self.model)) - 1} layers", f"{parameter_count(self.model):,} parameters"]
        if isinstance(self.class_names, (Sequence, Mapping)):
            parts.append(f"{len(self.class_names)} class names")
        return f"Lens({type(self.model).__name__}: {', '.join(parts)})"
