"""Bases: the units of a layer written as features of a dictionary, and the error that the features leave."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.analyzers.common.features.feature_batches import gather
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.errors import InputError, OptionError, TargetError, check_count, check_seed, choose, need
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.borrowed import borrowed, generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.model.tensors import tensor_path
from layerlens.model.trees import describe
from layerlens.signatures import public
from layerlens.targets.base import Target
from layerlens.targets.units import neuron

Rows = Callable[[torch.Tensor], Any]
"""A function of rows, `(rows, units)` to `(rows, features)` or back."""

NNLS_STEPS = 300
"""Steps of accelerated projected gradient for the codes of NMF."""


class Coder(Protocol):
    """Anything that encodes and decodes rows, such as a sparse autoencoder."""

    def encode(self, rows: Any) -> Any:
        """Return the codes `(rows, features)` of `(rows, units)`."""

    def decode(self, codes: Any) -> Any:
        """Return `(rows, units)` of the codes."""


class Basis:
    """The units h of a layer as features of a dictionary: h = decode(encode(h)) + error, at each place.

    Args:
        layer: path of the layer, or of a tensor of its output (`"rnn/h_n"`), or a call of it (`"rnn#1"`).
        coder: an object with `encode` and `decode`, such as a sparse autoencoder of SAELens or overcomplete, or any
            `nn.Module` with both. They take `(rows, units)` and `(rows, features)`, a row being a place of a sample.
            Where `encode` returns several tensors, the last one holds the codes, as in overcomplete.
        encode: the function by itself, instead of `coder`.
        decode: the function by itself.
        features: names of the features; None numbers them.
        name: name for titles.

    Raises:
        OptionError: when there is not one coder, or one pair of functions.

    Example:
        >>> pairs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
        >>> basis = Basis("0", encode=lambda h: h @ pairs.T, decode=lambda c: c @ pairs, features=["sum", "difference"])
        >>> basis
        Basis('0', own functions: sum, difference)
        >>> basis.codes(torch.tensor([[3.0, 3.0]]))[0, 1]
        tensor(0.)
    """

    def __init__(
        self,
        layer: str,
        coder: Coder | None = None,
        *,
        encode: Rows | None = None,
        decode: Rows | None = None,
        features: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        if coder is not None and encode is None and decode is None:
            encode, decode = getattr(coder, "encode", None), getattr(coder, "decode", None)
        elif coder is not None:
            raise OptionError("Basis takes a coder, or encode= and decode=, not both.")
        if not isinstance(layer, str) or not callable(encode) or not callable(decode):
            raise OptionError(
                "Basis takes the path of a layer, and an object with encode and decode, or both functions: "
                f"Basis('blocks.1', sae) or Basis('blocks.1', encode=..., decode=...). Got {layer!r} and "
                f"{'no coder' if coder is None else describe(coder)}."
            )
        self.layer, self._encode, self._decode = layer, encode, decode
        self._module = coder if isinstance(coder, nn.Module) else None
        self.features = None if features is None else tuple(features)
        """Names of the features; None where they are numbered."""
        self.name = name or ("own functions" if coder is None else type(coder).__name__)
        self.explained: float | None = None
        """Share of the variance of the units, around their mean, that the features explain on the data of a fit."""

    def __repr__(self) -> str:
        names = () if self.features is None else self.features
        shown = ", ".join(names[:4]) + (f", ... ({len(names)} features)" if len(names) > 4 else "")
        share = "" if self.explained is None else f"; {100 * self.explained:.1f}% of the variance"
        return f"Basis({self.layer!r}, {self.name}{': ' if shown else ''}{shown}{share})"

    def label(self, feature: int) -> str:
        """Return the name of a feature."""
        return f"feature {feature}" if self.features is None else self.features[feature]

    def codes(self, units: torch.Tensor) -> torch.Tensor:
        """Return the codes of what the layer returned.

        Args:
            units: `(batch, unit, *places)`.

        Returns:
            `(batch, feature, *places)`.

        Raises:
            InputError: when `encode` fails on them, or returns another shape.
        """
        with self.coding():
            return self.encode_last(units.movedim(1, -1)).movedim(-1, 1)

    def error(self, units: torch.Tensor) -> torch.Tensor:
        """Return what the features leave of what the layer returned, shaped like it: h - decode(encode(h)).

        Args:
            units: `(batch, unit, *places)`.

        Raises:
            InputError: when `encode` or `decode` fails, or returns another shape.
        """
        with self.coding():
            last = units.movedim(1, -1)
            return units - self.decode_last(self.encode_last(last), last).movedim(-1, 1)

    def site(self, call: int = 0) -> tuple[str, int]:
        """Return the layer without its call, and the call, or another where the layer does not name one.

        Raises:
            OptionError: when two calls are named.
        """
        head, named, rest = self.layer.partition("#")
        number, slash, tensor = rest.partition("/")
        if named and call not in (0, int(number)):
            raise OptionError(f"{self!r} is of call {number}, so call={call} is one too many: leave it out.")
        return head + slash + tensor, int(number) if named else call

    @contextlib.contextmanager
    def coding(self) -> Iterator[None]:
        """Keep the state of an encoder between `encode` and `decode`, in eval mode, and restore it afterwards.

        Yields:
            Nothing.
        """
        with contextlib.ExitStack() as stack:
            if self._module is not None:
                stack.enter_context(borrowed(self._module, grad=torch.is_grad_enabled()))
            yield

    def encode_last(self, units: torch.Tensor) -> torch.Tensor:
        """Return the codes `(..., features)` of `(..., units)`, within `coding`.

        Raises:
            InputError: when `encode` fails, or returns another shape.
        """
        return self._coded("encode", self._encode, units, None)

    def decode_last(self, codes: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return `decode(codes)`, shaped like `units`, `(..., units)`, within `coding`.

        Raises:
            InputError: when `decode` fails, or returns another shape.
        """
        if self._module is not None:  # SAELens keeps the norm of what it encodes, and forgets it when it decodes
            with torch.no_grad():
                self._coded("encode", self._encode, units, None)
        return self._coded("decode", self._decode, codes, units.shape[-1])

    def _coded(self, doing: str, function: Rows, values: torch.Tensor, width: int | None) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        weight = None if self._module is None else next(self._module.parameters(), None)
        try:
            made = function(rows if weight is None else rows.to(weight))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            why, hint = (
                str(error)[:200].rstrip("."),
                " It runs in eval mode: if it prepares that in eval(), call sae.eval() first.",
            )
            raise InputError(
                f"{doing} of {self!r} failed on rows {tuple(rows.shape)} of layer {self.layer!r}: {why}."
                + ("" if self._module is None else hint)
            ) from error
        if isinstance(made, (tuple, list)) and made:
            made = made[-1]
        if not isinstance(made, torch.Tensor) or made.ndim != 2 or len(made) != len(rows):
            raise InputError(f"{doing} must return one row for each of {tuple(rows.shape)}; got {describe(made)}.")
        if width is not None and made.shape[1] != width:
            raise InputError(f"decode returned {made.shape[1]} units; layer {self.layer!r} has {width}.")
        if width is None and self.features is not None and made.shape[1] != len(self.features):
            raise InputError(f"encode returned {made.shape[1]} features; {len(self.features)} names are given.")
        return made.to(values).reshape(*values.shape[:-1], -1)

    def feature(
        self,
        feature: int | str,
        *,
        place: int | tuple[int, ...] | None = None,
        over: Literal["mean", "max", "sum"] = "mean",
        call: int = 0,
    ) -> Target:
        """Return a feature as the target of saliency or relevance, as `neuron` does a unit.

        Args:
            feature: number or name of the feature.
            place: as in `neuron`.
            over: how places are combined.
            call: which call of a layer that runs several times.

        Raises:
            OptionError: when no feature has this name, or the layer names another call; TargetError on use, when there
                is no such number.
        """
        if isinstance(feature, str):
            choose("feature", feature, self.features or ())
            feature = (self.features or ()).index(feature)
        layer, call = self.site(call)
        number, inner = feature, neuron(layer, feature, place=place, over=over, call=call)

        def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            codes = self.codes(output)
            if not -codes.shape[1] <= number < codes.shape[1]:
                raise TargetError(f"{self!r} has {codes.shape[1]} features; there is no feature {number}.")
            return inner.function(codes, rows)

        known = self.features is None or -len(self.features) <= number < len(self.features)
        label = f"{self.label(number) if known else number} of {self.layer}" + ("" if place is None else f" at {place}")
        return dataclasses.replace(inner, function=read, label=label, own=True)


