"""The sequences among the inputs of a model: which tensors lie along the same places, and which places are padding."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Sequence
from typing import Final

import torch

from .inputs import Inputs

NOT_TOKENS: Final = re.compile(r"position|pos_ids|type|segment|mask|lang", re.IGNORECASE)
"""Names of integer inputs that hold the position or kind of a token, not its id."""

_KIND: Final = re.compile(
    r"_?(inputs?_(ids|embeds|features|values)|(attention|key_padding|padding|pad|time)_mask|mask|ids|tokens|embeds|"
    r"embeddings|features|values|(token_type|position|pos|segment|lang)_ids|positions|langs)$"
)
"""The end of a name that says what a tensor holds; what is before it says of which sequence: `decoder`, `src`."""


@dataclasses.dataclass(frozen=True)
class InputSequence:
    """Inputs that lie along the same places, `(batch, place, ...)`, such as token ids with their mask.

    Attributes:
        names: names of the inputs.
        count: number of places.
        ids: token ids, `(batch, place)`; None for other values.
        used: which places hold a token and no padding, `(batch, place)`; None if no input says.
        unsure: masks of padding that may be of this sequence or of another one.
    """

    names: tuple[str, ...]
    count: int
    ids: torch.Tensor | None
    used: torch.Tensor | None
    unsure: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the name of the ids, or of the first input."""
        return self.names[0]

    def last(self) -> torch.Tensor | None:
        """Return the last place of each sample that holds a token, `(batch,)`; None if each has all places."""
        if self.used is None or bool(self.used[:, -1].all()):
            return None
        return self.used.shape[1] - 1 - self.used.flip(1).long().argmax(dim=1)


def sequences(inputs: Inputs, numbers: Container[str] = ()) -> list[InputSequence]:
    """Return the sequences among the inputs; tensors that belong together share the start of their names.

    `input_ids` belongs to `attention_mask`, `decoder_input_ids` to `decoder_attention_mask`, `src` to
    `src_key_padding_mask`. A mask whose name says no more belongs to the only sequence that it fits. It is 0 (or
    negative infinity) for padding, except one with `padding_mask` or `pad_mask` in its name, which is True for padding;
    ids below 0 are padding as well.

    Args:
        inputs: the inputs.
        numbers: names of inputs of whole numbers other than ids, such as the counts of a table.
    """
    known = {name: _named(name, inputs.names) for name in inputs.tensors()}
    stems = {name: _KIND.sub("", _KIND.sub("", shown)) for name, shown in known.items()}  # twice: ids_mask
    tensors = {name: x for name, x in inputs.tensors().items() if x.ndim >= 2}
    masks = [name for name, x in tensors.items() if "mask" in known[name].lower() or x.dtype == torch.bool]
    groups: dict[tuple[str, int], list[str]] = {}
    for name, x in tensors.items():
        if name not in masks:
            groups.setdefault((stems[name], x.shape[1]), []).append(name)
    mask_of: dict[tuple[str, int], str] = {}
    for exact in (True, False):
        for mask in masks:
            if tensors[mask].ndim == 2 and mask not in mask_of.values():
                free = [key for key, (first, *_) in groups.items() if len(tensors[first]) == len(tensors[mask])]
                free = [key for key in free if key not in mask_of and _fits(key, stems[mask], tensors[mask], exact)]
                if len(free) == 1:
                    mask_of[free[0]] = mask
    loose = [mask for mask in masks if mask not in mask_of.values() and tensors[mask].ndim == 2]
    found = []
    for key, members in groups.items():
        holds_ids = [name for name in members if name not in numbers and _holds_ids(known[name], tensors[name])]
        ids = tensors[holds_ids[0]] if holds_ids else None
        mask = mask_of.get(key, "")
        used = _used(known[mask], tensors[mask])[:, -key[1] :] if mask else None
        if ids is not None and bool((ids < 0).any()):
            used = ids >= 0 if used is None else used & (ids >= 0)
        shape = tensors[members[0]].shape[:2]
        unsure = [one for one in loose if tensors[one].shape == shape and not _used(known[one], tensors[one]).all()]
        named = sorted(members, key=lambda name: name not in holds_ids)  # ids first
        found.append(InputSequence((*named, *[mask] * bool(mask)), key[1], ids, used, () if mask else tuple(unsure)))
    return found


def joined(several: Sequence[InputSequence]) -> InputSequence:
    """Return sequences along the same places as one: of its ids the only ones, else those named `input_ids`."""
    texts = [one for one in several if one.ids is not None]
    texts = texts if len(texts) == 1 else [one for one in texts if "input_ids" in one.names]
    used = [one.used for one in several if one.used is not None]
    unsure = () if used else tuple(dict.fromkeys(name for one in several for name in one.unsure))
    names = [name for one in (*texts, *several) for name in one.names]
    ids = texts[0].ids if texts else None
    every = torch.stack(used).all(dim=0) if used else None
    return InputSequence(tuple(dict.fromkeys(names)), several[0].count, ids, every, unsure)


def resized(inputs: Inputs, sequence: InputSequence) -> tuple[Inputs, int]:
    """Return the inputs with a sequence without its last place, or with it twice if it has one; and by how many more.

    What follows the sequence is then as much longer.
    """
    tensors, more = inputs.tensors(), 1 if sequence.count == 1 else -1
    index = [*range(sequence.count - 1)] if more < 0 else [0, 0]

    def changed(x: torch.Tensor) -> torch.Tensor:
        start = x.shape[1] - sequence.count  # what a mask has for a cache
        return torch.cat([x[:, :start], x[:, start:][:, index]], dim=1)

    return inputs.replace({name: changed(tensors[name]) for name in sequence.names}), more


def tokens_first(used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places `(n, place)` of each row with those of padding last, and the number of the others, `(n,)`.

    Example:
        >>> tokens_first(torch.tensor([[False, True, True]]))
        (tensor([[1, 2, 0]]), tensor([2]))
    """
    return used.long().argsort(dim=1, descending=True, stable=True), used.sum(dim=1)


def _fits(key: tuple[str, int], stem: str, mask: torch.Tensor, exact: bool) -> bool:
    """Whether a mask may be that of a sequence; of one that a cache precedes, the mask covers both."""
    return key[0] == stem and key[1] <= mask.shape[1] if exact else not stem and key[1] == mask.shape[1]


def _named(name: str, names: Sequence[str]) -> str:
    """The name of a tensor, with that of its parameter instead of its position."""
    first, _, rest = name.partition(".")
    if not first.isdecimal() or int(first) >= len(names):
        return name
    return f"{names[int(first)]}.{rest}" if rest else names[int(first)]


def _holds_ids(name: str, x: torch.Tensor) -> bool:
    return x.ndim == 2 and x.dtype in (torch.int64, torch.int32) and not NOT_TOKENS.search(name)


def _used(name: str, mask: torch.Tensor) -> torch.Tensor:
    if mask.is_floating_point() and bool((mask < 0).any()):
        return mask == 0
    return mask == 0 if re.search(r"pad(ding)?_mask", name.lower()) else mask != 0
