"""The tensor of a call that a basis writes as features, and the parts of it that are replaced or get a share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from layerlens.axes.layout import unit_name
from layerlens.errors import AxesUnknown, OptionError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.layers import Selection, is_listed
from layerlens.model.tensors import exchanged, refuse_several

from ..leaves.layer_leaf import LeafCall, find_leaf_calls
from .basis import Basis

Sites: TypeAlias = "Selection | Basis | Iterable[Selection | Basis]"
"""Layers, bases, or a list of both."""

Kind = Literal["codes", "error"]
"""The two parts of a layer in a basis: h = decode(codes) + error."""


ONE = "and a basis is of one"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BasisSite:
    """The tensor of one call that a basis writes as features.

    Attributes:
        basis: the basis.
        call: the call, and where its samples lie.
        unit: axis of units, with the batch first.
        name: name in results: the layer, and that of the basis where several are of one layer.
    """

    basis: Basis
    call: LeafCall
    unit: int
    name: str

    def __repr__(self) -> str:
        return repr(self.basis)

    def units_last(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor as `(batch, *places, unit)`."""
        return self.call.batch_first(tensor).movedim(self.unit, -1)

    def changed(self, output: object, change: Callable[[Kind, torch.Tensor], torch.Tensor]) -> Any:
        """Return an output with its codes and its error changed; what is not changed keeps its bits.

        Args:
            output: what the call returned.
            change: returns the codes `(batch, *places, feature)`, and the error `(batch, *places, unit)`, to continue
                with. Gradients reach what it returns.
        """
        name, tensor = self.call.of(output)
        hidden = self.units_last(tensor.detach())
        with self.basis.coding():
            with torch.no_grad():
                codes = self.basis.encode_last(hidden)
                decoded = self.basis.decode_last(codes, hidden)
            error = hidden - decoded
            new_codes, new_error = change("codes", codes), change("error", error)
            if new_codes is codes and new_error is error:
                return output
            step = new_error - error
            if new_codes is not codes:
                step = step + (self.basis.decode_last(new_codes, hidden) - decoded)
        return exchanged(self.call.module, output, {name: tensor + self.call.as_returned(step.movedim(-1, self.unit))})

    def exchange(self, given: Mapping[Kind, torch.Tensor], *, through: bool = False) -> Callable[[Any], Any]:
        """Return a function that replaces codes, the error or both in an output; what is not given stays.

        Args:
            given: kind -> values laid out as the layer's output with the batch first, with features for units in codes.
            through: as in `LeafCall.exchange`.
        """

        def change(output: object) -> Any:
            hidden = self.units_last(self.call.of(output)[1].detach())
            parts = {kind: value.movedim(self.unit, -1) for kind, value in given.items()}
            with self.basis.coding():
                codes, error = parts.get("codes"), parts.get("error")
                if codes is None or error is None:
                    with torch.no_grad():
                        own = self.basis.encode_last(hidden)
                        codes = own if codes is None else codes
                        error = hidden - self.basis.decode_last(own, hidden) if error is None else error
                new = (self.basis.decode_last(codes, hidden) + error).movedim(-1, self.unit)
            return self.call.put(output, new, through=through)

        return change

    def leaves(self, value: torch.Tensor) -> list[tuple[FeatureCall, torch.Tensor]]:
        """Return the codes and the error as what a score is attributed to, laid out as the output with the batch first.

        Args:
            value: the output of the layer, with the batch first.
        """
        hidden = value.detach().movedim(self.unit, -1)
        with torch.no_grad(), self.basis.coding():
            codes = self.basis.encode_last(hidden)
            error = hidden - self.basis.decode_last(codes, hidden)
        call = {field.name: getattr(self.call, field.name) for field in dataclasses.fields(self.call)}
        parts: list[tuple[Kind, torch.Tensor]] = [("codes", codes), ("error", error)]
        return [(FeatureCall(**call, site=self, kind=kind), one.movedim(-1, self.unit)) for kind, one in parts]


@dataclasses.dataclass(frozen=True)
class FeatureCall(LeafCall):
    """The codes, or the error, of a basis at a call.

    Attributes:
        site: the basis, and the tensor.
        kind: which of the two.
    """

    site: BasisSite
    kind: Kind

    @property
    def name(self) -> str:
        """Name of the layer, and of the part: `blocks.1 features`, `blocks.1 error`."""
        return f"{self.site.name} {'features' if self.kind == 'codes' else 'error'}"

    @property
    def selection(self) -> Any:
        """The basis, which names both parts in `where`."""
        return self.site.basis

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the features; none for the error, or where they are numbered."""
        return self.site.basis.features or () if self.kind == "codes" else ()


@dataclasses.dataclass(frozen=True)
class Shares:
    """How a linear function of the units, m . h at each place, is made of the features.

    Attributes:
        features: m . (what each feature adds to first order), `(batch, *places, feature)`.
        constant: m . decode(0), `(batch, *places)`.
        rest: what a decoder that is not linear adds besides, `(batch, *places)`; None for a linear one.
        error: m . error, `(batch, *places)`.
    """

    features: torch.Tensor
    constant: torch.Tensor
    rest: torch.Tensor | None
    error: torch.Tensor

    def items(self, basis: Basis) -> tuple[str, ...]:
        """Return the names of all rows."""
        more = () if self.rest is None else ("beyond first order",)
        return (*map(basis.label, range(self.features.shape[-1])), "constant", *more, "error")

    def rows(self) -> torch.Tensor:
        """Return all rows, `(batch, item, *places)`; they sum to m . h at each place."""
        ends = [one.unsqueeze(-1) for one in (self.constant, self.rest, self.error) if one is not None]
        return torch.cat([self.features, *ends], dim=-1).movedim(-1, 1)


def by_codes(
    basis: Basis, hidden: torch.Tensor, slope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the codes of units, what they decode to, and the multiplier of the codes, decode' m.

    Args:
        basis: the basis.
        hidden: the units h, `(batch, *places, unit)`.
        slope: the multiplier m, shaped like it.
    """
    with torch.enable_grad(), basis.coding():
        codes = basis.encode_last(hidden.detach()).detach().requires_grad_()
        decoded = basis.decode_last(codes, hidden.detach())
        (by_code,) = torch.autograd.grad(decoded, codes, slope)
    return codes.detach(), decoded.detach(), by_code