@public
def basis(
    model: nn.Module,
    data: Samples,
    layer: Selection,
    *,
    method: Literal["pca", "nmf"] = "pca",
    features: int = 10,
    max_samples: int = 2000,
    places: int = 8,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Basis:
    """Fit a dictionary to the units of a layer over a data set, by scikit-learn.

    A row is one place of one sample. `"pca"` subtracts the mean and takes orthogonal directions of the largest
    variance; `"nmf"` takes non-negative directions with non-negative codes, and needs activations that are not
    negative. The codes of new rows are computed by torch, so that gradients pass them.

    Args:
        method: `"pca"` or `"nmf"`.
        features: number of features.
        places: number of places of each sample that are fitted to, drawn at random.

    Returns:
        A `Basis`: `basis.feature(3)` is a target, `feature_effects` says what each feature adds to a score, and
        `top_inputs(data, basis, by="activation")` shows what it responds to.

    Raises:
        LayerNotFound, SelectionError: when the selection does not match one layer.
        InputError: when the layer has no units, returned several tensors or ran several times and none is named,
            or has negative units with `"nmf"`.
        OptionError: when there are fewer rows or units than features.
        MissingPackage: when scikit-learn is not installed.

    Source: Fel et al. 2023, "A holistic approach to unifying automatic concept extraction and concept importance
    estimation": PCA and NMF as dictionaries of concepts.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.randn(50, 2)
        >>> basis(net, x, "0", features=2)
        Basis('0', PCA: feature 0, feature 1; 100.0% of the variance)
    """
    choose("method", method, ("pca", "nmf"))
    for option, value in (("features", features), ("max_samples", max_samples), ("places", places)):
        check_count(option, value)
    check_seed(seed)
    before = generator_states()  # the first import of scikit-learn draws random numbers
    package = need("sklearn.decomposition", "basis", "sklearn")
    restore_generators(before)
    matches = one_match(model, layer)
    (path,) = matches
    tensors, calls = matches.tensors[path], sorted(matches.calls[path] or ())
    reader = _PlaceReader(model, [tensor_path(path, one) for one in tensors or ("",)], places, seed, forward)
    given = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    found = gather(reader, given, max_samples, seed, "basis")
    own = tuple(f"{path} #{call}" if call else path for call in calls)
    chosen = {name: rows for name, rows in found.layers.items() if not own or name.split("/")[0] in own}
    if len(chosen) != 1:
        listed = ", ".join(repr(_selection(name, path, found.layers)) for name in found.layers)
        raise InputError(f"basis takes one tensor of one call, and {layer!r} has {len(chosen)}: name one of {listed}.")
    ((name, flat),) = chosen.items()
    rows = flat.reshape(-1, reader.units[name])
    if features > min(rows.shape):
        raise OptionError(
            f"features={features}, and layer {name!r} has {rows.shape[1]} units in {len(rows)} rows: ask for at most "
            f"{min(rows.shape)}."
        )
    if method == "nmf" and bool((rows < 0).any()):
        raise InputError(
            f"method='nmf' needs activations that are not negative, and layer {name!r} has {float(rows.min()):.3g}: "
            "take a layer after a ReLU, or method='pca'."
        )
    if method == "pca":
        fitted = package.PCA(features, svd_solver="full").fit(rows.numpy())
        coder: Coder = _Linear(torch.from_numpy(fitted.components_), torch.from_numpy(fitted.mean_))
    else:
        fitted = package.NMF(features, init="nndsvda", random_state=seed, max_iter=2000).fit(rows.numpy())
        coder = _NonNegative(torch.from_numpy(fitted.components_))
    names = [f"feature {number}" for number in range(features)]
    made = Basis(_selection(name, path, found.layers), coder, features=names, name=method.upper())
    spread = (rows - rows.mean(dim=0)).square().sum()
    made.explained = float(1 - made.error(rows).square().sum() / spread) if float(spread) else None
    return made


def _selection(name: str, path: str, names: Iterable[str]) -> str:
    """Return what selects one of the names of calls of a layer: the first call of several is `"rnn#0"`."""
    if " #" not in name and any(" #" in one for one in names):
        name = f"{path}#0{name[len(path) :]}"
    return name.replace(" #", "#")


class _PlaceReader(FeatureReader):
    """Reads some places of each sample, `(batch, places x units)`."""

    def __init__(self, model: nn.Module, layers: Selection, places: int, seed: int, forward: Forward | None) -> None:
        super().__init__(model, layers, forward=forward)
        self._places, self.units = places, dict[str, int]()
        self._generator = torch.Generator().manual_seed(seed)

    def reduced(self, name: str, path: str, values: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        if not bool(values.isfinite().all()):
            return None, "it holds NaN or infinity"
        flat = values.double().cpu().reshape(*values.shape[:2], -1).movedim(1, 2)  # (batch, place, unit)
        if not self.units:
            self._places = min(self._places, flat.shape[1])
        self.units[name] = flat.shape[2]
        keys = torch.rand(*flat.shape[:2], generator=self._generator)
        if flat.shape[1] < self._places:
            keys = keys.repeat(1, -(-self._places // flat.shape[1]))
        chosen = keys.argsort(dim=1)[:, : self._places] % flat.shape[1]
        return flat.gather(1, chosen.unsqueeze(-1).expand(-1, -1, flat.shape[2])).flatten(1), ""


@dataclasses.dataclass(frozen=True)
class _Linear:
    """Principal components, `(features, units)`, of units around a mean."""

    components: torch.Tensor
    mean: torch.Tensor

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.mean.to(rows)) @ self.components.to(rows).T

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.components.to(codes) + self.mean.to(codes)


@dataclasses.dataclass(frozen=True)
class _NonNegative:
    """Non-negative components, `(features, units)`; codes by non-negative least squares (Beck and Teboulle 2009)."""

    components: torch.Tensor

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        parts = self.components.to(rows)
        gram = parts @ parts.T
        step = 1 / torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-30)
        wanted = rows @ parts.T
        codes = ahead = torch.zeros_like(wanted)
        momentum = 1.0
        for _ in range(NNLS_STEPS):
            new = torch.relu(ahead - step * (ahead @ gram - wanted))
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / following * (new - codes)
            codes, momentum = new, following
        return codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.components.to(codes)
