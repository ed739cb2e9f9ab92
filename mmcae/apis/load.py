"""Models straight from a checkpoint: sizes are read off the tensors, no config needed."""

import ast
import math
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log

from .. import checkpoints
from ..checkpoints import StateDict, cae_of, encoder_of, load_state, load_strictly, name_of, read_checkpoint, to_mmcae
from ..models import CAE, CAEViT
from ..models.vit import ARCHITECTURES
from ..utils.errors import CheckpointError

HEAD_WIDTH = 64
# The authors' code builds 12 heads whatever the width, which leaves an inner width of 1020 at a width of 1024; 16 for the large encoder.
OFFICIAL_HEADS = 12
OFFICIAL_LARGE_HEADS = 16


def load_cae(source: str | Path | Mapping, num_heads: int | None = None, decoder_num_heads: int | None = None) -> CAE:
    """Build the whole pretraining model from a checkpoint of mmcae, the authors or mmpretrain.

    Args:
        source: Path, or a checkpoint's content, or a state dict.
        num_heads: Heads of the encoder. Tensors do not tell; where not given, the checkpoint's own config is asked, else heads are
            64 wide.
        decoder_num_heads: Heads of regressor and decoder, likewise.

    Returns:
        The model in training mode without drop path and without a tokenizer (`predict` works, `loss` needs one), in float32.

    Raises:
        CheckpointError: Unreadable, incomplete, of an unknown layout, or heads that do not fit the widths.
    """
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    state = cae_of(to_mmcae(load_state(content)))
    require_keys(state, ('regressor.mask_token', 'regressor.blocks.0.attn.q_bias', 'decoder.head.weight'), source, 'use load_encoder')
    config = config_of(content)
    encoder = encoder_settings(encoder_of(state), num_heads, config)
    dim = state['regressor.mask_token'].shape[-1]
    inner = len(state['regressor.blocks.0.attn.q_bias'])
    common = dict(
        embed_dims=dim,
        num_heads=head_count(dim, inner, 'decoder_num_heads', decoder_num_heads, config.get('decoder_num_heads')),
        feedforward_channels=len(state['regressor.blocks.0.mlp.fc1.weight']),
    )
    model = CAE(
        backbone=dict(type='mmcae.CAEViT', **encoder),
        regressor=dict(
            type='mmcae.LatentContextualRegressor',
            in_dims=encoder['arch']['embed_dims'],
            num_layers=count_blocks(state, 'regressor.blocks.'),
            layer_scale_init_value=float('regressor.blocks.0.gamma_1' in state),
            **common,
        ),
        decoder=dict(
            type='mmcae.CAEDecoder',
            num_outputs=len(state['decoder.head.weight']),
            num_layers=count_blocks(state, 'decoder.blocks.'),
            layer_scale_init_value=float('decoder.blocks.0.gamma_1' in state),
            **common,
        ),
    )
    load_strictly(model, state, name_of(source))
    return model


def load_encoder(source: str | Path | Mapping, num_heads: int | None = None, **settings) -> CAEViT:
    """Build an encoder from any checkpoint that has one.

    Args:
        source: Path, or a checkpoint's content, or a state dict.
        num_heads: See :func:`load_cae`.
        **settings: Further arguments of :class:`mmcae.models.CAEViT`, such as `out_type` or `img_size`.

    Returns:
        The encoder in eval mode, in float32.

    Raises:
        CheckpointError: See :func:`load_cae`.
    """
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    state = encoder_of(to_mmcae(load_state(content)))
    config = config_of(content)
    if 'img_size' in settings:
        config.setdefault('img_size', settings['img_size'])
    model = CAEViT(**{**encoder_settings(state, num_heads, config), **settings})
    checkpoints.load_encoder(model, content, origin=name_of(source))
    return model.eval()


