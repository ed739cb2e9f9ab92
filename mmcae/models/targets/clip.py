"""The image tower of CLIP in the files that people have: OpenAI's archive, a state dict of it, and Hugging Face's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checkpoints import StateDict, load_state, read_weights
from ...checkpoints.modules import read_module
from ...checkpoints.spec import CLIP_MEAN, CLIP_STD
from ...utils.errors import CheckpointError

OPENAI_MODEL = 'vit_base_patch16_clip_quickgelu_224'  # timm's ViT with CLIP's parts; the sizes are those of the checkpoint
HEAD_WIDTH = 64
POSITIONS = ('visual.positional_embedding', 'pos_embed')  # OpenAI's and timm's name
PROJECTION = 'visual_projection.weight'


@dataclass
class ClipTower:
    """What a file holds of CLIP's image tower.

    Args:
        arguments: Of `timm.create_model`, with `model_name`; `num_classes` is the width behind the projection, 0 where there is none.
        state: Its tensors, under OpenAI's names or timm's, both of which timm reads.
        mean, std: Of the pixels in [0, 255].
    """

    arguments: dict[str, Any]
    state: StateDict = field(default_factory=dict, repr=False)
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def on_grid(self, grid: tuple[int, int]) -> StateDict:
        """The tensors with positions for another grid of patches."""
        name = next(name for name in POSITIONS if name in self.state)
        table = self.state[name]
        resized = resize_positions(table.reshape(-1, table.shape[-1]), grid)
        return {**self.state, name: resized.reshape(*table.shape[:-2], *resized.shape)}


def random_tower() -> ClipTower:
    """CLIP ViT-B/16 without weights."""
    return ClipTower(dict(model_name=OPENAI_MODEL, embed_dim=768, patch_size=16, num_classes=512))


def read_tower(checkpoint: str | Path) -> ClipTower:
    """The image tower in OpenAI's archive, which is not run; in a state dict of it (`visual.*`); or in a folder or file of Hugging Face's.

    Raises:
        CheckpointError: There is none; or Hugging Face's `config.json` is missing or of another model.
    """
    try:
        state = read_module(checkpoint)
    except CheckpointError:
        state = load_state(checkpoint)
    if any(key.endswith('embeddings.class_embedding') for key in state):
        return of_hugging_face(checkpoint)
    state = {key: value.float() for key, value in state.items() if key.startswith('visual.')}
    if 'visual.proj' not in state or 'visual.class_embedding' not in state:
        raise CheckpointError(
            f"{checkpoint} holds no image tower of OpenAI's CLIP with a ViT, nor Hugging Face's: it has neither visual.proj nor "
            'embeddings.class_embedding; for another encoder give Teacher.model=None'
        )
    return ClipTower(sizes_of_openai(state), state)


def of_hugging_face(checkpoint: str | Path) -> ClipTower:
    """The tower of a CLIPModel, CLIPVisionModelWithProjection or CLIPVisionModel, with the heads and the activation of its config.json."""
    weights = read_weights(checkpoint)
    found = weights.timm_model()
    state = {key: value.float() for key, value in weights.vit.items()}
    head = next((value.float() for key, value in weights.place.beside.items() if key.endswith(PROJECTION)), None)
    if head is not None:
        state |= {'head.weight': head, 'head.bias': torch.zeros(len(head))}
    arguments = dict(found.arguments, num_classes=0 if head is None else len(head))
    return ClipTower(arguments, state, found.view.mean, found.view.std)


def sizes_of_openai(state: Mapping[str, Tensor]) -> dict:
    """What OpenAI's tensors tell of the tower's sizes, as arguments of timm's ViT."""
    width, _, patch, _ = state['visual.conv1.weight'].shape
    side = int((len(state['visual.positional_embedding']) - 1) ** 0.5)
    return dict(
        model_name=OPENAI_MODEL,
        embed_dim=width,
        depth=len({key.split('.')[3] for key in state if key.startswith('visual.transformer.resblocks.')}),
        num_heads=max(1, width // HEAD_WIDTH),
        patch_size=patch,
        img_size=side * patch,
        num_classes=state['visual.proj'].shape[1],
    )


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The position table (1 + n, C) of a square grid for another one, bilinear as the authors of CAE v2 resize it (timm: bicubic)."""
    side = int((len(table) - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    maps = table[1:].T.reshape(1, -1, side, side)
    maps = F.interpolate(maps, size=grid, mode='bilinear', align_corners=False)
    return torch.cat((table[:1], maps.flatten(2)[0].T))
