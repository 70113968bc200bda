"""A Llama model that reads many continuations of one beginning at once, with matrices in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a beginning by layer, each `(head, token, feature)`."""


class Quick:
    """The weights of a `LlamaForCausalLM`: scales of the norms are in the matrices, which are in bfloat16.

    Products are summed in float32; the residual stream, norms and softmax are in float32.

    Args:
        model: a `LlamaForCausalLM` of `transformers`.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.heads, self.groups, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.eps = config.rms_norm_eps
        self.embedding, self.rotary = model.get_input_embeddings().weight, model.model.rotary_emb
        self.layers = []
        for layer in model.model.layers:
            own, mlp = layer.self_attn, layer.mlp
            asked = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]) * layer.input_layernorm.weight
            wide = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * layer.post_attention_layernorm.weight
            self.layers.append([part.bfloat16() for part in (asked, own.o_proj.weight, wide, mlp.down_proj.weight)])
        self.head = (model.lm_head.weight * model.model.norm.weight).bfloat16()

    def read(self, rows: Sequence[Sequence[int]], before: Cache | None = None) -> tuple[torch.Tensor, Cache]:
        """Read continuations of a beginning: hidden states `(row, token, feature)`, 0 after a row's end, and a cache.

        Args:
            rows: tokens of each continuation.
            before: what was read before all of them.
        """
        start = 0 if before is None else before[0][0].shape[1]
        width = max(map(len, rows))
        place = torch.arange(width)
        there = place < torch.tensor([len(row) for row in rows])[:, None]
        x = self.embedding[[token for row in rows for token in row]]  # (token, feature), without padding
        cos, sin = (part[0, :, None] for part in self.rotary(x[None], place.expand(len(rows), -1)[there][None] + start))
        hidden = torch.ones(width, start + width, dtype=torch.bool).tril(start).logical_not()
        hidden = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf).repeat(self.heads // self.groups, 1)
        cache: Cache = []
        for layer, (asked, out, wide, narrow) in enumerate(self.layers):
            heads = F.linear(self._normed(x), asked).float().view(len(x), -1, self.size)
            turned = heads[:, : self.heads + self.groups]
            half = torch.cat([-turned[..., self.size // 2 :], turned[..., : self.size // 2]], dim=-1)
            turned = turned * cos + half * sin
            every = torch.zeros(len(rows), width, *heads.shape[1:], dtype=torch.bfloat16)
            every[there] = torch.cat([turned, heads[:, self.heads + self.groups :]], dim=1).bfloat16()
            query, key, value = every.transpose(1, 2).split([self.heads, self.groups, self.groups], dim=1)
            if before is not None:
                old = [part.expand(len(rows), -1, -1, -1) for part in before[layer]]
                key, value = torch.cat([old[0], key], dim=2), torch.cat([old[1], value], dim=2)
            cache.append((key[0], value[0]))
            query = query.reshape(len(rows), self.groups, -1, self.size)  # the heads of a group ask the same keys
            weights = ((query @ key.mT).float() * self.size**-0.5 + hidden).softmax(dim=-1).bfloat16()
            found = (weights @ value).view(len(rows), self.heads, width, self.size).transpose(1, 2).flatten(2)
            x = x + F.linear(found[there], out)
            gate, up = F.linear(self._normed(x), wide).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, narrow)
        result = torch.zeros(len(rows), width, x.shape[1])
        result[there] = x
        return result, cache

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the next token, in float32."""
        return F.linear(self._normed(hidden), self.head).float()

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return (x * (x.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()).bfloat16()