def encoder_settings(state: StateDict, num_heads: int | None = None, config: Mapping = {}) -> dict:  # noqa: B006
    """The arguments of CAEViT that fit an encoder's state dict.

    Args:
        state: Under our names, without prefix.
        num_heads: As given by the user.
        config: What :func:`config_of` found. Where `img_size` is not in it, the position table is taken to be made for a square.

    Raises:
        CheckpointError: Parts of an encoder are missing, or what tensors do not tell cannot be guessed.
    """
    needed = ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.0.attn.q_bias', 'blocks.0.mlp.fc1.weight')
    require_keys(state, needed, 'the encoder', 'CAE needs them')
    dim, channels, *patch = state['patch_embed.proj.weight'].shape
    img_size = config.get('img_size')
    if img_size is None:
        patches = state['pos_embed'].shape[1] - 1
        side = math.isqrt(patches)
        if side * side != patches:
            raise CheckpointError(
                f'The checkpoint was made for {patches} patches, which are no square, and its config is not in it: '
                'give load_encoder the img_size of the pretraining'
            )
        img_size = (side * patch[0], side * patch[1])
    return dict(
        arch=dict(
            embed_dims=dim,
            num_layers=count_blocks(state, 'blocks.'),
            num_heads=head_count(dim, len(state['blocks.0.attn.q_bias']), 'num_heads', num_heads, config.get('num_heads')),
            feedforward_channels=len(state['blocks.0.mlp.fc1.weight']),
        ),
        img_size=img_size,
        patch_size=tuple(patch),
        in_channels=channels,
        layer_scale_init_value=float('blocks.0.gamma_1' in state),
        use_rel_pos_bias='blocks.0.attn.relative_position_bias_table' in state,
        final_norm='norm.weight' in state,
        window_size=config.get('window_size'),
        global_blocks=config.get('global_blocks', ()),
    )


def timm_arguments(state: Mapping, num_heads: int | None = None, pool: str = 'token') -> dict:
    """The arguments of `timm.create_model` for the BEiT that takes what :func:`mmcae.checkpoints.to_timm` makes of a state dict.

    Args:
        state: State dict under mmcae's names, of a square grid.
        num_heads: See :func:`load_cae`.
        pool: 'token' or 'avg', as given to `to_timm`.

    Returns:
        All arguments, the model's name as `model_name`.

    Raises:
        CheckpointError: timm's BEiT has no such shape.
    """
    encoder = encoder_settings(encoder_of(state), num_heads)
    sizes, patch = encoder['arch'], encoder['patch_size']
    dim, depth, heads = sizes['embed_dims'], sizes['num_layers'], sizes['num_heads']
    if patch[0] != patch[1] or dim % heads or not encoder['final_norm']:
        raise CheckpointError("timm's BEiT has square patches, a width that its heads divide, and a final norm; this encoder differs")
    large = (dim, depth, heads) == (1024, 24, 16)
    arguments = dict(model_name='beit_large_patch16_224' if large else 'beit_base_patch16_224', num_classes=0, global_pool=pool)
    arguments |= dict(use_abs_pos_emb=True, use_rel_pos_bias=encoder['use_rel_pos_bias'])
    if not large and (dim, depth, heads) != (768, 12, 12):
        arguments |= dict(embed_dim=dim, depth=depth, num_heads=heads)
    if not encoder['layer_scale_init_value']:
        arguments |= dict(init_values=0)  # timm takes None for its own default
    for name, value, default in (
        ('img_size', encoder['img_size'][0], 224),
        ('patch_size', patch[0], 16),
        ('in_chans', encoder['in_channels'], 3),
        ('mlp_ratio', sizes['feedforward_channels'] / dim, 4),
    ):
        if value != default:
            arguments[name] = value
    return arguments


def count_blocks(state: StateDict, prefix: str) -> int:
    """Number of transformer blocks under a prefix."""
    return len({key[len(prefix) :].split('.')[0] for key in state if key.startswith(prefix)})


def require_keys(state: StateDict, keys: tuple[str, ...], source, remedy: str):
    """Refuse a state dict that lacks what its sizes are read from.

    Raises:
        CheckpointError: Names what is missing, and the remedy.
    """
    missing = [key for key in keys if key not in state]
    if missing:
        raise CheckpointError(f'{name_of(source)} has no {", ".join(missing)}: {remedy}')


