"""Attention that is written out: a softmax over the last axis, followed to its product with values."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

_SAME = {"dropout", "contiguous", "clone"}
"""Functions that leave attention weights as they are; dropout does in eval mode."""
_CHANGED = {"to", "type", "type_as", "half", "float", "double", "bfloat16", "masked_fill", "nan_to_num"}
"""Functions whose result is the new weights."""
_SHAPED = {"view", "reshape", "expand", "flatten", "unflatten", "squeeze", "unsqueeze"}
_TURNED = {"transpose", "permute", "swapaxes", "swapdims"}
_PRODUCTS = {"matmul", "bmm", "einsum"}
_MOST = 16
"""Largest number of softmaxes that wait for a product; older ones are not attention."""


@dataclasses.dataclass(eq=False)
class _Candidate:
    weights: torch.Tensor
    aliases: list[torch.Tensor]  # kept alive, so that no other tensor gets one of their ids


class Softmaxes:
    """Follow the results of softmax functions, step by step, to a product with values."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Candidate] = {}  # by identity of the tensor that holds the weights
        self._candidates: list[_Candidate] = []

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> torch.Tensor | None:
        """Note one call, and return the weights when it is the product of attention with values."""
        if name == "softmax" and isinstance(result, torch.Tensor) and result.ndim >= 3:
            if _sums_to_one(result):
                candidate = _Candidate(result.detach().clone(), [])
                self._candidates.append(candidate)
                self._alias(result, candidate)
                if len(self._candidates) > _MOST:
                    self._drop(self._candidates[0])
            return None
        if not self._waiting or not isinstance(result, torch.Tensor):
            return None
        if name in _PRODUCTS:
            given = (*args, *kwargs.values())
            parts = [part for one in given for part in (one if isinstance(one, (list, tuple)) else [one])]
            for part in parts:
                waiting = self._waiting.get(id(part))
                if waiting is not None:
                    self._drop(waiting)
                    return waiting.weights
            return None
        source = args[0] if args else kwargs.get("input")
        candidate_of = self._waiting.get(id(source))
        if candidate_of is not None:
            self._step(name, args, source, result, candidate_of)
        return None

    def _step(self, name: str, args: tuple[Any, ...], source: Any, result: torch.Tensor, candidate: _Candidate) -> None:
        """Note what one function does to attention weights, if its result still holds them."""
        same = result.shape == source.shape
        if name in _CHANGED or (name == "mul" and same and _is_mask(args, source)):  # such as a mask of heads
            candidate.weights = result.detach().clone()
        elif name == "getitem" and result.shape[:-1] == source.shape[:-1]:
            candidate.weights = result.detach().clone()  # without the column of an attention sink
        elif name in _SHAPED and result.shape[-2:] == source.shape[-2:]:
            if candidate.weights.ndim != 4 and candidate.weights.numel() == result.numel():
                candidate.weights = candidate.weights.reshape(result.shape)
        elif not (name in _SAME or (name in _TURNED and result.shape[:-2] == source.shape[:-2])):
            return
        self._alias(result, candidate)

    def _alias(self, tensor: torch.Tensor, candidate: _Candidate) -> None:
        candidate.aliases.append(tensor)
        self._waiting[id(tensor)] = candidate

    def _drop(self, candidate: _Candidate) -> None:
        self._candidates.remove(candidate)
        for tensor in candidate.aliases:  # twice the same where a function returned its argument
            if self._waiting.get(id(tensor)) is candidate:
                del self._waiting[id(tensor)]


def _is_mask(args: tuple[Any, ...], source: torch.Tensor) -> bool:
    """Return whether the other factor is the same for all queries and keys, or for all keys."""
    other = args[1] if len(args) > 1 else None
    return isinstance(other, torch.Tensor) and other.ndim == source.ndim and other.shape[-1] == 1


def _sums_to_one(result: torch.Tensor) -> bool:
    """Return whether it is a softmax over the last axis; rows with every key masked may be 0 or NaN."""
    rows = result.detach().float().sum(dim=-1)
    rows = rows[(rows != 0) & ~rows.isnan()]
    return bool((rows - 1).abs().max() < 0.02) if rows.numel() else False
