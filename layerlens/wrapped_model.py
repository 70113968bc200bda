"""WrappedModel: a model with what is known about it, which reads inputs and targets for every analyzer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn

from .analyzers.common.samples import or_none
from .axes.follow import AxisNames
from .axes.followed import name_axes
from .errors import InputError, warn
from .inputs.inputs import Inputs, arguments, as_inputs, takes_list
from .inputs.sequences import sequences
from .inputs.tables import Names as Columns, check_names, is_frame, is_row, is_series
from .inputs.token_texts import encoded_texts, known_tokens, token_ids
from .inputs.transforms import Transform, are_pictures, refuse_pictures, stacked, without_label
from .model.borrowed import borrowed
from .model.estimators import torch_model
from .model.layers import Layers, parameter_count
from .model.placement import home
from .results import AttentionWeights, Attribution
from .signatures import public
from .targets.names import Names, read_names
from .targets.outputs import main_output
from .targets.target import Spec, Target, as_target
from .targets.tokens import Vocabulary

Found = TypeVar("Found")

FeatureNames: TypeAlias = "Sequence[str] | Mapping[str, Sequence[str]] | None"
"""Names of the features of the input, in order; of several inputs a dict by input name."""


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
        transform: Any = None,
        feature_names: FeatureNames = None,
        axes: AxisNames | None = None,
    ) -> None:
        model, steps, classes = torch_model(model)
        if steps is not None and transform is not None:
            raise InputError("the pipeline has its own steps before the net: leave transform= out, or give the net.")
        with borrowed(model, grad=False):
            self.model = model
        if axes:
            name_axes(model, axes)
        self.class_names = read_names(classes if class_names is None else class_names)
        given = steps if transform is None else transform
        self.transform = None if given is None else Transform(given)
        self.feature_names = feature_names
        if tokenizer is not None and (isinstance(tokenizer, type) or not callable(tokenizer)):
            given = f"the class {tokenizer.__name__}" if isinstance(tokenizer, type) else repr(tokenizer)
            raise InputError(
                f"tokenizer= is called with texts, and this is {given}: load one, for example by "
                "transformers.AutoTokenizer.from_pretrained(name)."
            )
        self.tokenizer = tokenizer
        self.forward = forward

    def target(self, spec: Spec, inputs: Inputs | None = None) -> Target:
        """Read a target with this model's class names, or as the next token of a text; see `as_target`.

        Raises:
            TargetError: when it cannot be read.
        """
        if self.class_names is None and self.tokenizer is not None:
            return as_target(spec, names=Vocabulary(self.tokenizer, self.run_inputs))
        return as_target(spec, names=self.class_names)

    def run_inputs(self, inputs: Inputs) -> Any:
        """Return the output of the model for inputs that were read, without gradients."""
        with borrowed(self.model, grad=False):
            return inputs.run(self.model, self.forward)

    def inputs(self, x: Any) -> Inputs:
        """Read an input: text by the tokenizer, padded to the longest; pictures and tables by the transform.

        Numbers that come from arrays, tables and the transform are moved to the device and the dtype of the model.

        Where padding on the left would shift the positions of a text, `position_ids` counts them from its first token,
        as `generate` of transformers does.

        Warns:
            UserWarning: when it shifts those of an encoding that is given.

        Raises:
            InputError: when it cannot be read, or is text and there is no tokenizer.
        """
        x = without_label(x)[0]
        if self.tokenizer is not None and isinstance(x, np.ndarray) | is_series(x) and x.dtype.kind not in "fiubM":
            x = list(x)  # texts
        texts = [x] if isinstance(x, str) else x
        is_text = isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(text, str) for text in texts)
        if not is_text:
            if isinstance(x, Mapping) and self.forward is None and _positions(self, x):
                warn(LEFT_PADDING.format(type(self.model).__name__))
            return self._with_features(self._numbers(x).named_for(self.model, self.forward))
        if self.tokenizer is None:
            raise InputError(
                f"a text was given, {texts[0]!r:.60}, but no tokenizer: Lens(model, tokenizer=...). A picture file is "
                "Path(name), with Lens(model, transform=...)."
            )
        padded = {"padding": True} if len(texts) > 1 else {}
        encoding = self.tokenizer(list(texts), return_tensors="pt", **padded)
        read = encoded_texts(self.tokenizer, encoding, texts)
        given = dict(encoding)
        if self.forward is None:
            given |= _positions(self, given)
        return dataclasses.replace(as_inputs(given), texts=read)

    def reference(self, value: Any, inputs: Inputs | None) -> Any:
        """Read a table or pictures, given as a baseline or a reference, as the input is read; others are kept.

        Raises:
            InputError: when a table has other columns than the input.
        """
        by_name = isinstance(value, Mapping)
        if not any(is_frame(part) or is_series(part) for part in _parts(value).values()) and not are_pictures(value):
            return value
        read = self.inputs(value)
        known = {} if inputs is None else inputs.features
        for name, columns in read.features.items():
            if known.get(name, columns) != columns:
                raise InputError(f"the reference has other columns than input {name!r}, or in another order.")
        tensors = read.tensors()
        return tensors if by_name or len(tensors) > 1 else next(iter(tensors.values()))

    def _numbers(self, x: Any) -> Inputs:
        """Read an input other than text.

        Raises:
            InputError: when it is a list of dicts, or cannot be read.
        """
        if isinstance(x, (Inputs, torch.Tensor)):
            return as_inputs(x)
        value: Any = x
        names: Columns = ()
        if self.transform is None:
            refuse_pictures(x)
        else:
            value, names = self.transform(x)
        several = isinstance(value, list) or is_row(value)
        listed = isinstance(value, list) and (
            takes_list(self.model, self.forward) or self._are_pictures_of_a_list(value)
        )
        if several and (listed or len(value) > arguments(self.model, self.forward)):
            if isinstance(value, Mapping):  # a row of a data set: numbers by column
                value, names = np.array([list(value.values())], dtype=np.float64), tuple(map(str, value))
            else:
                if any(isinstance(one, Mapping) for one in value):
                    raise InputError(
                        f"the input is a list of {len(value)} dicts with {', '.join(map(str, value[0]))}. A table is "
                        "pandas.DataFrame(x); a chat is a text, tokenizer.apply_chat_template(x, tokenize=False)."
                    )
                value = stacked([torch.as_tensor(one) for one in value], "samples of the list")
        dtypes = {one.dtype for one in self.model.parameters() if one.is_floating_point()}
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else None
        inputs = as_inputs(value, dtype)
        if names:
            inputs = dataclasses.replace(inputs, features={next(iter(inputs.tensors())): names})
        if value is not x and dtype is not None:
            inputs = inputs.map(lambda one: one.to(dtype) if one.is_floating_point() else one)
        if not any(isinstance(one, torch.Tensor) for one in _parts(x).values()):
            inputs = inputs.to(home(self.model))
        return self._of_tables(value, inputs, dtype or torch.float32)

    def _of_tables(self, x: Any, inputs: Inputs, dtype: torch.dtype) -> Inputs:
        """Make tables of whole numbers floating-point, unless the model takes them only as they are."""
        whole = [name for name, part in _parts(x).items() if is_frame(part)]
        tensors = {name: one for name, one in inputs.tensors().items() if name in whole and not one.is_floating_point()}
        if not tensors:
            return inputs
        numbers = inputs.replace({name: one.to(dtype) for name, one in tensors.items()})
        return numbers if self._runs(numbers) or not self._runs(inputs) else inputs

    def _are_pictures_of_a_list(self, value: list[Any]) -> bool:
        """Whether a model takes these in a list without saying so, as some detectors do: it is tried."""
        tensors = [one for one in value if isinstance(one, torch.Tensor) and one.ndim == 3 and one.is_floating_point()]
        if not value or len(tensors) < len(value) or len({one.shape for one in tensors}) > 1:
            return False
        return not self._runs(as_inputs(value)) and self._runs(as_inputs(torch.stack(tensors)))

    def _runs(self, inputs: Inputs) -> bool:
        try:
            self.run_inputs(inputs)
        except Exception:  # whatever the model raises
            return False
        return True

    def _with_features(self, inputs: Inputs) -> Inputs:
        """Add the names of features that this model knows.

        Raises:
            InputError: when they do not fit the input, or its columns have other names.
        """
        if self.feature_names is None:
            return inputs
        tensors, by_name = inputs.tensors(), dict[str, Sequence[str]]()
        if isinstance(self.feature_names, Mapping):
            for name, names in self.feature_names.items():
                by_name |= dict.fromkeys(inputs.find(name, "input in feature_names="), names)
        else:
            floating = [name for name, one in tensors.items() if one.is_floating_point()]
            fits = [name for name in floating or tensors if len(self.feature_names) in tensors[name].shape[1:]]
            if len(fits) != 1 and len(tensors) > 1:
                raise InputError(
                    f"feature_names= of {len(self.feature_names)} names fits {', '.join(fits) or 'none'} of the inputs "
                    f"({inputs}): give a dict by input name."
                )
            by_name = {(fits or list(tensors))[0]: self.feature_names}
        for name, names in by_name.items():
            check_names(name, names, tensors[name].shape)
            columns = inputs.features.get(name, tuple(names))
            if columns != tuple(names):
                raise InputError(
                    f"the columns of input {name!r} are not the feature_names= of the model, in their order: "
                    f"{', '.join(columns[:5])}, ... for {', '.join(list(names)[:5])}, .... Try df[feature_names]."
                )
        return dataclasses.replace(inputs, features=inputs.features | {k: tuple(v) for k, v in by_name.items()})

    def with_tokens(self, result: Found, inputs: Inputs | None) -> Found:
        """Return a result, or each of a list, with the texts of its tokens, where they are known."""
        if inputs is None:
            return result
        if isinstance(result, list):
            return [self.with_tokens(one, inputs) for one in result]  # type: ignore[return-value]
        if isinstance(result, Attribution):
            result = _with_padding(_with_index(result, inputs), inputs)  # type: ignore[assignment]
        if self.tokenizer is None:
            return result
        ids = None
        if isinstance(result, AttentionWeights):
            found = {str(one): one.ids for one in sequences(inputs) if one.ids is not None}
            ids = found if len(found) > 1 else next(iter(found.values()), None)
        elif isinstance(result, Attribution) and result.tokens is None:
            ids = token_ids(result.values, result.inputs)
        if ids is None:
            return result
        tokens, texts = known_tokens(self.tokenizer, ids, inputs.texts)
        return dataclasses.replace(result, tokens=tokens, texts=texts)  # type: ignore[type-var]

    def __repr__(self) -> str:
        parts = [f"{len(Layers(self.model)) - 1} layers", f"{parameter_count(self.model):,} parameters"]
        if isinstance(self.class_names, (Sequence, Mapping)):
            parts.append(f"{len(self.class_names)} class names")
        return f"Lens({type(self.model).__name__}: {', '.join(parts)})"


LEFT_PADDING = (
    "the texts are padded on the left, and {} counts their positions from the padding, so that they get other scores "
    "than alone. Give position_ids, such as (attention_mask.cumsum(1) - 1).clamp(min=0), or pad on the right."
)


def _positions(lens: WrappedModel, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the positions that padding on the left does not shift, if one text is given its own output by them alone.

    Found by experiment; empty where that text has the same output without them, or another one with them.
    """
    mask = given.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or not mask.numel() or "position_ids" in given:
        return {}
    padded = ((mask[:, 0] == 0) & (mask[:, -1] != 0)).nonzero().flatten().tolist()
    if not padded:
        return {}
    row, length = padded[0], int((mask[padded[0]] != 0).sum())
    tensors = {name: one for name, one in given.items() if isinstance(one, torch.Tensor) and len(one) == len(mask)}
    one = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
    alone = {name: tensor[:, -length:] if tensors[name].shape == mask.shape else tensor for name, tensor in one.items()}
    counted = {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}

    def output(values: dict[str, torch.Tensor]) -> torch.Tensor | None:
        found: torch.Tensor | None = or_none(lambda: main_output(lens.run_inputs(as_inputs(values))))
        return found if found is None or found.ndim < 3 else found[:, -length:]

    truth = output(alone)
    if truth is None:
        return {}
    limit = (0.05 if truth.dtype.itemsize < 4 else 1e-3) * float(truth.abs().max())  # rotations round

    def same(values: dict[str, torch.Tensor]) -> bool:
        found = output(values)
        return found is not None and found.shape == truth.shape and float((found - truth).abs().max()) <= limit

    if same(one) or not same({**one, "position_ids": counted["position_ids"][row : row + 1]}):
        return {}
    return counted


