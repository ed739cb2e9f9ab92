"""Tokens that were computed beforehand and come with the images."""

from torch import Tensor

from ...datasets.sources.token_store import TokenStore
from ...registry import MODELS
from .base import Tokenizer


@MODELS.register_module()
class StoredTokens(Tokenizer):
    """Targets out of a store of tokens: the second view is not an image but the tokens themselves, (B, 1, rows, columns).

    :class:`mmcae.datasets.transforms.StoredViews` makes it. Tokens are exact in float32, as which they come out of the data preprocessor.

    Args:
        folder: What `mmcae tokens` wrote; it tells the vocabulary.

    Raises:
        DataError: There is no such store, or it is not complete.
    """

    downsample = (1, 1)
    in_channels = 1
    std = 1.0

    def __init__(self, folder: str):
        super().__init__()
        self.vocab_size = TokenStore(folder).manifest.vocab_size

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (B, 1, rows, columns) -> (B, N, 1)."""
        return images.flatten(2).transpose(1, 2)

    def assign(self, vectors: Tensor) -> Tensor:
        """(B, n, 1) -> int64 (B, n)."""
        return vectors[..., 0].round().long()
