"""Models straight from a checkpoint: sizes are read off the tensors, no config needed."""

import ast
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints import StateDict, encoder_of, load_state, load_strictly, name_of, read_checkpoint, to_mmcae
from ..models import CAE, CAEViT
from ..models.vit import ARCHITECTURES
from ..utils.errors import CheckpointError

HEAD_WIDTH = 64
# The authors' code builds 12 heads whatever the width, which leaves an inner width of 1020 at a width of 1024.
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
    state = to_mmcae(load_state(content))
    if 'regressor.mask_token' not in state:
        raise CheckpointError(f'{name_of(source)} holds an encoder alone; the whole CAE needs regressor and decoder too: use load_encoder')
    config = config_of(content)
    encoder = encoder_settings(encoder_of(state), num_heads or config.get('num_heads'))
    dim = state['regressor.mask_token'].shape[-1]
    inner = len(state['regressor.blocks.0.attn.q_bias'])
    heads = head_count(dim, inner, decoder_num_heads or config.get('decoder_num_heads'), 'decoder_num_heads')
    common = dict(embed_dims=dim, num_heads=heads)
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
    load_strictly(model, {key: value for key, value in state.items() if key in model.state_dict()}, name_of(source))
    return model


def load_encoder(source: str | Path | Mapping, num_heads: int | None = None, **settings) -> CAEViT:
    """Build an encoder from any checkpoint that has one.

    Args:
        source: Path, or a checkpoint's content, or a state dict.
        num_heads: See :func:`load_cae`.
        **settings: Further arguments of :class:`mmcae.models.CAEViT`, such as `out_type` or `img_size`.

    Returns:
        The encoder in eval mode, in float32.
    """
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    state = encoder_of(to_mmcae(load_state(content)))
    model = CAEViT(**{**encoder_settings(state, num_heads or config_of(content).get('num_heads')), **settings})
    load_strictly(model, {key: value for key, value in state.items() if key in model.state_dict()}, name_of(source))
    return model.eval()


def encoder_settings(state: StateDict, num_heads: int | None) -> dict:
    """The arguments of CAEViT that fit an encoder's state dict."""
    weight = state['patch_embed.proj.weight']
    dim, channels, *patch = weight.shape
    hidden = len(state['blocks.0.mlp.fc1.weight'])
    patches = state['pos_embed'].shape[1] - 1
    side = round(patches**0.5)
    if side * side != patches:
        raise CheckpointError(f'The checkpoint was made for {patches} patches, not a square grid: give img_size')
    return dict(
        arch=dict(
            embed_dims=dim,
            num_layers=count_blocks(state, 'blocks.'),
            num_heads=head_count(dim, len(state['blocks.0.attn.q_bias']), num_heads, 'num_heads'),
            feedforward_channels=hidden,
        ),
        img_size=(side * patch[0], side * patch[1]),
        patch_size=tuple(patch),
        in_channels=channels,
        layer_scale_init_value=float('blocks.0.gamma_1' in state),
        use_rel_pos_bias='blocks.0.attn.relative_position_bias_table' in state,
        final_norm='norm.weight' in state,
    )


def count_blocks(state: StateDict, prefix: str) -> int:
    """Number of transformer blocks under a prefix."""
    return len({key[len(prefix) :].split('.')[0] for key in state if key.startswith(prefix)})


def head_count(dim: int, inner: int, given: int | None, name: str) -> int:
    """The number of heads for a width and the attention's inner width, checked.

    Raises:
        CheckpointError: `given`, or what is assumed without it, does not fit.
    """
    heads = given or (dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 and inner == dim else OFFICIAL_HEADS)
    if heads > dim or dim // heads * heads != inner:
        raise CheckpointError(f'{heads} heads do not fit a width of {dim} with {inner} inside the attention: give {name}=')
    return heads


def config_of(content: Mapping) -> dict:
    """`num_heads` and `decoder_num_heads` as far as a checkpoint's own config tells: mmengine's text, or the authors' arguments."""
    if hasattr(content.get('args'), 'model'):
        # Their model functions differ in the encoder's heads; `decoder_num_heads` among their arguments reaches no module.
        heads = OFFICIAL_LARGE_HEADS if 'large' in str(content['args'].model) else OFFICIAL_HEADS
        return dict(num_heads=heads, decoder_num_heads=OFFICIAL_HEADS)
    meta = content.get('meta')
    model = model_section(meta['cfg']) if isinstance(meta, Mapping) and isinstance(meta.get('cfg'), str) else {}
    arch = model.get('backbone', {}).get('arch')
    sizes = arch if isinstance(arch, dict) else ARCHITECTURES.get(arch, {})
    return dict(
        num_heads=sizes.get('num_heads'),
        decoder_num_heads=model.get('decoder', model.get('neck') or {}).get('num_heads'),
    )


def model_section(text: str) -> dict:
    """`model = dict(...)` out of the text of a config, read without running it: literals and calls of dict only.

    Whatever else stands there is left out, since a checkpoint must not be able to run code.
    """

    def literal(node):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
            return {word.arg: literal(word.value) for word in node.keywords if word.arg}
        if isinstance(node, ast.Dict):
            return {literal(key): literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
        if isinstance(node, (ast.List, ast.Tuple)):
            return tuple(literal(element) for element in node.elts)
        return node.value if isinstance(node, ast.Constant) else None

    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    for node in statements:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == 'model':
            section = literal(node.value)
            return section if isinstance(section, dict) else {}
    return {}
