"""What a pretrained CAE makes of the masked part of an image, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmengine.utils import to_2tuple
from PIL import Image
from torch import Tensor

from ..checkpoints.weights import Weights
from ..datasets.transforms import RandomMaskGenerator
from ..models import CAE, CAEv2
from ..models.targets import Target, Teacher
from ..registry import MODELS
from ..utils.configs.loading import load_config
from ..utils.errors import ConfigError
from ..visualization.patch_features import pca_colors
from ..visualization.sheet import as_rgb, enlarge
from .images import fit, load_image, to_tensor


@dataclass
class Reconstruction:
    """Pictures of one image, uint8 (h, w, 3), and how well its tokens were guessed.

    Attributes:
        image: What the model was shown, before masking.
        masked: The same, with the masked patches in grey.
        predicted: The targets drawn by the tokenizer: those of the visible patches as they are, those of the masked ones as predicted.
            Features of a teacher are drawn as colours, their first three principal components.
        tokenized: The same with the true targets everywhere: no prediction can look better.
        mask: bool (rows, columns), True = masked.
        accuracy: Share of the masked patches whose token was predicted right; None for targets that are no tokens.
    """

    image: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray
    tokenized: np.ndarray
    mask: np.ndarray
    accuracy: float | None


def load_pretrained(config: str | Path, checkpoint: str | Path | Weights) -> CAE | CAEv2:
    """The pretraining model of a config, tokenizer included, with the weights of a checkpoint (mmcae's, the authors', mmpretrain's).

    Raises:
        ConfigError: The config describes neither CAE nor CAE v2.
        CheckpointError: The checkpoint is of another model.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    if not isinstance(model, CAE | CAEv2):
        raise ConfigError(f'{config} describes a {type(model).__name__}, not the pretraining of a CAE')
    model.load_pretrained(checkpoint)
    return model.eval()


def reconstruct(
    model: CAE | CAEv2 | tuple[str | Path, str | Path],
    image: str | Path | np.ndarray,
    mask: np.ndarray | float = 0.5,
    img_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Mask an image, predict the targets of the masked patches, and let the tokenizer draw them.

    Tokenizers whose targets leave something out, such as the brightness of a patch, take that from the true image when drawing.

    Args:
        model: From :func:`load_pretrained`; or a config and a checkpoint of it.
        image: File, or uint8 array (H, W, 3) in RGB, or of the channels that the model reads; cut to the proportions of `img_size` and
            resized.
        mask: bool (rows, columns), True = masked; or the share of patches to mask at random.
        img_size: Pixels, (h, w) or one number for both. Defaults to what the encoder was made for.
        seed: Of the random mask.

    Raises:
        ConfigError: The model has no tokenizer, its tokenizer cannot draw, or mask and image do not fit.
    """
    model = load_pretrained(*model) if isinstance(model, tuple) else model
    tokenizer, encoder = model.target_generator, model.backbone
    if tokenizer is None:
        raise ConfigError('This CAE has no tokenizer that could draw its predictions: build it from a config with a target_generator')
    size = to_2tuple(img_size) if img_size else tuple(n * p for n, p in zip(encoder.grid, encoder.patch_size, strict=True))
    grid = encoder.grid_of(size)
    mask = check_mask(mask, grid, seed)
    image = load_image(image, encoder.in_channels)
    view = fit(image, size)
    if tokenizer.reads_encoder_view:
        images = model.data_preprocessor(dict(inputs=to_tensor([view]), data_samples=None))['inputs']
        images = images if torch.is_tensor(images) else images[0]
        reference = tokenizer.view_of(images, grid, model.data_preprocessor)
    else:
        second_size = tuple(n * p for n, p in zip(grid, tokenizer.downsample, strict=True))
        views = [to_tensor([view]), to_tensor([fit(image, second_size, Image.Resampling.LANCZOS)])]
        images, reference = model.data_preprocessor(dict(inputs=views, data_samples=None))['inputs']
    flags = torch.from_numpy(mask).flatten()[None]
    with torch.inference_mode():
        logits = predicted_targets(model, images, flags).float()
        true = tokenizer.tokenize(reference)
        masked = flags.view(true.shape[:2] if true.is_floating_point() else true.shape).to(true.device)
        guess = logits if true.is_floating_point() else logits.argmax(-1)
        accuracy = None if true.is_floating_point() else (true[masked] == guess).float().mean().item()
        predicted = true.clone()
        predicted[masked] = guess
        pictures = draw_targets(tokenizer, (predicted, true), reference, grid, max(size))
    view = as_rgb(view)
    return Reconstruction(view, hide(view, mask), *pictures, mask, accuracy)


def predicted_targets(model: CAE | CAEv2, images: Tensor, flags: Tensor) -> Tensor:
    """What a model predicts of the masked patches of one image (1, C, H, W), flags bool (1, N): (m, num_outputs)."""
    found = model.predict(images, flags)
    return found['logits'][0] if isinstance(model, CAE) else found['prediction'][0, model.num_cls :][flags[0]]


def draw_targets(tokenizer: Target, targets: Sequence[Tensor], reference: Tensor, grid: tuple[int, int], side: int) -> list[np.ndarray]:
    """Pictures uint8 (h, w, 3) of targets of one view: by the tokenizer, or of features as colours, `side` pixels long."""
    if not isinstance(tokenizer, Teacher):
        drawn = [tokenizer.decode(one, reference=reference) for one in targets]
        return [to_picture(picture * tokenizer.std + tokenizer.mean) for picture in drawn]
    features = [one[0].float().cpu().unflatten(0, grid) for one in targets]
    if tokenizer.loss_kind == 'cosine':
        features = [torch.nn.functional.normalize(one, dim=-1) for one in features]
    return [enlarge(one, side, smooth=False) for one in pca_colors([features])[0]]


def check_mask(mask: np.ndarray | float, grid: tuple[int, int], seed: int) -> np.ndarray:
    """The mask that was asked for, bool (rows, columns)."""
    if not isinstance(mask, np.ndarray):
        generator = RandomMaskGenerator(grid, ratio=mask)
        state = np.random.get_state()
        np.random.seed(seed)
        mask = generator.transform({})['mask']
        np.random.set_state(state)
    if mask.dtype != bool or mask.shape != tuple(grid):
        raise ConfigError(
            f'The mask must be a bool array of shape {tuple(grid)}, a flag for each patch; got {mask.dtype} of shape {mask.shape}'
        )
    return mask


def hide(image: np.ndarray, mask: np.ndarray, grey: int = 128) -> np.ndarray:
    """A copy of an image (h, w, 3) with the masked patches in grey."""
    patch = tuple(n // m for n, m in zip(image.shape[:2], mask.shape, strict=True))
    hidden = np.kron(mask, np.ones(patch, bool))
    return np.where(hidden[..., None], np.uint8(grey), image)


def to_picture(image: Tensor) -> np.ndarray:
    """(1, C, h, w) in [0, 255] -> uint8 (h, w, 3)."""
    return as_rgb(image[0].permute(1, 2, 0).cpu().numpy())
