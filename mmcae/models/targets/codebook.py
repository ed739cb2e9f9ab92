"""The simplest discrete tokenizer: k-means over small grey patches. Seconds to train, and blind to colour and brightness on purpose."""

from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.utils import to_2tuple
from torch import Tensor

from ...checkpoints import StateDict
from ...registry import MODELS
from .base import TrainableTokenizer
from .pixels import patchify, standardize, unpatchify
from .quantizer import VectorQuantizer

DRAWN_SPREAD = 0.15  # of the grey pixels where a pattern is drawn without an image to take its contrast from


@MODELS.register_module()
class PatchCodebook(TrainableTokenizer):
    """Patches to ids by the pattern of light and dark in them: the nearest of a codebook of grey, standardised patches.

    For simple images (characters, line drawings, textures), where it makes as good targets as an autoencoder. Photographs and whatever
    depends on colour need a :class:`DiscreteVAE`. Reads images with pixels in [0, 1].

    Args:
        vocab_size: Number of ids.
        patch_size: Pixels of its view under one token, per side: the encoder's patch size where both views have the same size.
        contrast: Standard deviation of a patch's grey pixels, which are in [0, 1], below which it counts as flat: all flat patches share
            one id, so that noise makes no targets.
        checkpoint: See :class:`TrainableTokenizer`: a trained tokenizer, which is loaded and frozen. Sizes can be left out then.
        data_preprocessor: See :class:`TrainableTokenizer`.
    """

    DEFAULTS = dict(vocab_size=64, patch_size=8)

    def __init__(
        self,
        vocab_size: int | None = None,
        patch_size: int | None = None,
        contrast: float = 0.04,
        checkpoint: str | Path | None = None,
        data_preprocessor: dict | None = None,
    ):
        self.contrast = contrast
        super().__init__(dict(vocab_size=vocab_size, patch_size=patch_size), self.DEFAULTS, checkpoint, data_preprocessor)

    def build(self, vocab_size: int, patch_size: int):
        self.vocab_size = vocab_size
        self.downsample = to_2tuple(patch_size)
        self.quantizer = VectorQuantizer(vocab_size, patch_size**2)

    @staticmethod
    def sizes_in(state: StateDict) -> dict:
        if set(state) != {'quantizer.codes', 'quantizer.usage'}:
            raise KeyError('not a PatchCodebook')
        vocab_size, pixels = state['quantizer.codes'].shape
        return dict(vocab_size=vocab_size, patch_size=round(pixels**0.5))

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) in [0, 1] -> grey patches (B, N, patch_size ** 2)."""
        return patchify(images.mean(dim=1, keepdim=True), self.downsample)

    def assign(self, vectors: Tensor) -> Tensor:
        """Grey patches (B, n, patch_size ** 2) -> ids (B, n)."""
        return self.quantizer(self.patterns(vectors)[0])

    def patterns(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Grey patches (..., K) -> their patterns (..., K) with mean 0 and variance 1, or all 0 where flat; and their spread (..., 1)."""
        patterns, _, spread = standardize(patches, 1e-8)
        return torch.where(spread < self.contrast, 0, patterns), spread

    @torch.no_grad()
    def decode(self, targets: Tensor, reference: Tensor | None = None) -> Tensor:
        """Ids (B, rows, columns) -> images in [0, 1].

        Args:
            targets: Ids.
            reference: The view (B, C, h, w) the ids belong to, which gives each patch its mean colour and its contrast. Without it the
                patterns are drawn in grey, (B, 1, h, w), all at the same contrast.
        """
        patterns = self.quantizer.codes[targets.flatten(1)]
        grid = targets.shape[1:]
        if reference is None:
            return unpatchify(0.5 + DRAWN_SPREAD * patterns, self.downsample, grid).clamp(0, 1)
        _, spread = self.patterns(self.embed(reference))
        pattern = unpatchify(patterns * spread, self.downsample, grid)
        colour = F.avg_pool2d(reference, self.downsample).repeat_interleave(self.downsample[0], 2).repeat_interleave(self.downsample[1], 3)
        return (colour + pattern).clamp(0, 1)

    def training_loss(self, images: Tensor) -> dict[str, Tensor]:
        """What training minimises, and how the codebook is used.

        Args:
            images: (B, C, h, w) in [0, 1].

        Returns:
            `loss_codebook`: mean squared distance of standardised patches and their codes, at most 1. `perplexity` and `codebook_usage`:
            see :meth:`VectorQuantizer.metrics`.
        """
        self.token_grid(images.shape[-2:])
        vectors = self.patterns(self.embed(images))[0]
        ids = self.quantizer.learn(vectors)
        return dict(loss_codebook=F.mse_loss(self.quantizer.codes[ids], vectors), **self.quantizer.metrics())
