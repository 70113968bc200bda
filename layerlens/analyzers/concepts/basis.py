"""Dictionaries fitted to the units of a layer: principal components, NMF, a sparse autoencoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

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

from .sparse_autoencoder import SparseAutoencoder

NNLS_STEPS = 300
"""Steps of accelerated projected gradient for the codes of NMF."""


@public
def basis(
    model: nn.Module,
    data: Samples,
    layer: Selection,
    *,
    method: Literal["pca", "nmf", "sae"] = "pca",
    features: int = 10,
    max_samples: int = 2000,
    places: int = 8,
    skip: int = 0,
    active: int = 16,
    steps: int = 1000,
    batch_size: int = 16,
    batched: bool | None = None,
    read: Read = as_inputs,
    seed: int = 0,
    progress: bool | None = None,
    forward: Forward | None = None,
) -> Basis:
    """Fit a dictionary to the units of a layer over a data set, by scikit-learn or by training an autoencoder.

    A row is one place of one sample. `"pca"` subtracts the mean and takes orthogonal directions of the largest
    variance; `"nmf"` takes non-negative directions with non-negative codes, and needs activations that are not
    negative; `"sae"` trains a `SparseAutoencoder`, of many more features than the others, of which each row keeps the
    `active` with the largest codes. The codes of new rows are computed by torch, so that gradients pass them.

    Args:
        method: `"pca"`, `"nmf"` or `"sae"`.
        features: number of features.
        places: number of places of each sample that are fitted to, drawn at random.
        skip: number of first places of each sample that are left out: 1 for language models whose first token has
            activations that are a hundred times as large as all others.
        active: with `"sae"`, the number of features of a row.
        steps: with `"sae"`, the number of steps of training, on 1024 rows each.

    Returns:
        A `Basis`: `basis.feature(3)` is a target, `feature_effects` says what each feature adds to a score, and
        `top_inputs(data, basis, by="activation")` shows what it responds to. `basis.explained` is the share of the
        variance that it explains, and `basis.coder` the trained autoencoder, to keep by its `state_dict()`.

    Raises:
        LayerNotFound, SelectionError: when the selection does not match one layer.
        InputError: when the layer has no units, returned several tensors or ran several times and none is named,
            or has negative units with `"nmf"`.
        OptionError: when there are fewer rows or units than features, or more features active than there are.
        MissingPackage: when scikit-learn is not installed.

    Source: Fel et al. 2023, "A holistic approach to unifying automatic concept extraction and concept importance
    estimation": PCA and NMF as dictionaries of concepts; Gao et al. 2024, "Scaling and evaluating sparse autoencoders".

    Example:
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), torch.randn(50, 2)
        >>> basis(net, x, "0", features=2)
        Basis('0', PCA: feature 0, feature 1; 100.0% of the variance)
    """
    choose("method", method, ("pca", "nmf", "sae"))
    counts = {"features": features, "max_samples": max_samples, "places": places, "active": active, "steps": steps}
    for option, value in counts.items():
        check_count(option, value)
    check_count("skip", skip, least=0)
    check_seed(seed)
    package: Any = None
    if method != "sae":
        before = generator_states()  # the first import of scikit-learn draws random numbers
        package = need("sklearn.decomposition", "basis", "sklearn")
        restore_generators(before)
    elif active > features:
        raise OptionError(f"active={active}, and there are features={features}: ask for at most as many.")
    matches = one_match(model, layer)
    (path,) = matches
    tensors, calls = matches.tensors[path], sorted(matches.calls[path] or ())
    selected = [tensor_path(path, one) for one in tensors or ("",)]
    reader = _PlaceReader(model, selected, places, seed, forward, skip)
    given = Data.of(data, batch_size=batch_size, batched=batched, read=read, progress=progress)
    found = gather(reader, given, max_samples, seed, "basis")
    own = tuple(f"{path} #{call}" if call else path for call in calls)
    chosen = {name: rows for name, rows in found.layers.items() if not own or name.split("/")[0] in own}
    if len(chosen) != 1:
        listed = ", ".join(repr(_selection(name, path, found.layers)) for name in found.layers)
        raise InputError(f"basis takes one tensor of one call, and {layer!r} has {len(chosen)}: name one of {listed}.")
    ((name, flat),) = chosen.items()
    rows = flat.reshape(-1, reader.units[name])
    if method != "sae" and features > min(rows.shape):
        raise OptionError(
            f"features={features}, and layer {name!r} has {rows.shape[1]} units in {len(rows)} rows: ask for at most "
            f"{min(rows.shape)}."
        )
    if method == "nmf" and bool((rows < 0).any()):
        raise InputError(
            f"method='nmf' needs activations that are not negative, and layer {name!r} has {float(rows.min()):.3g}: "
            "take a layer after a ReLU, or method='pca'."
        )
    if method == "sae":
        sae = SparseAutoencoder(rows.shape[1], features, active)
        sae.fit(rows, steps, seed, progress)
        coder: Coder = sae
    elif method == "pca":
        fitted = package.PCA(features, svd_solver="full").fit(rows.numpy())
        coder = _Linear(torch.from_numpy(fitted.components_), torch.from_numpy(fitted.mean_))
    else:
        fitted = package.NMF(features, init="nndsvda", random_state=seed, max_iter=2000).fit(rows.numpy())
        coder = _NonNegative(torch.from_numpy(fitted.components_))
    names = [f"feature {number}" for number in range(features)]
    made = Basis(_selection(name, path, found.layers), coder, features=names, name=method.upper())
    spread = float((rows - rows.mean(dim=0)).square().sum())
    with torch.no_grad():
        left = sum(float(made.error(part).square().sum()) for part in torch.split(rows, 4096))
    made.explained = 1 - left / spread if spread else None
    return made


def _selection(name: str, path: str, names: Iterable[str]) -> str:
    """Return what selects one of the names of calls of a layer: the first call of several is `"rnn#0"`."""
    if " #" not in name and any(" #" in one for one in names):
        name = f"{path}#0{name[len(path) :]}"
    return name.replace(" #", "#")


class _PlaceReader(FeatureReader):
    """Reads some places of each sample, `(batch, places x units)`."""

    def __init__(
        self, model: nn.Module, layers: Selection, places: int, seed: int, forward: Forward | None, skip: int
    ) -> None:
        super().__init__(model, layers, forward=forward)
        self._places, self._skip, self.units = places, skip, dict[str, int]()
        self._generator = torch.Generator().manual_seed(seed)

    def reduced(self, name: str, path: str, values: torch.Tensor) -> tuple[torch.Tensor | None, str]:
        if not bool(values.isfinite().all()):
            return None, "it holds NaN or infinity"
        flat = (
            values.double().cpu().reshape(*values.shape[:2], -1).movedim(1, 2)[:, self._skip :]
        )  # (batch, place, unit)
        if not flat.shape[1]:
            return None, f"it has no places but the first {self._skip}"
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
