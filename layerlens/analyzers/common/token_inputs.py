"""What methods for text share: which leaves are tokens, and which places hold one."""

from __future__ import annotations

import weakref

import torch

from layerlens.errors import InputError, LayerLensError
from layerlens.inputs.sequences import sequences
from layerlens.model.borrowed import generator_states, restore_generators

from .leaves.padding import numbers
from .scorer import Scorer

LOUD = 30.0
"""Deviation of the noise for embeddings that nothing reads, as a multiple of their largest number."""


def text_leaves(scorer: Scorer, method: str) -> list[str]:
    """Return the names of the leaves that are the embeddings of token ids, `(batch, token, feature)`.

    Raises:
        InputError: when there is none.
    """
    texts = [name for name, leaf in scorer.leaves.items() if leaf.layer is not None and leaf.value.ndim == 3]
    if not texts:
        name, leaf = next(iter(scorer.leaves.items()))
        raise InputError(
            f"{method} takes token ids (batch, token) that the model embeds; input {name!r} is "
            f"{'not embedded' if leaf.layer is None else f'embedded as {tuple(leaf.value.shape)}'}. For other inputs "
            "give method='feature_ablation' or 'occlusion'; lens.saliency.methods() lists all."
        )
    return texts


def used_places(scorer: Scorer, name: str) -> torch.Tensor | None:
    """Return which places of a leaf hold a token that counts, `(batch, token)`; None if no input says.

    Padding is none, nor is a token next to a picture that only holds a place for it, see `_read`.
    """
    value, read = scorer.leaves[name].value, _read(scorer).get(name)
    if name in scorer.padding:
        return read
    known = sequences(scorer.inputs, numbers(scorer.leaves))
    used = next((one.used for one in known if name in one.names), None)
    used = None if used is None or used.shape != value.shape[:2] else used.to(value.device)
    return used if read is None else read if used is None else used & read


_READ: weakref.WeakKeyDictionary[Scorer, dict[str, torch.Tensor]] = weakref.WeakKeyDictionary()


def _read(scorer: Scorer) -> dict[str, torch.Tensor]:
    """Return which places of each text next to inputs of other kinds the model reads, where it does not read all.

    What a model sees in a picture often takes the places of tokens, whatever their embeddings; and a text encoder may
    end at a token before the last. Such embeddings have a gradient of 0, and loud noise in them leaves every bit of
    the score as it is: one gradient, and three or six passes. A text of which nothing is read is left to the methods.
    """
    if scorer in _READ:
        return _READ[scorer]
    found = _READ.setdefault(scorer, {})
    leaves = scorer.leaves
    texts = [name for name, leaf in leaves.items() if leaf.layer is not None and leaf.value.ndim == 3]
    others = len(texts) < len(leaves) or bool(scorer.inputs.held)
    if not (texts and others) or any(leaf.place is not None for leaf in leaves.values()):
        return found
    states = generator_states()
    try:
        unread = _unread(scorer, texts)
    except (LayerLensError, RuntimeError):  # no gradient, or no memory for one: every token counts
        return found
    finally:
        restore_generators(states)
    for name, silent in unread.items():
        silent &= ~silent.all(dim=1, keepdim=True)
        if bool(silent.any()):
            found[name] = ~silent
    return found


def _unread(scorer: Scorer, texts: list[str]) -> dict[str, torch.Tensor]:
    """The places of texts whose embeddings do not reach the score, `(batch, token)`."""
    values = scorer.values()
    with torch.enable_grad():
        start = {name: value.requires_grad_(name in texts) for name, value in values.items()}
        slopes = torch.autograd.grad(scorer(start).sum(), [start[name] for name in texts], allow_unused=True)
    values = {name: value.detach() for name, value in values.items()}
    silent = {
        name: torch.ones_like(values[name][..., 0], dtype=torch.bool) if slope is None else (slope == 0).all(dim=-1)
        for name, slope in zip(texts, slopes, strict=True)
    }
    if not any(bool(one.any()) for one in silent.values()):
        return {}
    with torch.no_grad():
        heard = _heard(scorer, values, silent)
        if bool(heard.any()):  # next to the largest words of a maximum, which a louder one would replace
            silent = {name: _of_one_id(scorer, name, places, heard) for name, places in silent.items()}
            heard = _heard(scorer, values, silent)
    return {name: places & ~heard.unsqueeze(1) for name, places in silent.items()}


def _heard(scorer: Scorer, values: dict[str, torch.Tensor], silent: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether loud noise at some places changes the score of a sample, `(batch,)`."""
    score, draw = scorer(values), torch.Generator().manual_seed(0)
    heard = torch.zeros_like(score, dtype=torch.bool)
    for sign in (LOUD, -LOUD):
        moved = dict(values)
        for name, places in silent.items():
            noise = torch.randn(values[name].shape, generator=draw).to(values[name]) * values[name].abs().max()
            moved[name] = torch.where(places.unsqueeze(-1), sign * noise, values[name])
        heard |= scorer(moved) != score
    return heard


def _of_one_id(scorer: Scorer, name: str, places: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """The places that have the most frequent id among them, where noise at all of them was heard."""
    ids = scorer.inputs.tensors()[name]
    ids = scorer.padding[name].take(ids) if name in scorer.padding else ids
    kept = places.clone()
    for row in (heard & places.any(dim=1)).nonzero().flatten().tolist():
        kept[row] &= ids[row] == ids[row][places[row]].mode().values
    return kept
