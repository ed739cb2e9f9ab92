"""The codebook that trainable tokenizers share."""

import torch
from mmengine.dist import all_reduce, broadcast
from torch import Tensor, nn

from ...utils.errors import CheckpointError
from ...utils.precision import no_autocast


class VectorQuantizer(nn.Module):
    """Vectors to the ids of their nearest codes; learns the codes by k-means on the fly.

    The codes follow the gradient of the quantisation error, as in VQ-VAE (arXiv 1711.00937, the codebook loss) and in k-means by
    stochastic gradient descent. They start as vectors of the first batch, chosen as k-means++ does. A code that is hardly used any more
    starts again as a vector of the present batch that is far from all codes, so that no part of the vocabulary lies idle.

    Args:
        vocab_size: Number of codes V.
        dim: Length K of the vectors.
    """

    # Use is averaged over about 50 batches, and a code is dead when it has less than a twentieth of its equal share.
    DECAY = 0.98
    DEAD = 0.05
    # Rows of the distance matrix computed at once; with 8192 codes they take 0.5 GB.
    CHUNK = 16384

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(vocab_size, dim))
        # Share of the recent vectors that went to each code; all zero until there is a first batch.
        self.register_buffer('usage', torch.zeros(vocab_size))
        self.known_to_be_trained = False

    def forward(self, vectors: Tensor) -> Tensor:
        """Ids int64 (...) of the codes nearest to vectors (..., K)."""
        if not self.known_to_be_trained:  # asked once, since a GPU has to be waited for
            self.known_to_be_trained = bool(self.usage.any())
            if not self.known_to_be_trained:
                raise CheckpointError('This tokenizer was never trained: give it a checkpoint, or train it first with mmcae train')
        return self.nearest(vectors.flatten(0, -2)).view(vectors.shape[:-1])

    @torch.no_grad()
    def learn(self, vectors: Tensor) -> Tensor:
        """As :meth:`forward` for a batch of training, the same on all processes: start codes, revive them, note their use.

        The gradient of the codes is the caller's business, who has the loss.
        """
        shape, vectors = vectors.shape[:-1], vectors.detach().flatten(0, -2).to(self.codes.dtype)
        equal_share = 1 / len(self.usage)
        dead = self.usage < self.DEAD * equal_share
        if dead.any():
            fresh = spread_out(vectors, len(dead)) if dead.all() else far_from(vectors, self.codes[self.nearest(vectors)], len(dead))
            broadcast(fresh)  # every process chooses, and the first one's choice counts
            self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
            self.usage.masked_fill_(dead, equal_share)
        ids = self.nearest(vectors)
        counts = torch.zeros_like(self.usage).index_add_(0, ids, self.usage.new_ones(len(ids)))  # a GPU waits for bincount
        all_reduce(counts)
        self.usage.lerp_(counts / counts.sum(), 1 - self.DECAY)
        return ids.view(shape)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids (n,) for vectors (n, K). In full precision under mixed precision too: half of it confuses neighbouring codes."""
        with no_autocast(vectors.device):
            offsets = self.codes.square().sum(dim=1)
            return torch.cat([torch.addmm(offsets, part, self.codes.T, alpha=-2).argmin(dim=1) for part in vectors.split(self.CHUNK)])

    def metrics(self) -> dict[str, Tensor]:
        """How much of the vocabulary is in use.

        Returns:
            `perplexity`, from 1 to V: to how many equally likely codes the recent use amounts. `codebook_usage`, a share in [0, 1]: codes
            that are not dead.
        """
        share = self.usage / self.usage.sum()
        entropy = -torch.xlogy(share, share).sum()
        alive = (self.usage >= self.DEAD / len(self.usage)).float().mean()
        return dict(perplexity=entropy.exp(), codebook_usage=alive)


def far_from(vectors: Tensor, codes: Tensor, count: int) -> Tensor:
    """Choose `count` of the vectors (n, K), each as likely as its squared distance from its code (n, K) says."""
    distance = (vectors - codes).square().sum(dim=1)
    return vectors[torch.multinomial(distance + torch.finfo(distance.dtype).tiny, count, replacement=True)]


def spread_out(vectors: Tensor, count: int) -> Tensor:
    """Choose `count` of the vectors (n, K) one after the other, each far from those before: k-means++."""
    chosen = [torch.randint(len(vectors), (1,), device=vectors.device)]
    distance = torch.full_like(vectors[:, 0], torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (vectors - vectors[chosen[-1]]).square().sum(dim=1))
        chosen.append(torch.multinomial(distance + torch.finfo(distance.dtype).tiny, 1))
    return vectors[torch.cat(chosen)]
