"""An encoder in the formats of other tools, each as the tool itself reads it."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..compat import import_extra
from ..utils.errors import CheckpointError
from .describing import metadata
from .exporting import refuse, timm_arguments, unusual_blocks
from .hugging_face import write_hugging_face
from .layouts import LW_DETR_HEADS
from .low_rank import merge_low_rank
from .reading import StateDict, write_state_dict
from .renaming import encoder_of, to_mmcae
from .spec import EncoderSpec, ViewSpec
from .tables import resize_position_table
from .timm_names import VIT, to_dinov2, to_dinov3

LW_DETR = {192: 'vit_tiny', 384: 'vit_small', 768: 'vit_base'}
PANDERM = {(768, 12, 12): 'PanDerm_Base', (1024, 24, 16): 'PanDerm_Large'}
OF_AUTHORS = (14, 14)  # the grid of patches for which LW-DETR and PanDerm keep positions


def export_encoder(encoder: nn.Module, out: str | Path, to: str, overwrite: bool = False) -> list[str]:
    """Write an encoder for another tool.

    Args:
        encoder: A CAEViT or TimmEncoder, such as :func:`mmcae.apis.load_encoder` gives.
        out: The file or folder to write. It is there as a whole or not at all.
        to: One of `FORMATS`.
        overwrite: Replace what is there.

    Returns:
        How the tool reads it, in lines.

    Raises:
        CheckpointError: The format cannot express the encoder, the message says which part; `out` exists, or its name has another ending
            than the format's.
        DependencyError: The format is ONNX's, and its library is missing.
    """
    out = Path(out)
    write, endings = check_output(out, to, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    training = encoder.training
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        made = Path(folder) / out.name
        if not endings:
            made.mkdir()
        try:
            report = write(encoder.eval(), made)
        finally:
            encoder.train(training)
        if out.is_dir():
            shutil.rmtree(out)
        made.replace(out)
    return [line.replace('{out}', str(out)) for line in report]


def check_output(out: Path, to: str, overwrite: bool) -> tuple[Callable, tuple[str, ...]]:
    """What writes a format, and the endings of its file, if `out` can be written.

    Raises:
        CheckpointError: It cannot, see :func:`export_encoder`.
    """
    if to not in FORMATS:
        raise CheckpointError(f'There is no format {to!r}; there are {", ".join(FORMATS)}')
    write, endings = FORMATS[to]
    if endings and out.suffix not in endings:
        raise CheckpointError(f'{out}: {to} is written to a file whose name ends in {" or ".join(endings)}')
    if out.exists() and not overwrite:
        raise CheckpointError(f'{out} exists: give another name, or --overwrite to replace it')
    if out.is_file() and not endings:
        raise CheckpointError(f'{out} is a file, and {to} is written to a folder: give another name')
    if out.is_dir() and not endings and any(path.name not in OURS for path in out.iterdir()):
        raise CheckpointError(f'{out} is a folder with other files in it, which would be lost: give another name')
    if out.is_dir() and endings:
        raise CheckpointError(f'{out} is a folder, and {to} is written to a file: give another name')
    if to == 'onnx':  # torch asks for it when everything else is done
        import_extra('onnx', f'{out}')
    return write, endings


def timm_names(encoder: nn.Module) -> StateDict:
    """The tensors under timm's names: those of its BEiT, or of the model that a TimmEncoder has."""
    return {key.removeprefix(VIT): value.detach().cpu() for key, value in merge_low_rank(encoder.state_dict()).items()}


def cae_names(encoder: nn.Module, tool: str) -> StateDict:
    """The tensors under the names of CAE's encoder. A plain ViT becomes one with a layer scale of 1.

    Raises:
        CheckpointError: The encoder has a part that CAE's has not.
    """
    spec, state = encoder.spec, timm_names(encoder)
    if spec.type == 'TimmEncoder':
        vit = encoder.vit
        refuse(unusual_blocks(encoder), tool)
        found = {
            'rotary positions': getattr(vit, 'rope', None) is not None,
            f'{spec.num_prefix_tokens - 1} registers': spec.num_prefix_tokens > 1,
            'no cls token': not encoder.has_cls,
            'a norm in front of its blocks': 'norm_pre.weight' in state,
            'an MLP other than linear, GELU, linear': type(encoder.blocks[0].mlp).__name__ != 'Mlp'
            or type(encoder.blocks[0].mlp.act).__name__ != 'GELU',
            'norms of queries and keys': 'blocks.0.attn.q_norm.weight' in state,
            'no table of positions': vit.pos_embed is None,
            'no final norm of its tokens': not spec.final_norm,
        }
        refuse(found, tool)
        if vit.no_embed_class:
            table = state['pos_embed']
            state['pos_embed'] = torch.cat((table.new_zeros(1, 1, table.shape[2]), table), dim=1)
        if 'blocks.0.attn.qkv.bias' not in state:
            state |= {f'blocks.{n}.attn.qkv.bias': torch.zeros(3 * spec.embed_dims) for n in range(spec.num_layers)}
        state = encoder_of(to_mmcae(state, 'encoder'))
    refuse({'relative position biases': spec.use_rel_pos_bias, 'windows': spec.window_size, 'no final norm': not spec.final_norm}, tool)
    for block in range(spec.num_layers):
        for name in (f'blocks.{block}.gamma_1', f'blocks.{block}.gamma_2'):
            state.setdefault(name, torch.ones(spec.embed_dims))
    return {key: value.clone() for key, value in state.items()}


