"""The methods of attribution by name, with what each costs and needs, and what their docstrings share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, cast

from layerlens.errors import OptionError, choose, warn
from layerlens.results import Attribution
from layerlens.signatures import documented, public, with_section

from .held_inputs import with_hold
from .text_lengths import by_length

Family = Literal["gradient", "path", "perturbation", "cam", "relevance", "automatic"]
AnyMethod = TypeVar("AnyMethod", bound=Callable[..., Attribution])


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of attribution.

    Attributes:
        name: published name, in snake case.
        function: takes `(model, x, *, target, forward, ...)`.
        family: what the method is made of.
        passes: cost per sample, in forward passes or gradients (a forward and a backward pass).
        needs: what it needs of model and input; empty for any that can be differentiated.
        source: where it was published.
    """

    name: str
    function: Callable[..., Attribution]
    family: Family
    passes: str
    needs: str
    source: str

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function."""
        return inspect.signature(self.function).parameters


METHODS: dict[str, Method] = {}
"""Name -> method, filled by the decorator `method` as `layerlens.analyzers.saliency` is imported."""

_ARGS = {
    "x": "... Token ids count by their embeddings, and values are summed over the features of these.",
    "baseline": 'reference input: `"zero"`, `"noise"`, a number, a tensor, or a dict by input name; of images and '
    'series also `"mean"`, `"blur"`, `"black"`, `"white"`; of token ids a whole number is the id of a reference token.',
    "baselines": "references: an array `(references, ...)` or a DataFrame of samples, best of the data the model "
    "knows; a dict of those by input name; a `Dataset`, `DataLoader` or `Data` of up to 1000 samples (of masks and "
    "held inputs, those of x stay); a function of "
    'the inputs, or of nothing, that returns one of these; a list of baselines, such as `["zero", "mean"]`; or None '
    "for noise with the mean and deviation of each sample.",
    "features": "values that are removed together. None: columns of a table, tokens, about 64 cells of an image, a "
    'volume or a series. `"values"`, `"places"`, `"channels"`, `"cells"`, `"superpixels"`; a number of cells; labels '
    "(whole numbers) that broadcast to the input, -1 for what is never removed; or a dict of those by input name, in "
    'which equal labels are one feature. Or groups of columns: `{"size": ["rooms", "area"]}`, of several inputs '
    '`{"size": {"a": [0, 2], "b": "all"}}`.',
    "stdevs": "standard deviation of the noise in units of the input: one number, one per input, or a dict by name.",
    "of": 'method whose maps at the noisy copies are taken instead of gradients, such as `"integrated_gradients"`, '
    '`"relevance"` or `"grad_cam"`.',
    "of_options": 'options of that method, such as `{"steps": 20}`.',
    "until": "draw in rounds until the 90 % interval of every value reaches at most this share of the largest absolute "
    "value of its sample to either side, such as 0.1; the number of draws is then the most. None makes all of them.",
    "batch_size": 'inputs per pass; `"auto"` bounds it by memory.',
    "tolerance": "largest |sum - (S(x) - S(x'))| / |S(x) - S(x')| that is accepted; `math.inf` accepts any.",
    "multiply_by_inputs": "whether values are multiplied by x - x', the difference from the baseline; False gives "
    "them per unit of input (local attributions, Ancona et al. 2018, sec. 3.2), also where that difference is zero.",
    "custom_attribution_func": "makes the values instead, as in captum: a function of a tuple with the multipliers of "
    "each input and, if it takes them, of the inputs and of the baselines; it returns a tuple shaped like the inputs.",
    "quadrature": 'rule of the integral: `"gausslegendre"`, `"riemann_left"`, `"riemann_right"`, `"riemann_middle"` or '
    '`"riemann_trapezoid"`; the first needs the fewest steps.',
    "max_steps": "most steps; a sample that misses the tolerance gets twice as many until it meets it.",
}
_RAISES = {
    "InputError": "when the input holds nothing to attribute to.",
    "OptionError": "when an option is out of range, or does not fit the input.",
    "LayerNotFound": "when `where` matches no layer.",
    "SelectionError": "when `where` matches several layers or calls.",
    "TargetError": "when the target does not fit the output, or no gradient reaches the input.",
}
_RETURNS = {"": "An `Attribution` shaped like the input, `(batch, token)` for token ids, in units of the score."}
_WARNS = {"UserWarning": "when the values of a sample are zero everywhere."}

_RENAMED = {"centred_relevance": "centered_relevance"}
"""Old name of a method -> its name."""


def method_named(name: str, kind: str = "saliency method") -> Method:
    """Return the method of a name; an old name is accepted with a DeprecationWarning.

    Args:
        name: name of the method.
        kind: what the name is called in errors.

    Raises:
        OptionError: when no method has this name, or several are given.
    """
    if isinstance(name, (list, tuple)):
        raise OptionError(f"one {kind} at a time, got {name!r}: one call for each, or lens.evaluate(x, {name!r}).")
    if isinstance(name, str) and name in _RENAMED:
        warn(f"the {kind} {name!r} is now {_RENAMED[name]!r}.", DeprecationWarning)
        name = _RENAMED[name]
    return METHODS[choose(kind, name, METHODS)]


DOCUMENTED: dict[str, Mapping[str, Mapping[str, str]]] = {
    "gradient": {"Args": _ARGS, "Raises": _RAISES, "Warns": _WARNS},
    "path": {"Args": _ARGS, "Returns": _RETURNS, "Raises": _RAISES, "Warns": _WARNS},
    "perturbation": {
        "Args": {
            **{name: text for name, text in _ARGS.items() if name not in ("x", "tolerance")},
            "baselines": "background data, instead of a baseline: a score is then the mean over its samples, and costs "
            "a pass for each. An array `(references, ...)`, a DataFrame, a dict of those by input name, a data set, a "
            "function of the inputs, or a list of baselines; None for `baseline`.",
        },
        "Returns": _RETURNS,
        "Raises": {**_RAISES, "TargetError": "when the target does not fit the output."},
        "Warns": _WARNS,
    },
    "cam": {
        "Args": {
            "x": "... It has places: an image, a volume, a series, token ids.",
            "layer": 'one layer, or a call of one (`"relu#1"`); None for the last with places.',
            "relu": "whether to keep the positive part only; False gives a signed map.",
            "aug_smooth": "whether to average over the image mirrored and made 10 % weaker and stronger, six runs.",
            "eigen_smooth": "whether to take the first principal component of the weighted units, not their sum.",
            "grid": "(height, width), or one length, of the layer's tokens; leading tokens beyond it are dropped.",
            "reshape": "function from the layer's output to `(batch, unit, *places)`, instead of a grid.",
            "units": "number of units to try, those that vary most over the places; None for all.",
            "batch_size": _ARGS["batch_size"],
        },
        "Returns": {
            "": "An `Attribution` `(batch, *places)` over the places of the input; `settings` holds the layer, its "
            "call and its grid."
        },
        "Raises": {
            "InputError": "when the input has no places.",
            "LayerNotFound": "when `layer` matches no layer.",
            "SelectionError": "when `layer` matches several layers.",
            "RecordError": "when the layer did not run, has no such call, or ran several times and no call was named.",
            "OptionError": "when the layer's output has no places, or the score does not depend on it.",
            "TargetError": "when the target does not fit the output.",
        },
        "Warns": {"UserWarning": "when the map of a sample is zero everywhere."},
    },
}
"""Family -> section -> what the docstrings of all its methods say there, where they do not say it themselves."""


def method(
    *,
    family: Family,
    passes: str,
    source: str,
    needs: str = "",
    name: str | None = None,
    by_lengths: bool = False,
    changes_inputs: bool = False,
) -> Callable[[AnyMethod], AnyMethod]:
    """Register a function as a method of attribution, and complete its docstring by `DOCUMENTED`; see `Method`.

    Args:
        family: what the method is made of.
        passes: cost per sample.
        source: where it was published.
        needs: what it needs of model and input.
        name: name of the method; None for the name of the function.
        by_lengths: whether it draws numbers or counts places for all samples of a batch together, so that texts of
            several lengths are run length by length, see `by_length`; of perturbations and CAMs all are.
        changes_inputs: whether it changes the inputs also at a layer, so that some can be held.
    """

    def register(function: AnyMethod) -> AnyMethod:
        parameters = inspect.signature(function).parameters
        for section, shared in DOCUMENTED.get(family, {}).items():
            text = function.__doc__ or ""
            if section == "Args":
                function.__doc__ = documented(text, parameters, shared)
            else:
                known = {key: why for key, why in shared.items() if "where" in parameters or "`where`" not in why}
                function.__doc__ = with_section(text, section, known)
        apart = by_lengths or family in ("perturbation", "cam")
        run = by_length(function, apart)
        function = public(cast(AnyMethod, run if family == "cam" else with_hold(run, changes_inputs=changes_inputs)))
        method_name = name or function.__name__
        METHODS[method_name] = Method(method_name, function, family, passes, needs, source)
        return function

    return register
