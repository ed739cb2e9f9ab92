"""Models straight from a checkpoint: sizes are read off the tensors and the checkpoint's own description, no config needed."""

from collections.abc import Mapping
from pathlib import Path

from .. import checkpoints
from ..checkpoints import load_strictly, read_weights
from ..checkpoints.weights import Weights, count_blocks, unknown_heads
from ..models import CAE, CAEv2, Encoder
from ..registry import MODELS
from ..utils.errors import CheckpointError


def load_cae(
    source: str | Path | Mapping | Weights, num_heads: int | None = None, decoder_num_heads: int | None = None, prefix: str = ''
) -> CAE | CAEv2:
    """Build the whole pretraining model, CAE or CAE v2, from a checkpoint of mmcae, the authors or mmpretrain.

    Args:
        source: Path, or a checkpoint's content, or a state dict, or what `mmcae.checkpoints.read_weights` has read.
        num_heads: Heads of the encoder, where neither the checkpoint nor the rules of its layout tell.
        decoder_num_heads: Heads of regressor and decoder, likewise.
        prefix: What stands before the model's names, in a file that has several.

    Returns:
        The model in training mode without drop path and without a tokenizer (`predict` works, `loss` needs one), in float32.

    Raises:
        CheckpointError: Unreadable, incomplete, of an unknown layout, or with a number of heads that is not known.
    """
    weights = read_weights(source, prefix)
    state, spec = weights.cae, weights.spec(num_heads)
    head = 'predictor.fc.weight' if weights.is_v2 else 'decoder.head.weight'
    missing = [key for key in ('regressor.mask_token', 'regressor.blocks.0.attn.q_bias', head) if key not in state]
    if missing:
        alone = not any(key.startswith(('regressor.', 'decoder.', 'predictor.')) for key in state)
        why = 'it holds an encoder alone' if alone else 'the rest of the model is incomplete; for its encoder alone'
        raise CheckpointError(f'{weights.origin} has no {", ".join(missing)}: {why}, use load_encoder')
    if spec.num_heads is None:
        raise unknown_heads(weights.origin, 'encoder', spec.embed_dims, 'num_heads')
    common = dict(
        embed_dims=state['regressor.mask_token'].shape[-1],
        num_heads=weights.decoder_heads(decoder_num_heads),
        feedforward_channels=len(state['regressor.blocks.0.mlp.fc1.weight']),
    )
    regressor = dict(
        type='mmcae.LatentContextualRegressor',
        in_dims=spec.embed_dims,
        num_layers=count_blocks(state, 'regressor.blocks.'),
        layer_scale_init_value=float('regressor.blocks.0.gamma_1' in state),
        **common,
    )
    if weights.is_v2:
        model = CAEv2(backbone=spec.config(), regressor=regressor, predictor=dict(num_outputs=len(state[head])))
    else:
        decoder = dict(
            type='mmcae.CAEDecoder',
            num_outputs=len(state[head]),
            num_layers=count_blocks(state, 'decoder.blocks.'),
            layer_scale_init_value=float('decoder.blocks.0.gamma_1' in state),
            **common,
        )
        model = CAE(backbone=spec.config(), regressor=regressor, decoder=decoder)
    load_strictly(model, state, weights.origin, spec=spec)
    return model


def load_encoder(
    source: str | Path | Mapping | Weights, num_heads: int | None = None, prefix: str = '', norm: str | None = None, **settings
) -> Encoder:
    """Build an encoder from any checkpoint that has one: CAE's and BEiT's as CAEViT, the ViTs of others as TimmEncoder.

    Args:
        source: Path of a file, or of a folder of Hugging Face's; or a checkpoint's content, or a state dict, or what
            `mmcae.checkpoints.read_weights` has read.
        num_heads: Heads, where neither the checkpoint nor the rules of its layout tell.
        prefix: What stands before the encoder's names, in a file that has several, such as 'teacher.backbone.'.
        norm: Which of two final norms is the encoder's, such as 'norm' or 'fc_norm'.
        **settings: Further arguments of :class:`mmcae.models.CAEViT` or :class:`mmcae.models.TimmEncoder`, such as `out_type`, or an
            `img_size` to resize its tables to. `model_name` and arguments of timm name the ViT where its tensors do not tell.

    Returns:
        The encoder in eval mode, in float32. Its `spec` describes it, with the view and the origin that the checkpoint tells.

    Raises:
        CheckpointError: See :func:`load_cae`; or a position table whose grid is not known without `img_size`.
    """
    weights = read_weights(source, prefix, norm=norm)
    if 'model_name' in settings:
        config = dict(type='mmcae.TimmEncoder', **({} if num_heads is None else dict(num_heads=num_heads)))
    else:
        config = weights.encoder_config(num_heads, settings.get('img_size'))
    model = MODELS.build({**config, **settings})
    checkpoints.load_encoder_weights(model, weights)
    return model.eval()