# ---------------------------------------------------------------- one function for each format


def write_timm(encoder: nn.Module, out: Path) -> list[str]:
    """A folder as timm's hub has it, for `timm.create_model('local-dir:OUT')`."""
    spec, view = encoder.spec, encoder.spec.view or ViewSpec(size=encoder.spec.img_size)
    if spec.type == 'CAEViT':
        arguments = timm_arguments(spec)
    else:
        arguments = dict(spec.arguments)
        arguments['global_pool'] = encoder.vit.global_pool if encoder.vit.global_pool not in ('map', 'prr') else ''
    name = arguments.pop('model_name')
    arguments.pop('num_classes', None)
    odd = [key for key, value in arguments.items() if isinstance(value, str) and key in ('mlp_layer', 'block_fn', 'attn_layer')]
    odd += [key for key, value in arguments.items() if isinstance(value, dict)]
    if odd:
        refuse({f'{key}={arguments[key]!r}, which a config.json of timm cannot hold': True for key in odd}, 'timm')
    cfg = dict(
        tag=None,
        custom_load=False,
        input_size=[spec.in_channels, *spec.img_size],
        fixed_input_size=True,
        interpolation=view.interpolation,
        crop_pct=view.crop_pct,
        mean=[value / 255 for value in view.mean],
        std=[value / 255 for value in view.std],
        num_classes=0,
        pool_size=None,
        first_conv='patch_embed.proj',
        classifier='head',
    )
    content = dict(
        architecture=name,
        num_classes=0,
        num_features=spec.embed_dims,
        global_pool=arguments['global_pool'],
        model_args=arguments,
        pretrained_cfg=cfg,
    )
    write_state_dict(out / 'model.safetensors', timm_names(encoder))
    write_json(out / 'config.json', content)
    return ["timm.create_model('local-dir:{out}', pretrained=True)"]


def write_hf(encoder: nn.Module, out: Path) -> list[str]:
    """A folder as Hugging Face's hub has it."""
    return write_hugging_face(out, encoder, timm_names(encoder))


def write_onnx(encoder: nn.Module, out: Path) -> list[str]:
    """`images` (B, C, H, W), normalised -> `tokens` (B, prefix + N, C), for any batch, height and width that the patches tile."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            return self.encoder.encode(images)

    spec = encoder.spec
    axes = dict(images={0: 'batch', 2: 'height', 3: 'width'}, tokens={0: 'batch', 1: 'tokens'})
    example = torch.zeros(2, spec.in_channels, *spec.img_size, device=next(encoder.parameters()).device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a tracer's warnings: what it says of is computed by tensors
        torch.onnx.export(
            Tokens(),
            (example,),
            out,
            dynamo=False,
            opset_version=17,
            input_names=['images'],
            output_names=['tokens'],
            dynamic_axes=axes,
        )
    return ["onnxruntime.InferenceSession('{out}').run(['tokens'], {'images': images})"]


def write_lw_detr(encoder: nn.Module, out: Path) -> list[str]:
    """A file for `--pretrained_encoder` of LW-DETR (arXiv 2406.03459), whose ViT has CAE's names and twelve heads."""
    spec = encoder.spec
    name = LW_DETR.get(spec.embed_dims)
    other = {
        f'tokens {spec.embed_dims} wide, not 192, 384 or 768': name is None,
        f'{spec.num_heads} heads, not {LW_DETR_HEADS}': spec.num_heads != LW_DETR_HEADS,
    }
    state, spec = for_authors(encoder, 'LW-DETR', other)
    write_state_dict(out, {f'encoder.{key}': value for key, value in state.items()}, metadata(spec), 'model')
    return [f'LW-DETR: --encoder {name} --vit_encoder_num_layers {spec.num_layers} --pretrained_encoder {{out}}']


