"""Encoders in the formats of other tools, read by the tools themselves: the same tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from reference import lw_detr
from safetensors.torch import load_file
from timm.models.eva import checkpoint_filter_fn as read_dinov3
from timm.models.vision_transformer import checkpoint_filter_fn as read_dinov2

from mmcae.apis import load_encoder
from mmcae.checkpoints import load_encoder_weights, metadata, write_state_dict
from mmcae.checkpoints.formats import FORMATS, check_output, export_encoder
from mmcae.commands.export import TARGETS
from mmcae.models import CAEViT, TimmEncoder
from mmcae.utils.errors import CheckpointError, DependencyError

FOLDERS = Path(__file__).parents[1] / 'reference/huggingface'
SMALL = dict(depth=2, embed_dim=32, num_heads=2)
ENCODERS = {
    'cae': lambda: CAEViT(dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64),
    'cae with biases': lambda: CAEViT(dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64, use_rel_pos_bias=True),
    'vit': lambda: TimmEncoder('vit_small_patch16_224', **SMALL, img_size=64),
    'deit3': lambda: TimmEncoder('deit3_small_patch16_224', **SMALL, img_size=64),
    'dinov2': lambda: TimmEncoder('vit_small_patch14_dinov2', **SMALL, img_size=56),
    'dinov2 with registers': lambda: TimmEncoder('vit_small_patch14_reg4_dinov2', **SMALL, img_size=56),
    'swiglu': lambda: TimmEncoder('vit_giant_patch14_dinov2', depth=2, embed_dim=48, num_heads=2, img_size=56, mlp_ratio=256 / 48),
    'dinov3': lambda: TimmEncoder('vit_small_patch16_dinov3', **SMALL, img_size=64),
    'dinov3 gated': lambda: TimmEncoder('vit_small_plus_patch16_dinov3_qkvb', **SMALL, img_size=64),
    'eva02': lambda: TimmEncoder('eva02_small_patch14_224', **SMALL, img_size=56, global_pool='token'),
    'clip': lambda: TimmEncoder('vit_base_patch16_clip_quickgelu_224', **SMALL, img_size=64),
    'clip with gelu': lambda: TimmEncoder('vit_base_patch32_clip_224', **SMALL, img_size=64, qkv_bias=False),
    'dinov3 without registers': lambda: TimmEncoder('vit_small_patch16_dinov3_qkvb', **SMALL, img_size=64, num_reg_tokens=0),
    'deit': lambda: TimmEncoder('deit_small_distilled_patch16_224', **SMALL, img_size=64),
    'no square': lambda: TimmEncoder('vit_small_patch16_224', **SMALL, img_size=(64, 96)),
    'few biases': lambda: TimmEncoder('vit_small_patch14_dinov2', **SMALL, img_size=56, qkv_bias=False, proj_bias=False),
    'siglip': lambda: TimmEncoder('vit_base_patch16_siglip_224', **SMALL, img_size=64),
    'norms behind': lambda: TimmEncoder('eva02_enormous_patch14_clip_224', **SMALL, img_size=56),
    'parallel': lambda: TimmEncoder('vit_small_patch16_18x2_224', depth=2, embed_dim=192, num_heads=12, img_size=64),
}
NOT_IN_TRANSFORMERS = {
    'eva02': 'a table of positions beside rotary ones',
    'clip with layer scale': 'layer scale and 5 tokens in front',
    'clip for no square': 'positions for images that are no square',
    'norms behind': "timm's EvaBlockPostNorms",
    'parallel': "timm's ParallelThingsBlock",
    'dinov2 for no square': 'positions for images that are no square',
}
REFUSED = {  # by some
    'cae without norm': lambda: CAEViT(dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64, final_norm=False),
    'another eps': lambda: CAEViT(dict(embed_dims=768, num_layers=12, num_heads=12), norm_eps=1e-12),
    'dinov2 for no square': lambda: TimmEncoder('vit_small_patch14_dinov2', **SMALL, img_size=(56, 84)),
    'clip with layer scale': lambda: TimmEncoder('vit_base_patch16_clip_224', **SMALL, img_size=64, init_values=0.1, reg_tokens=4),
    'clip for no square': lambda: TimmEncoder('vit_base_patch16_clip_224', **SMALL, img_size=(64, 96)),
    'no norm': lambda: TimmEncoder('vit_base_patch16_radio_v3', **SMALL, img_size=64),
}

IN_TRANSFORMERS = [*(name for name in ENCODERS if name not in NOT_IN_TRANSFORMERS), 'cae without norm']


@torch.no_grad()
def shaken(encoder):
    """With random tensors everywhere, in eval mode."""
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def make(name):
    return shaken((ENCODERS | REFUSED)[name]())


def close(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_command_knows_all_formats():
    assert list(TARGETS) == list(FORMATS)


# ---------------------------------------------------------------- timm


@pytest.mark.parametrize('name', ENCODERS)
@torch.no_grad()
def test_timm(name, tmp_path):
    encoder = make(name)
    assert export_encoder(encoder, tmp_path / 'out', 'timm') == [f"timm.create_model('local-dir:{tmp_path}/out', pretrained=True)"]
    model = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    images = torch.randn(2, 3, *encoder.spec.img_size)
    close(model.forward_features(images), encoder.encode(images))
    assert model.pretrained_cfg['mean'] == pytest.approx([value / 255 for value in (encoder.spec.view or load_encoder_view()).mean])
    again = load_encoder(tmp_path / 'out')
    close(again.encode(images), encoder.encode(images))


def load_encoder_view():
    from mmcae.checkpoints import ViewSpec

    return ViewSpec()


def test_what_timm_cannot_express(tmp_path):
    encoder = TimmEncoder('vit_small_patch16_224', **SMALL, img_size=64, norm_layer=dict(type='LayerNorm', eps=1e-12))
    with pytest.raises(CheckpointError, match='timm cannot express this encoder: it has norm_layer=.*1e-12.*, which a config.json of timm'):
        export_encoder(encoder, tmp_path / 'out', 'timm')
    windows = CAEViT(dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64, window_size=2)
    with pytest.raises(CheckpointError, match='no windows'):
        export_encoder(windows, tmp_path / 'out', 'timm')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- Hugging Face


BESIDE = ('text_model.', 'text_projection.', 'visual_projection.', 'logit_')  # the image tower of a whole CLIP


@pytest.mark.parametrize('name', [folder.name for folder in sorted(FOLDERS.glob('*/'))])
def test_back_into_hugging_faces_layout(name, tmp_path):
    """What came from transformers goes back with the same names and values, and a config that says the same of the model."""
    export_encoder(load_encoder(FOLDERS / name), tmp_path / 'out', 'hf')
    theirs, ours = load_file(FOLDERS / name / 'model.safetensors'), load_file(tmp_path / 'out/model.safetensors')
    if name.startswith(('clip', 'siglip')):
        ours = {key.removeprefix('vision_model.'): value for key, value in ours.items()}
        theirs = {key.removeprefix('vision_model.'): value for key, value in theirs.items() if not key.startswith(BESIDE)}
        theirs = {key: value for key, value in theirs.items() if not key.startswith('head.')}
    added = {'embeddings.position_embeddings'} if name == 'beit' else set()
    assert set(ours) - added == set(theirs)
    for key, value in theirs.items():
        if 'mask_token' in key or key.startswith('pooler.'):
            assert ours[key].shape == value.shape
        elif name == 'dinov2-registers' and key in ('embeddings.cls_token', 'embeddings.position_embeddings'):
            continue  # the position of cls is part of the cls token now
        else:
            assert torch.equal(ours[key], value), key
    config, wanted = (json.loads((folder / 'config.json').read_text()) for folder in (tmp_path / 'out', FOLDERS / name))
    if 'vision_config' in wanted:
        wanted = wanted['vision_config'] | dict(architectures=config['architectures'])
    free = {
        'vision_use_head',
        'pos_embed_rescale',
        'layerscale_value',
        'layer_scale_init_value',
        'use_absolute_position_embeddings',
        'dtype',
    }
    assert {key: value for key, value in config.items() if key not in free} == {key: wanted[key] for key in config if key not in free}
    expected = load_file(FOLDERS / name / 'expected.safetensors')
    close(load_encoder(tmp_path / 'out').encode(expected['image']), expected['tokens'])


@pytest.mark.parametrize('name', IN_TRANSFORMERS)
@torch.no_grad()
def test_hugging_faces_layout_is_read_again(name, tmp_path):
    encoder = make(name)
    export_encoder(encoder, tmp_path / 'out', 'hf')
    images = torch.randn(1, 3, *encoder.spec.img_size)
    close(load_encoder(tmp_path / 'out').encode(images), encoder.encode(images))


CONSUMER = """
import sys, torch
from pathlib import Path
from transformers import AutoImageProcessor, AutoModel
for folder in sorted(Path(sys.argv[1]).glob('*/')):
    expected = torch.load(f'{folder}.pt')
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    with torch.no_grad():
        tokens = model.eval()(expected['images']).last_hidden_state
        if model.config.model_type == 'clip_vision_model':
            tokens = getattr(model, 'vision_model', model).post_layernorm(tokens)
        torch.testing.assert_close(tokens, expected['tokens'], rtol=1e-5, atol=1e-5)
    height, width = expected['images'].shape[-2:]
    processor, white = AutoImageProcessor.from_pretrained(folder), torch.full((3, 90, 90), 255, dtype=torch.uint8)
    pixels = processor(white, return_tensors='pt')['pixel_values']
    assert pixels.shape[-2:] == (height, width)
    torch.testing.assert_close(pixels[0, :, 3, 3], (255 - expected['mean']) / expected['std'], rtol=1e-4, atol=1e-4)
    print('read', folder.name)