def shares(basis: Basis, hidden: torch.Tensor, slope: torch.Tensor) -> Shares:
    """Divide m . h among the features of a basis, by the gradient of the decoder times the codes.

    Args:
        basis: the basis.
        hidden: the units h, `(batch, *places, unit)`.
        slope: the multiplier m, shaped like it.
    """
    codes, decoded, by_code = by_codes(basis, hidden, slope)
    with torch.no_grad(), basis.coding():
        none = basis.decode_last(torch.zeros_like(codes), hidden)
    features = by_code * codes
    error, constant = (slope * (hidden - decoded)).sum(dim=-1), (slope * none).sum(dim=-1)
    beyond = (slope * (decoded - none)).sum(dim=-1) - features.sum(dim=-1)
    size = (slope * decoded).abs().sum(dim=-1) + features.abs().sum(dim=-1) + constant.abs()
    if bool((beyond.abs() <= 1e3 * torch.finfo(beyond.dtype).eps * size).all()):
        return Shares(features, constant + beyond, None, error)
    return Shares(features, constant, beyond, error)


def split_bases(layers: Sites) -> tuple[list[Basis], Selection]:
    """Return the bases of a selection, and the rest of it; `()` where nothing else is selected."""
    if isinstance(layers, Basis):
        return [layers], ()
    if not is_listed(layers):
        return [], layers  # type: ignore[return-value]
    bases = [one for one in layers if isinstance(one, Basis)]
    return bases, [one for one in layers if not isinstance(one, Basis)] or () if bases else layers


def find_basis_sites(
    model: nn.Module, inputs: Inputs, bases: Iterable[Basis], forward: Forward | None
) -> list[BasisSite]:
    """Find the tensors that bases write as features; the model is run once for each.

    Raises:
        InputError: when a tensor has no axis of samples.
        LayerNotFound: when a layer does not exist.
        SelectionError: when a basis names several layers, calls or tensors.
        RecordError: when its layer did not run.
        AxesUnknown: when the axis of samples, or of units, is not known.
        OptionError: when two bases of one layer have one name, or two features.
    """
    return [site for site, _ in basis_sites_and_values(model, inputs, bases, forward)]


def basis_sites_and_values(
    model: nn.Module, inputs: Inputs, bases: Iterable[Basis], forward: Forward | None
) -> list[tuple[BasisSite, torch.Tensor]]:
    """Find the tensors, and their values with the batch first; see `find_basis_sites`.

    Raises:
        OptionError: when two bases of one layer have one name, or two features.
    """
    sites: dict[str, tuple[BasisSite, torch.Tensor]] = {}
    given = list(dict.fromkeys(bases))
    for basis in given:
        found = find_leaf_calls(model, inputs, basis.layer, forward)
        if len(found) > 1:
            refuse_several(basis.layer, [call.tensor for call, _ in found], ONE)
        ((call, value),) = found
        several = sum(one.layer == basis.layer for one in given) > 1
        name = f"{basis.layer} {basis.name}" if several else basis.layer
        if name in sites:
            raise OptionError(f"two bases are called {name!r}: give them names, Basis(..., name='first').")
        names = (*(basis.features or ()), "error")
        if twice := [one for number, one in enumerate(names) if one in names[:number]]:
            raise OptionError(f"{basis!r} has two parts called {twice[0]!r}: name its features differently.")
        sites[name] = BasisSite(basis, call, unit_axis(basis, call, value), name), value
    return list(sites.values())


def unit_axis(basis: Basis, call: LeafCall, value: torch.Tensor) -> int:
    """Return the axis of units of a layer's output with the batch first.

    Raises:
        AxesUnknown: when it is unknown.
    """
    axes = call.axes
    unit = None if axes is None else unit_name(axes)
    if axes is None or unit is None:
        example = ("batch", "unit", "height", "width")[: value.ndim]
        raise AxesUnknown(
            f"layer {basis.layer!r} returned {tuple(value.shape)}, whose axis of units is not known "
            f"({axes}): name its axes, such as Lens(model, axes={{{basis.layer!r}: {example}}})."
        )
    return axes.index(unit)
