"""Configs of the three kinds of tasks for one encoder, as texts: what is other than in the packaged recipes follows from its spec."""

from pathlib import Path

from ..checkpoints import EncoderSpec
from ..utils.configs.loading import load_config
from ..utils.packaged import CONFIGS
from .downstream import config_text

RECIPES = dict(
    classification='linear_probe/linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py',
    detection='mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py',
    segmentation='upernet/upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512.py',
)
LIBRARIES = dict(classification='mmpretrain', detection='mmdet', segmentation='mmsegmentation')


def snippet(task: str, spec: EncoderSpec, checkpoint: str | Path) -> str:
    """The text of a config that trains a task on an encoder: a packaged recipe, and what is other for it.

    Args:
        task: One of `RECIPES`.
        spec: The encoder.
        checkpoint: Its file.
    """
    base = CONFIGS / RECIPES[task]
    title = f'{task} with {LIBRARIES[task]}, on {Path(checkpoint).name}'
    return config_text(base, base, load_config(base), spec, str(checkpoint), title)