"""


@torch.no_grad()
def test_transformers_reads_it(tmp_path):
    """In a process of its own, as its users have it. MMCAE_TRANSFORMERS is a folder with transformers, where the environment has none."""
    environment = dict(os.environ, PYTHONPATH=os.environ.get('MMCAE_TRANSFORMERS', ''), HF_HUB_OFFLINE='1')
    if subprocess.run([sys.executable, '-c', 'import transformers'], env=environment, capture_output=True).returncode:
        pytest.skip('transformers is not installed: pip install --target FOLDER transformers, and MMCAE_TRANSFORMERS=FOLDER')
    for name in IN_TRANSFORMERS:
        encoder = make(name)
        export_encoder(encoder, tmp_path / name, 'hf')
        images = torch.randn(2, 3, *encoder.spec.img_size)
        view = encoder.spec.view or load_encoder_view()
        expected = dict(images=images, tokens=encoder.encode(images), mean=torch.tensor(view.mean), std=torch.tensor(view.std))
        torch.save(expected, tmp_path / f'{name}.pt')
    done = subprocess.run([sys.executable, '-c', CONSUMER, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('read') == len(IN_TRANSFORMERS)


@pytest.mark.parametrize(('name', 'part'), NOT_IN_TRANSFORMERS.items())
def test_what_hugging_face_cannot_express(name, part, tmp_path):
    with pytest.raises(CheckpointError, match=f'cannot express this encoder: it has .*{part}'):
        export_encoder(make(name), tmp_path / 'out', 'hf')


def test_a_model_card_tells_what_it_is(tmp_path):
    encoder = make('dinov2')
    export_encoder(encoder, tmp_path / 'out', 'hf')
    card = (tmp_path / 'out/README.md').read_text()
    assert 'AutoModel.from_pretrained' in card
    assert json.loads(card.split('```json\n')[1].split('```')[0]) == json.loads(json.dumps(encoder.spec.to_dict()))


# ---------------------------------------------------------------- ONNX


@pytest.mark.parametrize('name', ['cae', 'vit', 'dinov2 with registers', 'swiglu', 'dinov3 gated', 'clip', 'siglip'])
@torch.no_grad()
def test_onnx(name, tmp_path):
    """For any batch and image size, by onnxruntime."""
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed: pip install -r requirements/tests.txt')
    encoder = make(name)
    export_encoder(encoder, tmp_path / 'x.onnx', 'onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'x.onnx', providers=['CPUExecutionProvider'])
    side = encoder.patch_size[0]
    for batch, rows, columns in ((1, 4, 4), (3, 4, 6), (2, 2, 5), (1, 9, 3)):
        images = torch.randn(batch, 3, rows * side, columns * side)
        (tokens,) = session.run(['tokens'], {'images': images.numpy()})
        close(torch.from_numpy(tokens), encoder.encode(images), 1e-4)


def test_onnx_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(DependencyError, match='x.onnx: onnx cannot be imported .*pip install onnx'):
        check_output(tmp_path / 'x.onnx', 'onnx', overwrite=False)


def test_rotary_positions_that_onnx_cannot_leave_open(tmp_path):
    with pytest.raises(ValueError, match='rotary positions of another kind than DINOv3'):
        export_encoder(make('eva02'), tmp_path / 'x.onnx', 'onnx')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- LW-DETR, PanDerm


@pytest.mark.parametrize('img_size', [224, 64])
@torch.no_grad()
def test_lw_detr(img_size, tmp_path):
    encoder = shaken(CAEViT(dict(embed_dims=192, num_layers=3, num_heads=12), img_size=img_size))
    (line,) = export_encoder(encoder, tmp_path / 'x.pth', 'lw-detr')
    assert '--encoder vit_tiny --vit_encoder_num_layers 3' in line
    state = lw_detr.read(torch.load(tmp_path / 'x.pth', weights_only=True))
    assert state['pos_embed'].shape == (1, 197, 192)
    images = torch.randn(1, 3, 256, 192)
    table = torch.nn.functional.interpolate(
        encoder.pos_embed[:, 1:].reshape(1, *encoder.grid, 192).permute(0, 3, 1, 2), size=(14, 14), mode='bicubic', align_corners=False
    )
    close(state['pos_embed'][:, 1:], table.flatten(2).transpose(1, 2))
    # LW-DETR has no cls token: the same tokens through our blocks without it.
    x = encoder.patch_embed(images)
    positions = torch.nn.functional.interpolate(table, size=(16, 12), mode='bicubic', align_corners=False)
    x = x + positions.flatten(2).transpose(1, 2)
    for block in encoder.blocks:
        x = block(x)
    close(lw_detr.maps(state, images, depth=3, heads=12), x.transpose(1, 2).unflatten(2, (16, 12)))
    assert lw_detr.maps(state, images, 3, 12, windowed=(0, 1)).shape == (1, 192, 16, 12)


@torch.no_grad()
def test_a_plain_vit_for_lw_detr(tmp_path):
    """Layer scale 1, and biases of queries and values: the same attention."""
    encoder = shaken(TimmEncoder('vit_small_patch16_224', embed_dim=192, depth=2, num_heads=12))
    export_encoder(encoder, tmp_path / 'x.pth', 'lw-detr')
    model = load_encoder(tmp_path / 'x.pth')
    images = torch.randn(1, 3, 224, 224)
    assert isinstance(model, CAEViT)
    close(model.encode(images), encoder.encode(images))


@pytest.mark.parametrize('width', [192, 384, 768])
@torch.no_grad()
def test_the_layout_of_lw_detr_tells_its_heads(width):
    """Whatever its number of blocks: what its authors gave away has no description."""
    encoder = shaken(CAEViT(dict(embed_dims=width, num_layers=2, num_heads=12)))
    model = load_encoder(dict(model={f'encoder.{key}': value for key, value in encoder.state_dict().items()}))
    images = torch.randn(1, 3, 224, 224)
    close(model.encode(images), encoder.encode(images))


@pytest.mark.parametrize('prefix', ['backbone.0.encoder.', 'encoder.'])
def test_detectors_of_lw_detr_have_no_cls_token(prefix):
    encoder = CAEViT(dict(embed_dims=192, num_layers=2, num_heads=12))
    state = {f'{prefix}{key}': value for key, value in encoder.state_dict().items() if not key.startswith(('cls_token', 'norm.'))}
    with pytest.raises(CheckpointError, match='without its cls token, as LW-DETR.* take the file that was given to LW-DETR'):
        load_encoder(dict(model=state | {'class_embed.weight': torch.zeros(91, 2)}))
    with pytest.raises(CheckpointError, match='without its cls token, as LW-DETR'):
        load_encoder_weights(encoder, dict(model=state))


@torch.no_grad()
def test_panderm(tmp_path, monkeypatch):
    from mmcae.checkpoints import formats

    monkeypatch.setitem(formats.PANDERM, (48, 2, 4), 'PanDerm_Small')
    encoder = shaken(CAEViT(dict(embed_dims=48, num_layers=2, num_heads=4)))
    (line,) = export_encoder(encoder, tmp_path / 'x.pth', 'panderm')
    assert line.startswith('PanDerm: --model PanDerm_Small_LP')
    state = torch.load(tmp_path / 'x.pth', weights_only=True)  # flat, as its programs take it
    assert set(state) == set(encoder.state_dict()) and state['pos_embed'].shape == (1, 197, 48)


@pytest.mark.parametrize(
    ('name', 'to', 'part'),
    [
        ('cae', 'lw-detr', 'tokens 32 wide, not 192, 384 or 768 and 2 heads, not 12'),
        ('dinov2', 'lw-detr', r'patches of \(14, 14\), not 16x16'),
        ('cae', 'panderm', 'not those of a ViT-B or ViT-L'),
        ('another eps', 'panderm', 'an eps of 1e-12 in its norms, not 1e-6'),
        ('norms behind', 'lw-detr', 'heads, not 12 and MLPs'),
        ('parallel', 'lw-detr', "timm's ParallelThingsBlocks in place of"),
        ('no norm', 'meta', 'DINOv2 cannot express this encoder: it has no final norm'),
        ('cae', 'meta', "Meta's layouts are those of DINOv2 and DINOv3, and this encoder is a CAEViT"),
        ('vit', 'meta', 'this encoder is a vit_small_patch16_224: export it to timm or hf'),
    ],
)
def test_what_they_cannot_express(name, to, part, tmp_path):
    with pytest.raises(CheckpointError, match=part):
        export_encoder(make(name), tmp_path / ('x' if to == 'hf' else 'x.pth'), to)


def test_parts_that_cae_has_not(tmp_path):
    registers = TimmEncoder('vit_small_patch14_reg4_dinov2', embed_dim=192, depth=2, num_heads=12, patch_size=16, img_size=224)
    with pytest.raises(CheckpointError, match='LW-DETR cannot express this encoder: it has 4 registers'):
        export_encoder(registers, tmp_path / 'x.pth', 'lw-detr')
    biases = CAEViT(dict(embed_dims=192, num_layers=2, num_heads=12), use_rel_pos_bias=True)
    with pytest.raises(CheckpointError, match='it has relative position biases'):
        export_encoder(biases, tmp_path / 'x.pth', 'lw-detr')


# ---------------------------------------------------------------- Meta


@pytest.mark.parametrize('name', ['dinov2', 'dinov2 with registers', 'swiglu', 'dinov3', 'dinov3 gated'])
@torch.no_grad()
def test_meta(name, tmp_path):
    """Read by timm's own reader of Meta's files, and by ours."""
    encoder = make(name)
    export_encoder(encoder, tmp_path / 'x.pth', 'meta')
    state = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert ('rope_embed.periods' in state) == ('v3' in name)
    assert 'mask_token' in state and ('register_tokens' in state) == ('registers' in name) and ('storage_tokens' in state) == ('v3' in name)
    arguments = {key: value for key, value in encoder.spec.arguments.items() if key != 'model_name'}
    model = timm.create_model(encoder.model_name, num_classes=0, **arguments).eval()
    read = read_dinov3 if 'dinov3' in name else read_dinov2
    model.load_state_dict(read(state, model))
    images = torch.randn(2, 3, *encoder.spec.img_size)
    close(model.forward_features(images), encoder.encode(images))
    close(load_encoder(tmp_path / 'x.pth', num_heads=2, img_size=encoder.spec.img_size).encode(images), encoder.encode(images))


@torch.no_grad()
def test_an_encoder_that_learns_by_lora(tmp_path):
    """Its updates are in what is written, also of one in memory."""
    torch.save(make('vit').state_dict(), tmp_path / 'vit.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))
    encoder = TimmEncoder('vit_small_patch16_224', **SMALL, img_size=64, lora=dict(rank=4), init_cfg=init)
    encoder.init_weights()
    shaken(encoder)
    export_encoder(encoder, tmp_path / 'out', 'timm')
    images = torch.randn(1, 3, 64, 64)
    close(timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval().forward_features(images), encoder.encode(images))


# ---------------------------------------------------------------- the output, and the command


def test_outputs_are_not_lost(tmp_path):
    encoder = make('vit')
    export_encoder(encoder, tmp_path / 'out', 'timm')
    with pytest.raises(CheckpointError, match='out exists: give another name, or --overwrite'):
        export_encoder(encoder, tmp_path / 'out', 'hf')
    export_encoder(encoder, tmp_path / 'out', 'hf', overwrite=True)
    assert not (tmp_path / 'out/config.json').read_text().count('architecture"')
    (tmp_path / 'out/thesis.txt').write_text('years')
    with pytest.raises(CheckpointError, match='a folder with other files in it'):
        export_encoder(encoder, tmp_path / 'out', 'timm', overwrite=True)
    with pytest.raises(CheckpointError, match='is written to a file whose name ends in .onnx'):
        export_encoder(encoder, tmp_path / 'out', 'onnx')
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='is a file, and timm is written to a folder'):
        export_encoder(encoder, tmp_path / 'file', 'timm', overwrite=True)
    with pytest.raises(CheckpointError, match='There is no format'):
        export_encoder(encoder, tmp_path / 'x', 'tflite')


def test_the_command(tmp_path, fork_tool):
    encoder = make('dinov3')
    write_state_dict(tmp_path / 'encoder.pth', encoder.state_dict(), metadata(encoder.spec))
    arguments = (tmp_path / 'encoder.pth', tmp_path / 'out', '--to', 'timm')
    code, output = fork_tool('mmcae/__main__.py', 'export', *arguments)
    assert code == 0 and f"timm.create_model('local-dir:{tmp_path}/out', pretrained=True)" in output, output
    code, output = fork_tool('mmcae/__main__.py', 'export', *arguments)
    assert code == 2 and output.splitlines()[-1].startswith('error: ') and '--overwrite' in output.splitlines()[-1]
    code, output = fork_tool('mmcae/__main__.py', 'export', *arguments, '--overwrite')
    assert code == 0, output
    code, output = fork_tool('mmcae/__main__.py', 'export', tmp_path / 'encoder.pth', tmp_path / 'x.pth', '--to', 'lw-detr')
    assert code == 2 and 'LW-DETR cannot express this encoder' in output.splitlines()[-1]