def head_count(dim: int, inner: int, name: str, given: int | None = None, told: int | None = None) -> int:
    """The number of heads of an attention of width `dim` that is `inner` wide inside.

    Args:
        dim: Width of the tokens.
        inner: Width of queries, keys and values.
        name: What the user calls this number.
        given: By the user.
        told: By the checkpoint's own config; passed over where it does not fit the widths, since the authors' code ignores some of its
            arguments.

    Raises:
        CheckpointError: `given` or what is assumed without it does not fit, or nothing can be assumed.
    """

    def fits(heads):
        return heads and heads <= dim and dim // heads * heads == inner

    heads = given or (told if fits(told) else None)
    if not heads:
        heads = OFFICIAL_HEADS if inner != dim else dim // HEAD_WIDTH
        if not fits(heads):
            raise CheckpointError(f'Tensors do not tell the number of heads, and none is obvious for a width of {dim}: give {name}=')
        print_log(f'{name}={heads} is assumed, each {dim // heads} wide: the checkpoint does not tell', logger='current')
    if not fits(heads):
        raise CheckpointError(f'{heads} heads do not fit a width of {dim} with {inner} inside the attention: give {name}=')
    return heads


def config_of(content: Mapping) -> dict:
    """What a checkpoint's own config tells that its tensors do not: `num_heads`, `decoder_num_heads`, `img_size`, and windows.

    Args:
        content: A checkpoint's content with mmengine's config text in `meta`, or with the authors' arguments; other content has none.
    """
    if hasattr(content.get('args'), 'model'):
        # Their model functions differ in the encoder's heads alone; `decoder_num_heads` among their arguments reaches no module.
        heads = OFFICIAL_LARGE_HEADS if 'large' in str(content['args'].model) else OFFICIAL_HEADS
        return dict(num_heads=heads, decoder_num_heads=OFFICIAL_HEADS)
    meta = content.get('meta')
    model = config_section(meta['cfg'], 'model') if isinstance(meta, Mapping) and isinstance(meta.get('cfg'), str) else {}
    backbone, latent = section(model, 'backbone'), section(model, 'decoder') or section(model, 'neck')
    arch = backbone.get('arch')
    sizes = arch if isinstance(arch, dict) else architectures(backbone).get(str(arch), {})
    found = dict(num_heads=sizes.get('num_heads'), decoder_num_heads=latent.get('num_heads'), img_size=backbone.get('img_size'))
    found = {key: value for key, value in found.items() if is_size(value)}
    window, blocks = backbone.get('window_size'), backbone.get('global_blocks', ())
    if type(window) is int and window > 0 and isinstance(blocks, tuple) and all(type(block) is int for block in blocks):
        found |= dict(window_size=window, global_blocks=blocks)
    return found


def is_size(value) -> bool:
    """Whether it is a whole number above 0, or two of them: other things than that are not taken from a checkpoint's config."""
    numbers = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return all(type(number) is int and number > 0 for number in numbers)


def section(config: dict, name: str) -> dict:
    """The dict of this name in a config, or an empty one: a detector's neck may be a list."""
    return config.get(name) if isinstance(config.get(name), dict) else {}


def architectures(backbone: dict) -> dict[str, dict]:
    """The named architectures of a backbone's library; mmpretrain's `small` is not ours."""
    if 'CAEViT' in str(backbone.get('type')):
        return ARCHITECTURES
    from mmpretrain.models.backbones import BEiTViT

    return BEiTViT.arch_zoo


def config_section(text: str, name: str) -> dict:
    """`name = dict(...)` out of the text of a config, read without running it: literals and calls of dict only.

    Whatever else stands there is left out, since a checkpoint must not be able to run code.
    """

    def literal(node):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
            return {word.arg: literal(word.value) for word in node.keywords if word.arg}
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {key.value: literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
        if isinstance(node, (ast.List, ast.Tuple)):
            return tuple(literal(element) for element in node.elts)
        return node.value if isinstance(node, ast.Constant) else None

    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    for node in statements:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == name:
            found = literal(node.value)
            return found if isinstance(found, dict) else {}
    return {}
