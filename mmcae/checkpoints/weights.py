"""Weights: the tensors of a model under mmcae's names, with the description of its encoder, out of a file of any layout."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmengine.utils import to_2tuple

from ..utils.errors import CheckpointError, argument
from .folders import config_of
from .hugging_face_configs import checked_config, preprocessor_view
from .layouts import CAE_DECODER_HEADS, TIMM_BACKBONE, Place, content_of, heads_of, library_of, locate, meta_of, name_of
from .reading import StateDict
from .renaming import cae_of, encoder_of, is_v2, left_out, one_norm, to_mmcae, without_redundant
from .spec import IMAGENET_MEAN, IMAGENET_STD, META, EncoderSpec, Origin, ViewSpec
from .tables import grid_of_table, unknown_grid
from .timm_models import TimmModel, by_timm_config, is_released_vit, timm_model_of
from .timm_names import beyond_cae, is_dinov3, layout_of, to_timm_names

METHOD = 'method'  # the place of the method's description in the metadata
NEEDED = ('cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.0.attn.q_bias', 'blocks.0.mlp.fc1.weight')


@dataclass
class Weights:
    """What a checkpoint holds of a model.

    Args:
        origin: What to call the checkpoint in messages.
        place: Where in it the model was found.
        state: All tensors of the model under mmcae's names.
        described: What the checkpoint itself says of its encoder, or None.
        method: What the checkpoint says of its method (`name`, `num_heads` of regressor and decoder), empty where it says nothing.
        config: The config.json beside it, see :func:`.folders.config_of`.
        norm: Which of two final norms is the encoder's.
        view: How images are prepared, where a released model tells.
    """

    origin: str
    place: Place
    state: StateDict
    described: EncoderSpec | None
    method: Mapping
    config: Mapping = field(default_factory=dict)
    norm: str | None = None
    view: ViewSpec | None = None

    @property
    def is_vit(self) -> bool:
        """Whether the encoder is one for TimmEncoder: described as such, or a released ViT that has parts other than CAE's."""
        if self.described is not None:
            return self.described.type == 'TimmEncoder'
        if self.place.kind == 'encoder' and 'architecture' in self.config:  # timm's, whose BEiT has CAE's names
            return not str(self.config['architecture']).startswith(('beit_', 'beitv2_'))
        if self.place.kind in ('encoder', 'huggingface') and is_dinov3(self.place.state):
            return True
        return self.place.kind in ('mmcae', 'encoder', 'huggingface') and is_released_vit(self.vit)

    @property
    def vit(self) -> StateDict:
        """The encoder alone under timm's names.

        Raises:
            CheckpointError: It is one of the authors' or mmpretrain's layout.
        """
        state = self.place.state
        if self.place.kind == 'mmcae':
            prefix = TIMM_BACKBONE if any(key.startswith(TIMM_BACKBONE) for key in state) else 'backbone.'
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        elif self.place.kind not in ('encoder', 'huggingface'):
            raise CheckpointError(f'{self.origin} holds an encoder of the layout {self.place.kind!r}: build it as mmcae.CAEViT')
        return to_timm_names(one_norm(state, self.norm))

    @property
    def library(self) -> str:
        """Whose names the encoder has: 'timm', 'dinov2', 'dinov3', 'huggingface', or those of :func:`.layouts.library_of`."""
        if not self.is_vit:
            return library_of(self.place.kind)
        return layout_of({key.removeprefix('backbone.'): value for key, value in self.place.state.items()})

    def timm_model(self, num_heads: int | None = None, img_size: int | tuple[int, int] | None = None) -> TimmModel:
        """The model of timm for the encoder; the arguments are those of :meth:`spec`.

        Raises:
            CheckpointError: The tensors are of no model that is known, or an argument contradicts the checkpoint.
        """
        if self.described is not None:
            self.check_num_heads(self.described, num_heads)
            return TimmModel(dict(self.described.arguments), self.described.view)
        return timm_model_of(self.vit, self.config, self.origin, num_heads, img_size, self.library)

    def encoder_config(self, num_heads: int | None = None, img_size: int | tuple[int, int] | None = None) -> dict:
        """The config that builds the encoder from the registry, a CAEViT or a TimmEncoder; the arguments are those of :meth:`spec`.

        Raises:
            CheckpointError: See :meth:`spec` and :meth:`timm_model`; or the number of heads is not known.
        """
        if self.is_vit:
            found = self.timm_model(num_heads, img_size)
            self.view, config = found.view, dict(type='mmcae.TimmEncoder', **found.arguments)
            unknown, width = config.get('num_heads', 0) is None, self.vit['patch_embed.proj.weight'].shape[0]
        else:
            self.check_norms()
            self.described = spec = self.spec(num_heads, img_size)
            config, unknown, width = spec.config(), spec.num_heads is None, spec.embed_dims
        if unknown:
            raise unknown_heads(self.origin, 'encoder', width, 'num_heads')
        return config

    def check_norms(self):
        """Refuse blocks that timm's EVA has with its norms in front of the branches or behind them, under the same names.

        Raises:
            CheckpointError: With the models' names. CAE's and BEiT's encoders have a layer scale, and norms in front.
        """
        state, others = self.place.state, ('blocks.0.gamma_1', 'blocks.0.attn.relative_position_bias_table')
        told = self.described is not None or 'architecture' in self.config or self.place.kind != 'encoder'
        if told or 'blocks.0.attn.q_bias' not in state or any(key in state for key in others):
            return
        raise CheckpointError(
            f'{self.origin} has no layer scale, and nothing tells whether the norms of its blocks stand in front of the branches, as in '
            f"timm's eva_giant_patch14_224, or behind them, as in eva02_enormous_patch14_clip_224: name it, as by "
            f'{argument("model_name", "eva_giant_patch14_224")}; load an encoder of CAE by init_cfg of mmcae.CAEViT'
        )

    def check_num_heads(self, spec: EncoderSpec, num_heads: int | None):
        """Refuse another number of heads than the checkpoint tells."""
        if num_heads is not None and spec.num_heads not in (None, num_heads):
            given = argument('num_heads', num_heads)
            raise CheckpointError(f'{given} was given, but the encoder in {self.origin} has {spec.num_heads}: leave it out')

    @property
    def cae(self) -> StateDict:
        """Encoder, regressor and decoder."""
        return cae_of(self.state)

    @property
    def encoder(self) -> StateDict:
        """The encoder alone, without prefix."""
        return encoder_of(self.state)

    @property
    def is_v2(self) -> bool:
        """Whether it is of CAE v2, which has one head for all tokens in the place of a decoder."""
        return is_v2(self.state)

    @property
    def left_out(self) -> Counter:
        """How many tensors belong to no part of CAE, by the first part of their names."""
        return Counter(key.split('.')[0] for key in left_out(self.place.state, self.place.kind))

    def spec(self, num_heads: int | None = None, img_size: int | tuple[int, int] | None = None) -> EncoderSpec:
        """The description of the encoder: the checkpoint's own, or what tensors and the layout's rules tell.

        Args:
            num_heads: Of the encoder, where nothing tells.
            img_size: (h, w) in pixels, or one number for both. A learned position table of as many patches was made for it.

        Returns:
            With `num_heads=None` where it stays unknown.

        Raises:
            CheckpointError: Parts of an encoder are missing, an argument contradicts the checkpoint, or the grid is not known.
        """
        if self.described is not None and self.described.type == 'TimmEncoder':
            self.check_num_heads(self.described, num_heads)
            return self.described
        parts = beyond_cae(self.vit) if self.described is None and self.is_vit else []
        if parts:
            raise CheckpointError(
                f'{self.origin} holds a ViT with {" and ".join(parts)}, which CAEViT has not: build it as mmcae.TimmEncoder, as '
                'load_encoder does; mmcae export writes it for other tools'
            )
        sizes = sizes_of(self.encoder, self.origin)
        spec = self.described or self.inferred(sizes, img_size)
        wrong = [f'{name} {getattr(spec, name)}, not {value}' for name, value in sizes.items() if getattr(spec, name) != value]
        if wrong:
            raise CheckpointError(f'{self.origin} describes another encoder than its tensors make: {", ".join(wrong)}')
        self.check_num_heads(spec, num_heads)
        spec = spec.replaced(num_heads=spec.num_heads or num_heads)
        check_heads(spec, len(self.encoder['blocks.0.attn.q_bias']), self.origin)
        return spec

    def inferred(self, sizes: dict, img_size: int | tuple[int, int] | None) -> EncoderSpec:
        """The description by tensors and rules alone."""
        state, patch = self.encoder, sizes['patch_size']
        table = state['pos_embed'][:, 1:]
        likely = tuple(pixels // size for pixels, size in zip(to_2tuple(img_size or 0), patch, strict=True))
        grid = grid_of_table(table, likely)
        if grid is None:
            raise unknown_grid(self.origin, table)
        told = self.config.get('model_args') or {}
        heads = (
            self.config.get('num_attention_heads')
            or told.get('num_heads')
            or heads_of(self.place, sizes['embed_dims'], sizes['num_layers'])
        )
        if sizes['use_rel_pos_bias']:
            heads = state['blocks.0.attn.relative_position_bias_table'].shape[1]
        pixels = tuple(cells * size for cells, size in zip(grid, patch, strict=True))
        view, prepared = None, self.config.get('preprocessor')
        if prepared is not None:
            view = preprocessor_view(prepared, pixels, IMAGENET_MEAN, IMAGENET_STD, self.origin)
        if 'architecture' in self.config:
            view = by_timm_config(self.config, self.origin, state).view
        eps = self.config.get('layer_norm_eps', 1e-6)
        arguments = {} if eps == 1e-6 else dict(norm_eps=eps)
        return EncoderSpec(
            num_heads=heads, img_size=pixels, arguments=arguments, view=view, origin=Origin(library=library_of(self.place.kind)), **sizes
        )

    def decoder_heads(self, num_heads: int | None = None) -> int:
        """Heads of regressor and decoder.

        Args:
            num_heads: As given by the user.

        Raises:
            CheckpointError: It is not known, or does not fit.
        """
        dim, inner = self.state['regressor.mask_token'].shape[-1], len(self.state['regressor.blocks.0.attn.q_bias'])
        told = self.method.get('num_heads')
        if told is None and self.place.kind in ('official', 'mmpretrain'):
            told = CAE_DECODER_HEADS.get(dim)
        if num_heads is not None and told not in (None, num_heads):
            given = argument('decoder_num_heads', num_heads)
            raise CheckpointError(f'{given} was given, but {self.origin} has {told}: leave it out')
        heads = told if num_heads is None else num_heads
        if heads is None:
            raise unknown_heads(self.origin, 'regressor and decoder', dim, 'decoder_num_heads')
        if not fits(heads, dim, inner):
            given = argument('decoder_num_heads', heads)
            raise CheckpointError(f'{given} does not fit a width of {dim} with {inner} inside the attention')
        return heads


def read_weights(
    source: str | Path | Mapping | Weights, prefix: str = '', kind: str | None = None, norm: str | None = None, origin: str | None = None
) -> Weights:
    """Read a checkpoint of any layout.

    Args:
        source: A file, a checkpoint's content, or a state dict. Weights that were read already are taken as they are.
        prefix: What stands before the model's names, needed where a file has several models, see :func:`.layouts.locate`.
        kind: The layout, where it is not recognised.
        norm: See :func:`.renaming.to_mmcae`.
        origin: What to call the source in messages.

    Raises:
        CheckpointError: The file cannot be read, holds no model of a known layout or several, or describes itself wrongly.
    """
    if isinstance(source, Weights):
        return replace(source)  # loading fills in what it infers
    content, origin = content_of(source), origin or name_of(source)
    place = locate(content, prefix, kind, origin)
    meta = meta_of(content)
    described = EncoderSpec.from_dict(meta[META], origin) if META in meta and not prefix else None
    if described is None:
        refuse_detectors(place, origin)
    method = meta.get(METHOD) if isinstance(meta.get(METHOD), Mapping) else {}
    own = place.kind == 'mmcae' and any(key.startswith(TIMM_BACKBONE) for key in place.state)
    try:
        state = without_redundant(place.state) if own else to_mmcae(place.state, place.kind, norm)
    except CheckpointError as error:
        raise CheckpointError(f'{origin}: {error}') from error
    if described is not None and described.type == 'TimmEncoder' and place.kind == 'encoder':
        state = {TIMM_BACKBONE + key: value for key, value in place.state.items()}
    config = config_of(source)
    if place.kind == 'huggingface':
        config = checked_config(config, place.state, origin)
    return Weights(origin, place, state, described, method, config, norm)


def refuse_detectors(place: Place, origin: str):
    """Stop at the encoder of a detector of LW-DETR, which has CAE's names, and was trained on without cls token and final norm.

    Raises:
        CheckpointError: With the file to take.
    """
    names = ('blocks.0.attn.q_bias', 'blocks.0.gamma_1', 'pos_embed')
    if place.kind == 'encoder' and 'cls_token' not in place.state and all(name in place.state for name in names):
        raise CheckpointError(
            f"{origin} holds CAE's encoder without its cls token, as LW-DETR's detectors have it, and an encoder here has one: take "
            'the file that was given to LW-DETR as --pretrained_encoder'
        )


def sizes_of(state: StateDict, origin: str) -> dict:
    """What the tensors of an encoder tell of it, as arguments of EncoderSpec.

    Raises:
        CheckpointError: Parts are missing.
    """
    missing = [key for key in NEEDED if key not in state]
    if missing:
        raise CheckpointError(f'{origin} has no whole encoder: {", ".join(missing)} are missing')
    dim, channels, *patch = state['patch_embed.proj.weight'].shape
    return dict(
        embed_dims=dim,
        num_layers=count_blocks(state, 'blocks.'),
        feedforward_channels=len(state['blocks.0.mlp.fc1.weight']),
        patch_size=tuple(patch),
        in_channels=channels,
        layer_scale='blocks.0.gamma_1' in state,
        use_rel_pos_bias='blocks.0.attn.relative_position_bias_table' in state,
        final_norm='norm.weight' in state,
    )


def count_blocks(state: StateDict, prefix: str) -> int:
    """Number of transformer blocks under a prefix."""
    return len({key[len(prefix) :].split('.')[0] for key in state if key.startswith(prefix)})


def check_heads(spec: EncoderSpec, inner: int, origin: str):
    """Compare the number of heads, if it is known, with the width inside the attention.

    Raises:
        CheckpointError: They do not fit.
    """
    if spec.num_heads is not None and not fits(spec.num_heads, spec.embed_dims, inner):
        raise CheckpointError(
            f'{origin}: num_heads={spec.num_heads} does not fit an encoder {spec.embed_dims} wide with {inner} inside the attention'
        )


def fits(heads: int, dim: int, inner: int) -> bool:
    """Whether so many heads of a whole number of channels make up the width inside the attention."""
    return type(heads) is int and 0 < heads <= dim and dim // heads * heads == inner


def unknown_heads(origin: str, part: str, dim: int, name: str) -> CheckpointError:
    """What to raise where the number of heads must be given, by the argument of this name."""
    return CheckpointError(
        f'{origin} does not tell the number of heads of its {part} ({dim} wide), and tensors cannot: give {argument(name)}. '
        "CAE's own tiny, small and base have 12; timm's and DeiT's have 3, 6 and 12"
    )
