"""A discrete tokenizer to train on one's own images: a convolutional autoencoder whose bottleneck is a codebook."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoints import StateDict
from ...registry import MODELS
from .base import TrainableTokenizer
from .quantizer import VectorQuantizer


class ResidualBlock(nn.Sequential):
    """(B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@MODELS.register_module()
class DiscreteVAE(TrainableTokenizer):
    """VQ-VAE (arXiv 1711.00937): patches to ids of a learned codebook, and back to pixels.

    Reads images of any size that is a multiple of `downsample`, with pixels in [0, 1]. Vectors have unit length where they meet the
    codebook (as in arXiv 2208.06366, section 2.1), so that the scale of the encoder's output is nothing to learn.

    Args:
        vocab_size: Number of ids: 512 to 8192 for photographs, 64 to 256 for simple images.
        channels: Width at each resolution, finest first. Every entry halves the resolution: three for 8 pixels per token.
        num_blocks: Residual blocks in the encoder and in the decoder, at the resolution of the tokens.
        code_dim: Length of the codebook's vectors.
        in_channels: Channels of the images.
        commitment_weight: How strongly the encoder is drawn towards the codes it chooses.
        checkpoint: See :class:`TrainableTokenizer`: a trained tokenizer, which is loaded and frozen. Sizes can be left out then.
        data_preprocessor: See :class:`TrainableTokenizer`.
    """

    DEFAULTS = dict(vocab_size=8192, channels=(64, 128, 256), num_blocks=2, code_dim=32, in_channels=3)

    def __init__(
        self,
        vocab_size: int | None = None,
        channels: Sequence[int] | None = None,
        num_blocks: int | None = None,
        code_dim: int | None = None,
        in_channels: int | None = None,
        commitment_weight: float = 0.25,
        checkpoint: str | Path | None = None,
        data_preprocessor: dict | None = None,
    ):
        self.commitment_weight = commitment_weight
        sizes = dict(
            vocab_size=vocab_size,
            channels=channels and tuple(channels),
            num_blocks=num_blocks,
            code_dim=code_dim,
            in_channels=in_channels,
        )
        super().__init__(sizes, self.DEFAULTS, checkpoint, data_preprocessor)

    def build(self, vocab_size: int, channels: tuple[int, ...], num_blocks: int, code_dim: int, in_channels: int):
        self.vocab_size, self.in_channels = vocab_size, in_channels
        self.downsample = (2 ** len(channels), 2 ** len(channels))
        widths = (in_channels, *channels)
        steps = list(zip(widths[:-1], widths[1:], strict=True))
        downs = [layer for fine, coarse in steps for layer in (nn.Conv2d(fine, coarse, 4, 2, 1), nn.ReLU())]
        self.down = nn.Sequential(*downs[:-1])
        self.encoder = nn.Sequential(*(ResidualBlock(channels[-1]) for _ in range(num_blocks)), nn.ReLU())
        self.to_code = nn.Conv2d(channels[-1], code_dim, 1)
        self.quantizer = VectorQuantizer(vocab_size, code_dim)
        self.from_code = nn.Conv2d(code_dim, channels[-1], 3, padding=1)
        self.decoder = nn.Sequential(*(ResidualBlock(channels[-1]) for _ in range(num_blocks)))
        ups = [layer for fine, coarse in reversed(steps) for layer in (nn.ReLU(), nn.ConvTranspose2d(coarse, fine, 4, 2, 1))]
        self.up = nn.Sequential(*ups)

    @staticmethod
    def sizes_in(state: StateDict) -> dict:
        kernels = [value for key, value in state.items() if key.startswith('down.') and key.endswith('weight')]
        vocab_size, code_dim = state['quantizer.codes'].shape
        return dict(
            vocab_size=vocab_size,
            channels=tuple(len(kernel) for kernel in kernels),
            num_blocks=sum(key.startswith('encoder.') and key.endswith('.1.weight') for key in state),
            code_dim=code_dim,
            in_channels=kernels[0].shape[1],
        )

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) in [0, 1] -> vectors (B, N, code_dim) of unit length."""
        vectors = self.to_code(self.encoder(self.down(images - 0.5)))
        return F.normalize(vectors.flatten(2).transpose(1, 2), dim=-1)

    def assign(self, vectors: Tensor) -> Tensor:
        """Vectors (B, n, code_dim) -> ids (B, n)."""
        return self.quantizer(vectors)

    @torch.no_grad()
    def decode(self, targets: Tensor, reference: Tensor | None = None) -> Tensor:
        """Ids (B, rows, columns) -> images (B, C, h, w) in [0, 1]; needs no reference."""
        return self.draw(self.quantizer.codes[targets].permute(0, 3, 1, 2)).clamp(0, 1)

    def draw(self, codes: Tensor) -> Tensor:
        return self.up(self.decoder(self.from_code(codes))) + 0.5

    def training_loss(self, images: Tensor) -> dict[str, Tensor]:
        """What training minimises, and how the codebook is used.

        Args:
            images: (B, C, h, w) in [0, 1].

        Returns:
            `loss_reconstruction`: mean squared error of the pixels, as a share of their variance: 1 for one colour everywhere, 0 for the
            image itself. `loss_codebook`, `loss_commitment`: mean squared distances of vectors and codes. `perplexity` and
            `codebook_usage`: see :meth:`VectorQuantizer.metrics`.
        """
        grid = self.token_grid(images.shape[-2:])
        vectors = self.embed(images).float()
        codes = self.quantizer.codes[self.quantizer.learn(vectors)]
        # The decoder sees the codes; its gradient goes to the encoder as if it saw the encoder's vectors (straight through).
        passed = vectors + (codes - vectors).detach()
        drawn = self.draw(passed.transpose(1, 2).unflatten(2, grid))
        return dict(
            loss_reconstruction=F.mse_loss(drawn.float(), images) / images.var().clamp(min=1e-4),
            loss_codebook=(codes - vectors.detach()).square().sum(dim=-1).mean(),
            loss_commitment=self.commitment_weight * (codes.detach() - vectors).square().sum(dim=-1).mean(),
            **self.quantizer.metrics(),
        )
