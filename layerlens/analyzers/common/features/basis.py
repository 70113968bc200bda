"""A basis: the units of a layer written as features of a dictionary, and the error that the features leave."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import nn

from layerlens.errors import InputError, OptionError, TargetError, choose
from layerlens.model.borrowed import borrowed
from layerlens.model.trees import describe
from layerlens.probes.edit_site import Site
from layerlens.probes.edits import Change, Part
from layerlens.targets.base import Target
from layerlens.targets.units import neuron

Rows = Callable[[torch.Tensor], Any]
"""A function of rows, `(rows, units)` to `(rows, features)` or back."""


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
        self.coder = coder
        """The object with `encode` and `decode`; None for functions."""
        self.features = None if features is None else tuple(features)
        """Names of the features; None where they are numbered."""
        self.name = name or ("own functions" if coder is None else type(coder).__name__)
        self._seen: int | None = None
        self.explained: float | None = None
        """Share of the variance of the units, around their mean, that the features explain on the data of a fit."""

    def __repr__(self) -> str:
        names = () if self.features is None else self.features
        shown = ", ".join(names[:4]) + (f", ... ({len(names)} features)" if len(names) > 4 else "")
        share = "" if self.explained is None else f"; {100 * self.explained:.1f}% of the variance"
        return f"Basis({self.layer!r}, {self.name}{': ' if shown else ''}{shown}{share})"

    @classmethod
    def of_directions(cls, layer: str, directions: Mapping[str, torch.Tensor], *, name: str = "directions") -> Basis:
        """Return the basis of some directions of a layer's units, such as those of concepts.

        The codes are the least-squares weights of the directions, and the error is orthogonal to all of them.

        Args:
            layer: path of the layer, as in `Basis`.
            directions: name -> `(unit,)`; they must be linearly independent.
            name: name for titles.

        Raises:
            OptionError: when they are not vectors of one length, or depend on each other.

        Example:
            >>> basis = Basis.of_directions("0", {"sum": torch.tensor([1.0, 1.0])})
            >>> basis.codes(torch.tensor([[3.0, 1.0]])), basis.error(torch.tensor([[3.0, 1.0]]))
            (tensor([[2.]]), tensor([[ 1., -1.]]))
        """
        shapes = {tuple(one.shape) for one in directions.values() if isinstance(one, torch.Tensor)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not all(map(torch.is_tensor, directions.values())):
            raise OptionError(
                "directions maps names to vectors of the layer's units, {'stripes': v}; got "
                f"{ {key: describe(one) for key, one in directions.items()} }."
            )
        decode = torch.stack([one.detach().double() for one in directions.values()])
        if int(torch.linalg.matrix_rank(decode)) < len(decode):
            raise OptionError(f"the directions {', '.join(directions)} depend on each other: leave some out.")
        encode = torch.linalg.pinv(decode)
        return cls(
            layer,
            encode=lambda rows: rows @ encode.to(rows),
            decode=lambda codes: codes @ decode.to(codes),
            features=list(directions),
            name=name,
        )

    def label(self, feature: int) -> str:
        """Return the name of a feature."""
        return f"feature {feature}" if self.features is None else self.features[feature]

    def number(self, feature: int | str) -> int:
        """Return the number of a feature that is given by its name or number.

        Raises:
            OptionError: when no feature has this name.
        """
        if not isinstance(feature, str):
            return feature
        return (self.features or ()).index(choose("feature", feature, self.features or ()))

    def direction(self, feature: int | str, codes: torch.Tensor | None = None) -> torch.Tensor:
        """Return what a feature adds to the units when its code grows by 1: the direction to steer along.

        Give it to any edit, `layerlens.edits.add(5 * basis.direction(3))`; `steer` finds the axis of units by itself.

        Args:
            feature: number or name of the feature.
            codes: codes `(features,)` from which the code grows, for a decoder that is not linear; None for zeros.

        Returns:
            `(unit,)`: decode(codes + one) - decode(codes).

        Raises:
            InputError: when `decode` needs what was encoded before it.
            OptionError: when there is no such feature, or nothing says how many there are: then give `codes`.
        """
        start = torch.zeros(self._count()) if codes is None else codes.detach().reshape(-1)
        number = self.number(feature)
        if not -len(start) <= number < len(start):
            raise OptionError(f"{self!r} has {len(start)} features; there is no feature {feature!r}.")
        rows = torch.stack([start, start])
        rows[1, number] += 1
        weight = None if self._module is None else next(self._module.parameters(), None)
        try:
            with torch.no_grad(), self.coding():
                made = self._decode(rows if weight is None else rows.to(weight))
        except Exception as error:  # whatever the coder raises
            raise InputError(
                f"decode of {self!r} failed on codes {tuple(rows.shape)} alone: {str(error)[:200].rstrip('.')}. Give "
                "codes= of its type, or take the edit basis.steer(...), which encodes the units of the run first."
            ) from error
        direction: torch.Tensor = made[1] - made[0]
        return direction

    def _count(self) -> int:
        """Return the number of features, where names or the codes of an earlier call say it.

        Raises:
            OptionError: when they do not.
        """
        if self.features is not None:
            return len(self.features)
        if self._seen is None:
            raise OptionError(f"{self!r} has not encoded anything, so the number of features is unknown: give codes=.")
        return self._seen

    def steer(self, feature: int | str, strength: float, *, fix: bool = False, **part: Any) -> Change:
        """Return an edit that adds to the code of a feature, or sets it: `edits={basis.layer: basis.steer(3, 5.0)}`.

        All other codes, and the error, stay as they are: h + decode(codes with the change) - decode(codes).

        Args:
            feature: number or name of the feature.
            strength: what is added to its code, at all places.
            fix: whether the code is set to `strength` instead.
            part: as in `layerlens.edits.Part`: `samples`, `positions`, `mask`.

        Raises:
            OptionError: when no feature has this name; on use, when there is no such number.

        Example:
            >>> from layerlens import Lens
            >>> basis = Basis.of_directions("0", {"sum": torch.tensor([1.0, 1.0])})
            >>> net = nn.Sequential(nn.Identity(), nn.Flatten())
            >>> Lens(net).run(torch.zeros(1, 2), edits={"0": basis.steer("sum", 3.0)})
            tensor([[3., 3.]])
        """
        number = self.number(feature)

        def moved(tensor: torch.Tensor, site: Site) -> torch.Tensor:
            last = tensor.movedim(site.axis_of(tensor, "unit"), -1)
            with self.coding():
                codes = self.encode_last(last)
                if not -codes.shape[-1] <= number < codes.shape[-1]:
                    raise OptionError(f"{self!r} has {codes.shape[-1]} features; there is no feature {number}.")
                new = codes.clone()
                new[..., number] = strength if fix else new[..., number] + strength
                step = self.decode_last(new, last) - self.decode_last(codes, last)
            return tensor + step.movedim(-1, site.axis_of(tensor, "unit"))

        name = f"steer({self.label(number)}, {strength:g})"
        return Change(name, moved, Part(**part), by_sample=True)

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
        codes = self._coded("encode", self._encode, units, None)
        self._seen = codes.shape[-1]
        return codes

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
        layer, call = self.site(call)
        number = self.number(feature)
        inner = neuron(layer, number, place=place, over=over, call=call)

        def read(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            codes = self.codes(output)
            if not -codes.shape[1] <= number < codes.shape[1]:
                raise TargetError(f"{self!r} has {codes.shape[1]} features; there is no feature {number}.")
            return inner.function(codes, rows)

        known = self.features is None or -len(self.features) <= number < len(self.features)
        label = f"{self.label(number) if known else number} of {self.layer}" + ("" if place is None else f" at {place}")
        return dataclasses.replace(inner, function=read, label=label, own=True)
