"""Features of images from a pretrained encoder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.utils import to_2tuple
from torch import Tensor

from ..checkpoints import read_checkpoint
from ..models import CAEViT
from ..utils.errors import ConfigError, DataError
from .images import fit, load_image, to_tensor
from .load import config_section, load_encoder

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def extract_features(
    source: str | Path | Mapping | CAEViT,
    images: Iterable[str | Path | np.ndarray],
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | None = None,
    **settings,
) -> np.ndarray:
    """Features of images: `extract_features('checkpoint.pth', ['a.jpg', 'b.png'], out_type='avg_featmap')`.

    Each image is cut to the proportions of `img_size`, as much of its centre as they allow, resized (bicubic) and normalised.

    Args:
        source: A checkpoint (a path, or its content) of mmcae, the authors, mmpretrain or timm's BEiT; or an encoder.
        images: Image files, or uint8 arrays (H, W, 3) in RGB, of any sizes. For an encoder of other channels as `mmcae.LoadImage` reads
            them, or arrays (H, W, C). May be a generator: one batch is in memory at a time.
        img_size: Pixels, (h, w) or one number for both; multiples of the patch size. Defaults to what the encoder was made for.
        batch_size: Images per forward pass.
        mean, std: Of the pixels in [0, 255], for each channel. Default to those in the checkpoint's own config, else ImageNet's for RGB.
        device: Such as 'cuda:0'. Defaults to the GPU where there is one, else the CPU.
        **settings: For a checkpoint: more arguments of :class:`mmcae.models.CAEViT`, such as `out_type`, 'cls_token' by default.

    Returns:
        float32 array of n rows: (n, C) for the out_types 'cls_token' and 'avg_featmap', (n, C, h, w) for 'featmap',
        (n, 1 + h * w, C) for 'raw'.

    Raises:
        CheckpointError: See :func:`mmcae.apis.load_encoder`.
        ConfigError: Settings that do not go together.
        DataError: An image that cannot be read, or no image at all.
    """
    if isinstance(images, str | Path | np.ndarray):
        raise DataError('extract_features takes a list of images: put a single one in brackets')
    encoder, preprocess = load_encoder_and_preprocess(source, img_size, mean, std, **settings)
    if len(encoder.out_indices) > 1:
        raise ConfigError(f'extract_features gives the output of one block, but out_indices={encoder.out_indices}: choose one')
    encoder = encoder.to(device or get_device())
    stream, features = iter(images), []
    while batch := [preprocess.view(image) for image in islice(stream, batch_size)]:
        with torch.inference_mode():
            features.append(encoder(preprocess.normalize(batch).to(encoder.cls_token.device))[0].float().cpu().numpy())
    if not features:
        raise DataError('extract_features was given no images')
    return np.concatenate(features)


@dataclass
class Preprocess:
    """What is done to an image before an encoder sees it: cut and resize to (h, w) pixels, then normalise."""

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    channels: int = 3

    def view(self, image: str | Path | np.ndarray) -> np.ndarray:
        """An image file or array as uint8 RGB (h, w, 3), or (h, w, channels)."""
        return fit(load_image(image, self.channels), self.size)

    def normalize(self, views: Sequence[np.ndarray]) -> Tensor:
        """Views -> float32 (B, C, h, w)."""
        mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (self.mean, self.std))
        return (to_tensor(views) - mean) / std


def load_encoder_and_preprocess(
    source: str | Path | Mapping | CAEViT,
    img_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **settings,
) -> tuple[CAEViT, Preprocess]:
    """An encoder in eval mode, and how its images are prepared; the arguments are those of :func:`extract_features`."""
    if isinstance(source, CAEViT):
        if settings:
            raise ConfigError(f'{sorted(settings)} can be chosen for a checkpoint only; set them when you build the encoder')
        encoder, normalization = source.eval(), {}
    else:
        content = source if isinstance(source, Mapping) else read_checkpoint(source)
        encoder, normalization = load_encoder(content, **settings), normalization_of(content)
    channels = encoder.patch_embed.proj.in_channels
    if channels != 3 and not (mean and std or normalization.keys() >= {'mean', 'std'}):
        raise ConfigError(f'This encoder has {channels} channels, and nothing tells how they are normalised: give mean and std')
    size = to_2tuple(img_size) if img_size else tuple(n * p for n, p in zip(encoder.grid, encoder.patch_size, strict=True))
    encoder.grid_of(size)  # refuses what patches do not tile
    mean, std = mean or normalization.get('mean', IMAGENET_MEAN), std or normalization.get('std', IMAGENET_STD)
    if {len(mean), len(std)} - {1, channels}:
        raise ConfigError(f'mean has {len(mean)} values and std {len(std)}, but the encoder reads {channels} channels: give one for each')
    return encoder, Preprocess(size, mean, std, channels)


def normalization_of(content: Mapping) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` of the pixels as far as a checkpoint's own config tells."""
    meta = content.get('meta')
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return {}
    settings = config_section(text, 'model').get('data_preprocessor') or config_section(text, 'data_preprocessor')
    found = {name: (settings or {}).get(name) for name in ('mean', 'std')}
    return {name: value for name, value in found.items() if are_numbers(value)}


def are_numbers(value) -> bool:
    """Whether it is a sequence of numbers."""
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(number, int | float) for number in value)