def write_panderm(encoder: nn.Module, out: Path) -> list[str]:
    """A file for `--pretrained_checkpoint` of PanDerm's programs: CAE's names in a plain state dict."""
    spec = encoder.spec
    name = PANDERM.get((spec.embed_dims, spec.num_layers, spec.num_heads))
    sizes = f'{spec.num_layers} blocks, {spec.embed_dims} wide, with {spec.num_heads} heads, not those of a ViT-B or ViT-L'
    write_state_dict(out, for_authors(encoder, 'PanDerm', {sizes: name is None})[0])
    return [f'PanDerm: --model {name}_LP --pretrained_checkpoint {{out}}']


def for_authors(encoder: nn.Module, tool: str, other: dict[str, bool]) -> tuple[StateDict, EncoderSpec]:
    """An encoder under CAE's names with positions for 14x14 patches, and its description.

    Args:
        encoder: A CAEViT or TimmEncoder.
        tool: LW-DETR or PanDerm, whose ViTs are CAE's.
        other: What else the tool cannot express, see :func:`.exporting.refuse`.

    Raises:
        CheckpointError: With everything that the tool's ViT has otherwise.
    """
    spec, eps = encoder.spec, getattr(getattr(encoder.blocks[0], 'norm1', None), 'eps', None)
    other |= {
        f'MLPs {spec.feedforward_channels} wide, not four times the tokens': spec.feedforward_channels != 4 * spec.embed_dims,
        f'patches of {spec.patch_size}, not 16x16': spec.patch_size != (16, 16),
        f'{spec.in_channels} channels, not 3': spec.in_channels != 3,
        f'an eps of {eps} in its norms, not 1e-6': eps not in (None, 1e-6),
    }
    refuse(other, tool)
    state = with_positions_of(cae_names(encoder, tool), spec, OF_AUTHORS)
    pixels = tuple(16 * cells for cells in OF_AUTHORS)
    return state, spec.replaced(type='CAEViT', arguments={}, layer_scale=True, img_size=pixels)


def write_meta(encoder: nn.Module, out: Path) -> list[str]:
    """A file under the names of Meta's DINOv2 or DINOv3, whichever the encoder is."""
    name, state = getattr(encoder, 'model_name', ''), timm_names(encoder)
    if 'dinov3' in name:
        state = to_dinov3(state) | {'rope_embed.periods': encoder.vit.rope.periods.detach().cpu().clone()}
    elif 'dinov2' in name or (name and 'blocks.0.ls1.gamma' in state and encoder.has_cls):
        found = {
            'a position table without cls': encoder.vit.no_embed_class and encoder.num_prefix_tokens == 1,
            'a norm in front': 'norm_pre.weight' in state,
            'norms of queries and keys': 'blocks.0.attn.q_norm.weight' in state,
            'no final norm of its tokens': not encoder.spec.final_norm,
        }
        refuse(unusual_blocks(encoder) | found, 'DINOv2')
        state = to_dinov2(state)
    else:
        raise CheckpointError(
            f"Meta's layouts are those of DINOv2 and DINOv3, and this encoder is a {name or 'CAEViT'}: export it to timm or hf"
        )
    write_state_dict(out, state)
    return ["model.load_state_dict(torch.load('{out}', weights_only=True)), with the model of Meta's repository"]


def with_positions_of(state: StateDict, spec: EncoderSpec, grid: tuple[int, int]) -> StateDict:
    """The table of positions for another grid."""
    if spec.grid != grid:
        table = state['pos_embed']
        state['pos_embed'] = torch.cat((table[:, :1], resize_position_table(table[:, 1:].float(), spec.grid, grid)), dim=1)
    return state


def write_json(path: Path, content: dict):
    """JSON for people."""
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


# Name -> (what writes it, the endings of its file; none for a folder).
FORMATS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'timm': (write_timm, ()),
    'hf': (write_hf, ()),
    'onnx': (write_onnx, ('.onnx',)),
    'lw-detr': (write_lw_detr, ('.pth', '.pt')),
    'panderm': (write_panderm, ('.pth', '.pt')),
    'meta': (write_meta, ('.pth', '.pt', '.safetensors')),
}
OURS = ('config.json', 'model.safetensors', 'preprocessor_config.json', 'README.md')  # what an export leaves in a folder
