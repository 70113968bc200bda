"""What methods for text share: which leaves are tokens, and which places hold one."""

from __future__ import annotations

import torch

from layerlens.errors import InputError
from layerlens.inputs.sequences import sequences

from .leaves.padding import numbers
from .scorer import Scorer


def token_leaves(scorer: Scorer, method: str) -> None:
    """See that every leaf is the embeddings of token ids, `(batch, token, feature)`.

    Raises:
        InputError: when one is not.
    """
    for name, leaf in scorer.leaves.items():
        if leaf.layer is None or leaf.value.ndim != 3:
            others = any(one is not leaf and one.layer is not None for one in scorer.leaves.values())
            instead = "other inputs lens.saliency.methods() lists what there is."
            if others:
                instead = (
                    f"the words alone, hold it fixed: hold={name!r}; relevance, occlusion and shapley_sampling take "
                    "inputs of several kinds together."
                )
            raise InputError(
                f"{method} takes token ids (batch, token) that the model embeds; input {name!r} is "
                f"{'not embedded' if leaf.layer is None else f'embedded as {tuple(leaf.value.shape)}'}. For {instead}"
            )


def used_places(scorer: Scorer, name: str) -> torch.Tensor | None:
    """Return which places of a leaf hold a token and no padding, `(batch, token)`; None if no input says."""
    if name in scorer.padding:
        return None
    known = sequences(scorer.inputs, numbers(scorer.leaves))
    used = next((one.used for one in known if name in one.names), None)
    value = scorer.leaves[name].value
    return None if used is None or used.shape != value.shape[:2] else used.to(value.device)
