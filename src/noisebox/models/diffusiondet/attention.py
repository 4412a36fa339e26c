"""Attention of proposals to each other, by PyTorch's module or, from the same weights, by its fused kernels."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


def attend(
    self_attn: nn.MultiheadAttention,
    proposals: Tensor,
    bias: Tensor | None,
    implementation: Literal["mha", "sdpa"],
    want_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """What each of `proposals` (N, P, C) gathers from all, (N, P, C), and with `want_weights` the attention (N, P, P),
    a mean over heads whose rows sum to 1.

    `self_attn` is batch first and without dropout. `bias`, (N, H, P, P) or (N, 1, P, P), is added to the logits of its
    H heads. Both implementations give the same up to rounding.
    """
    if implementation == "sdpa":
        return _scaled_dot_product(self_attn, proposals, bias, want_weights)
    if bias is not None:
        bias = bias.expand(-1, self_attn.num_heads, -1, -1).flatten(0, 1)
    attended, weights = self_attn(proposals, proposals, proposals, need_weights=want_weights, attn_mask=bias)
    return attended, weights


def _scaled_dot_product(
    self_attn: nn.MultiheadAttention, proposals: Tensor, bias: Tensor | None, want_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q Kᵀ / sqrt(d) + bias) V by head (Vaswani et al. 2017, section 3.2)."""
    rows, count, _ = proposals.shape
    projected = F.linear(proposals, self_attn.in_proj_weight, self_attn.in_proj_bias)
    by_head = projected.view(rows, count, 3, self_attn.num_heads, self_attn.head_dim).transpose(1, 3)
    query, key, value = by_head.unbind(2)  # each (N, H, P, d)
    if want_weights:
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        attention = (logits if bias is None else logits + bias).softmax(-1)
        weights, attended = attention.mean(1), attention @ value
    else:
        weights, attended = None, F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return self_attn.out_proj(attended.transpose(1, 2).flatten(2)), weights