def _parts(x: Any) -> dict[str, Any]:
    """The arguments of an input by name."""
    if isinstance(x, Mapping):
        return dict(x)
    return {str(place): part for place, part in enumerate(x if isinstance(x, (list, tuple)) else [x])}


def _with_index(result: Attribution, inputs: Inputs) -> Attribution:
    """Add the names of the samples where a method has not."""
    missing = result.index is None and len(result.score) == len(inputs.index or ())
    return dataclasses.replace(result, index=inputs.index) if missing else result


def _with_padding(result: Attribution, inputs: Inputs) -> Attribution:
    """Add to the values of tokens which of their places are padding."""
    used = {
        name: one.used
        for one in sequences(inputs)
        if one.used is not None and not bool(one.used.all())
        for name in one.names
    }
    values = result.values if isinstance(result.values, dict) else {}
    if isinstance(result.values, torch.Tensor) and result.axes == ("batch", "token"):
        ids = result.inputs
        own = [
            mask for name, mask in used.items() if isinstance(ids, torch.Tensor) and _same(inputs.tensors()[name], ids)
        ]
        return dataclasses.replace(result, used=own[0]) if own else result
    known = {name: used[name] for name, one in values.items() if name in used and one.ndim == 2}
    return dataclasses.replace(result, used=known) if known else result


def _same(x: torch.Tensor, other: torch.Tensor) -> bool:
    return x.shape == other.shape and bool((x == other).all())
