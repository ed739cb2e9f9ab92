"""The loss over a vocabulary of thousands of tokens, without copies of the logits in full precision.

torch's `F.linear_cross_entropy` (from 2.13 on) saves more, but gives no logits, of which the accuracy is logged, and its chunks do not
work in compiled parts.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits handled at once: 64 MiB in float32.
CHUNK = 2**24


def token_cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy, in float32 whatever the precision of the logits, or in float64 where that is theirs.

    The gradient is formed along with the loss, in the precision of the logits and some rows at a time, so one more tensor of their size is
    all that is kept. `F.cross_entropy` keeps three in float32 of bfloat16 logits: a copy, its log-softmax, and the gradient.

    Args:
        logits: (n, V).
        ids: int64 (n,), in [0, V).
    """
    return TokenCrossEntropy.apply(logits, ids)


class TokenCrossEntropy(torch.autograd.Function):
    """See :func:`token_cross_entropy`."""

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> Tensor:
        """The loss, a scalar."""
        count, vocabulary = logits.shape
        dtype = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        rows = max(1, CHUNK // vocabulary)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            target = ids[part, None]
            log_p = torch.log_softmax(logits[part].to(dtype), dim=-1)
            loss -= log_p.gather(1, target).sum()
            if gradient is not None:
                # Not yet divided by the count: in float16 small probabilities would vanish before the loss scale reaches them.
                gradient[part] = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=dtype))
        ctx.save_for_backward(gradient)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / len(gradient)).to(gradient.dtype), None
