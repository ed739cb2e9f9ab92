"""Features of images from a pretrained encoder."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from torch import nn

from ..checkpoints import ViewSpec
from ..checkpoints.weights import Weights
from ..models import Encoder
from ..utils.errors import ConfigError, DataError
from .images import ImageLike, list_images, load_image
from .load import load_encoder
from .view import IMAGENET_MEAN, IMAGENET_STD, View


def extract_features(
    source: str | Path | Mapping | Encoder,
    images: ImageLike | Iterable[ImageLike],
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
    crop: float | None = None,
    **settings,
) -> np.ndarray:
    """Features of images: `extract_features('checkpoint.pth', ['a.jpg', 'b.png'], out_type='avg_featmap')`.

    Images are shown as the probes of this repository show them, see :class:`mmcae.apis.view.View`: resized (bicubic) so that the encoder's
    224 pixels are the centre of 256, and normalised.

    Args:
        source: A checkpoint (a path, or its content) of any layout that :func:`mmcae.apis.load_encoder` reads; or an encoder, which
            computes in its own dtype and is left as it is.
        images: Many images or one, of any sizes: files by name, as bytes or open; PIL images of any mode; arrays (H, W, C) or (B, H, W, C);
            tensors (C, H, W) or (B, C, H, W). Arrays and tensors hold uint8, or floats in [0, 1], in RGB or whatever channels the encoder
            has. May be a generator: one batch is in memory at a time.
        img_size: Pixels, (h, w) or one number for both; multiples of the patch size. Defaults to what the encoder was made for.
        batch_size: Images per forward pass.
        mean, std: Of the pixels in [0, 255], for each channel. Default to those that the checkpoint tells, else ImageNet's for RGB.
        device: Such as 'cuda:0'. Defaults to that of a given encoder; for a checkpoint to the GPU where there is one, else the CPU.
        crop: Share of the resized image's sides that is kept. Defaults to 224/256, to 1 for an `img_size` below 64.
        **settings: For a checkpoint: more arguments of :class:`mmcae.models.CAEViT` or TimmEncoder, such as `out_type`, 'cls_token' by
            default.

    Returns:
        float32 array of n rows in the order of the images: (n, C) for the out_types 'cls_token' and 'avg_featmap', (n, C, h, w) for
        'featmap', (n, 1 + h * w, C) for 'raw'.

    Raises:
        CheckpointError: See :func:`mmcae.apis.load_encoder`.
        ConfigError: Settings that cannot be, or do not go together.
        DataError: An image that cannot be read, which the message names; or no image at all.
    """
    if not is_whole(batch_size):
        raise ConfigError(f'batch_size={batch_size!r} must be a whole number, at least 1')
    stream = enumerate(list_images(images))
    encoder, view = load_encoder_and_view(source, img_size, mean, std, crop, **settings)
    if len(encoder.out_indices) > 1:
        raise ConfigError(f'extract_features gives the output of one block, but out_indices={encoder.out_indices}: choose one')
    features = []
    with evaluating(encoder, device if isinstance(source, Encoder) else device or get_device()) as encoder, torch.no_grad():
        like = next(encoder.parameters())
        while batch := [view.cut(load_image(image, view.channels, f'image {number}')) for number, image in islice(stream, batch_size)]:
            features.append(encoder(view.normalize(batch).to(like.device, like.dtype))[0].float().cpu().numpy())
    if not features:
        raise DataError('extract_features was given no images')
    return np.concatenate(features)


@contextmanager
def evaluating(encoder: nn.Module, device: str | torch.device | None = None) -> Iterator[nn.Module]:
    """The encoder in eval mode; afterwards each of its parts is in the mode it was in.

    Args:
        encoder: Stays where it is.
        device: Where to compute. On another device than the encoder's a copy does.

    Raises:
        ConfigError: There is no such device.
    """
    if device is not None:
        try:
            device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ConfigError(f'device={device!r} cannot be used: {str(error).splitlines()[0]}') from error
        if device != next(encoder.parameters()).device:
            encoder = copy.deepcopy(encoder).to(device)
    modes = {module: module.training for module in encoder.modules()}
    try:
        for module in modes:  # not encoder.eval(), which freezes what frozen_stages says once more
            module.training = False
        yield encoder
    finally:
        for module, training in modes.items():
            module.training = training


def load_encoder_and_view(
    source: str | Path | Mapping | Weights | Encoder,
    img_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    **settings,
) -> tuple[Encoder, View]:
    """An encoder, and what it is shown of an image; the arguments are those of :func:`extract_features`.

    An encoder from a checkpoint is in eval mode, a given one as it was.
    """
    if isinstance(source, Encoder):
        if settings:
            raise ConfigError(f'{sorted(settings)} can be chosen for a checkpoint only; set them when you build the encoder')
        encoder = source
    elif isinstance(source, nn.Module):
        own = ', such as its `backbone`' if isinstance(getattr(source, 'backbone', None), Encoder) else ''
        raise ConfigError(f'Features come from a checkpoint or an encoder; got a {type(source).__name__}: give its encoder{own}')
    elif not isinstance(source, Mapping | str | Path | Weights):
        raise ConfigError(f'Features come from a checkpoint or an encoder; got a {type(source).__name__}')
    else:
        encoder = load_encoder(source, **settings)
    channels = encoder.in_channels
    known = encoder.spec.view
    if channels != 3 and known is None and (mean is None or std is None):
        raise ConfigError(f'This encoder has {channels} channels, and nothing tells how they are normalised: give mean and std')
    size = tuple(n * p for n, p in zip(encoder.grid, encoder.patch_size, strict=True)) if img_size is None else pair(img_size)
    encoder.grid_of(size)  # refuses what patches do not tile
    known = known or ViewSpec(IMAGENET_MEAN, IMAGENET_STD, size)
    crop = known.crop_pct if crop is None and known.size == size else crop
    return encoder, View(size, known.mean if mean is None else mean, known.std if std is None else std, channels, crop, known.interpolation)


def pair(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(h, w) of an image size."""
    size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(size) != 2 or not all(map(is_whole, size)):
        raise ConfigError(f'img_size={img_size!r} must be a number of pixels, or (height, width)')
    return tuple(map(int, size))


def is_whole(value) -> bool:
    """Whether it is a whole number above 0, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0
