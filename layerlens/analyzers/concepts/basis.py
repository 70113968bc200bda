"""Dictionaries fitted to the units of a layer: principal components and NMF."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.calls.call_shapes import one_match
from layerlens.analyzers.common.features.basis import Basis, Coder
from layerlens.analyzers.common.features.feature_batches import gather
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.errors import InputError, OptionError, check_count, check_seed, choose, need
from layerlens.inputs.batches import Data, Read, Samples
from layerlens.inputs.inputs import Forward, as_inputs
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.layers import Selection
from layerlens.model.tensors import tensor_path
from layerlens.signatures import public

NNLS_STEPS = 300
"""Steps of accelerated projected gradient for the codes of NMF."""


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
