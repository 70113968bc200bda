"""What methods for text share: which leaves are tokens, and which places hold one."""

from __future__ import annotations

import torch

from layerlens.errors import InputError

from .scorer import Scorer


def token_leaves(scorer: Scorer, method: str) -> None:
    """See that every leaf is the embeddings of token ids, `(batch, token, feature)`.

    Raises:
        InputError: when one is not.
    """
    for name, leaf in scorer.leaves.items():
        if leaf.layer is None or leaf.value.ndim != 3:
            raise InputError(
                f"{method} takes token ids (batch, token) that the model embeds; input {name!r} is "
                f"{'not embedded' if leaf.layer is None else f'embedded as {tuple(leaf.value.shape)}'}. For other "
                "inputs lens.saliency.methods() lists what there is."
            )


def used_tokens(scorer: Scorer, name: str) -> torch.Tensor:
    """Which places of a token input hold a token and no padding, `(batch, token)`: where its attention mask is not 0.

    The mask of `input_ids` is `attention_mask`, that of `decoder_input_ids` is `decoder_attention_mask`.
    """
    tensors = scorer.inputs.tensors()
    shape = scorer.leaves[name].value.shape[:2]
    mask = tensors.get(name.replace("input_ids", "attention_mask")) if "input_ids" in name else None
    if mask is None or mask.shape != shape:
        return torch.ones(shape, dtype=torch.bool, device=scorer.rows.device)
    return mask.to(scorer.rows.device) != 0
