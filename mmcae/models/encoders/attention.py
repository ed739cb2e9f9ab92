"""Scaled dot-product attention by torch's fused kernels: the one call that all attention of ours goes through."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's `scaled_dot_product_attention`.

    bfloat16 on a CPU is computed in float32 and rounded: torch's kernels for it take 1.3 to 4 times as long for up to 200 tokens,
    backward pass included, and are no faster for a thousand (docs/benchmarks.md).

    Args:
        query: (B, heads, n, d).
        key, value: (B, heads, m, d).
        mask: Added to the scores, or bool, True = may be attended to; must expand to (B, heads, n, m).

    Returns:
        (B, heads, n, d) in the queries' dtype.
    """
    if query.device.type != 'cpu' or query.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast('cpu', enabled=False):
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask).to(query.dtype)
