"""What several blocks of an encoder make of images, out of one forward pass: the input of the probes on frozen features."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.encoders.base import Encoder
from ..utils.errors import ConfigError


@torch.no_grad()
def block_tokens(encoder: Encoder, images: Tensor, blocks: Sequence[int]) -> Tensor:
    """The tokens behind some blocks, each after the encoder's final norm, as DINOv2's probes read them.

    Args:
        encoder: In eval mode.
        images: (B, C, H, W), normalised.
        blocks: Numbers of blocks; negative ones count from the end.

    Returns:
        (B, len(blocks), prefix + h * w, C), cls and other prefix tokens first.

    Raises:
        ConfigError: There is no such block.
    """
    depth = len(encoder.blocks)
    wrong = [block for block in blocks if not -depth <= block < depth]
    if wrong:
        raise ConfigError(f'Block {wrong[0]} is not there: this encoder has {depth}, numbered from 0')
    outputs: dict[int, Tensor] = {}
    hooks = [
        encoder.blocks[number].register_forward_hook(lambda module, arguments, output, number=number: outputs.update({number: output}))
        for number in {block % depth for block in blocks} - {depth - 1}
    ]
    try:
        outputs[depth - 1] = encoder.encode(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([outputs[n] if n == depth - 1 else encoder.norm(outputs[n]) for n in (block % depth for block in blocks)], dim=1)


def pooled_features(encoder: Encoder, images: Tensor, blocks: int = 1) -> Tensor:
    """cls token and mean over the patches behind the last blocks: (B, blocks, 2, C), see :class:`.sweep.Feature`.

    An encoder without cls has zeros in the place of cls. `blocks` beyond its depth counts as its depth.
    """
    tokens = block_tokens(encoder, images, range(-min(blocks, len(encoder.blocks)), 0))
    prefix = encoder.num_prefix_tokens
    mean = tokens[:, :, prefix:].mean(dim=2)
    return torch.stack((tokens[:, :, 0] if encoder.has_cls else torch.zeros_like(mean), mean), dim=2)


def patch_features(encoder: Encoder, images: Tensor, blocks: int = 1) -> Tensor:
    """The patches' tokens behind the last blocks: (B, h * w, blocks, C). `blocks` beyond the encoder's depth counts as its depth."""
    tokens = block_tokens(encoder, images, range(-min(blocks, len(encoder.blocks)), 0))
    return tokens[:, :, encoder.num_prefix_tokens :].transpose(1, 2)
