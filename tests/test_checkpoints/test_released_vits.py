"""Released ViTs of timm, Meta and Hugging Face: recognised, loaded strictly, with their normalisation, and the same features as there."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mmcae.apis import load_encoder
from mmcae.checkpoints import load_encoder_weights, read_weights
from mmcae.checkpoints.spec import CLIP_MEAN, CLIP_STD
from mmcae.models import CAEViT, TimmEncoder
from mmcae.utils.errors import CheckpointError, ConfigError

FOLDERS = Path(__file__).parents[1] / 'reference/huggingface'
IMAGENET = (123.675, 116.28, 103.53)


def vit(name, depth=2, embed_dim=128, num_heads=2, seed=0, **settings):
    torch.manual_seed(seed)
    model = timm.create_model(name, depth=depth, embed_dim=embed_dim, num_heads=num_heads, num_classes=0, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def assert_same(encoder, model):
    size = model.patch_embed.img_size
    images = torch.randn(1, 3, *size)
    assert isinstance(encoder, TimmEncoder)
    torch.testing.assert_close(encoder.encode(images), model.forward_features(images), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- timm's names


@pytest.mark.parametrize(
    ('name', 'settings', 'wanted'),
    [
        ('vit_small_patch16_224', dict(img_size=64, num_heads=4), 'vit_small_patch16_224'),
        ('deit3_small_patch16_224', dict(img_size=64), 'vit_small_patch16_224'),
        ('vit_small_patch14_dinov2', dict(img_size=56), 'vit_small_patch14_dinov2'),
        ('vit_small_patch14_reg4_dinov2', dict(img_size=56), 'vit_small_patch14_reg4_dinov2'),
        ('vit_giant_patch14_dinov2', dict(img_size=56), 'vit_giant_patch14_dinov2'),
        ('vit_small_patch16_dinov3', dict(img_size=64), 'vit_small_patch16_dinov3'),
        ('vit_small_plus_patch16_dinov3_qkvb', dict(img_size=64), 'vit_small_plus_patch16_dinov3'),
        ('eva02_small_patch14_224', dict(img_size=56, global_pool='token'), 'eva02_small_patch14_224'),
        ('eva02_base_patch14_224', dict(img_size=56, global_pool='token'), 'eva02_base_patch14_224'),
        ('vit_large_patch16_224', dict(img_size=64, init_values=1e-5, dynamic_img_size=True), 'vit_small_patch16_224'),
    ],
)
def test_timms_files(tmp_path, name, settings, wanted):
    model = vit(name, **settings)
    torch.save(model.state_dict() | {'head.weight': torch.zeros(3, 128)}, tmp_path / 'model.pth')
    given = {}
    if read_weights(tmp_path / 'model.pth').timm_model().arguments['num_heads'] != settings.get('num_heads', 2):
        with pytest.raises(CheckpointError, match='does not tell the number of heads of its encoder'):
            load_encoder(tmp_path / 'model.pth')
        given = dict(num_heads=settings.get('num_heads', 2))
    if 'eva02' in name:
        given['global_pool'] = 'token'
    if 'dinov3' in name:
        given['img_size'] = 64
    encoder = load_encoder(tmp_path / 'model.pth', **given)
    assert encoder.model_name == wanted and encoder.spec.view.mean == (CLIP_MEAN if 'eva02' in name else IMAGENET)
    assert_same(encoder, model)


def test_names_without_arguments():
    """What has the sizes of a model of timm gets its name alone."""
    with torch.device('meta'):
        for name in ('vit_base_patch16_224', 'vit_large_patch14_reg4_dinov2', 'vit_giant_patch14_dinov2', 'vit_huge_plus_patch16_dinov3'):
            state = timm.create_model(name, num_classes=0).state_dict()
            found = read_weights({key: value for key, value in state.items()}).timm_model()
            assert found.arguments == dict(model_name=name)
        uni2 = dict(img_size=224, patch_size=14, depth=24, num_heads=24, init_values=1e-5, embed_dim=1536, mlp_ratio=2.66667 * 2)
        uni2 |= dict(no_embed_class=True, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, reg_tokens=8)
        state = timm.create_model('vit_giant_patch14_224', num_classes=0, **uni2).state_dict()
    found = read_weights(dict(state)).timm_model().arguments
    assert found == dict(model_name='vit_giant_patch14_reg4_dinov2', depth=24, reg_tokens=8, img_size=224)


def test_a_folder_of_timms_hub(tmp_path):
    """UNI: pytorch_model.bin beside timm's config.json."""
    model = vit('vit_large_patch16_224', img_size=64, init_values=1e-5, dynamic_img_size=True, num_heads=8)
    torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
    arguments = dict(img_size=64, init_values=1e-5, num_classes=0, dynamic_img_size=True, depth=2, embed_dim=128, num_heads=8)
    cfg = dict(mean=[0.7, 0.6, 0.5], std=[0.2, 0.2, 0.2], input_size=[3, 64, 64], crop_pct=1.0, interpolation='bilinear')
    config = dict(architecture='vit_large_patch16_224', global_pool='token', model_args=arguments, pretrained_cfg=cfg)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / 'pytorch_model.bin'):
        encoder = load_encoder(source)
        assert_same(encoder, model)
        assert encoder.spec.view.mean == (178.5, 153.0, 127.5) and encoder.spec.view.interpolation == 'bilinear'
        assert encoder.spec.num_heads == 8 and encoder.model_name == 'vit_large_patch16_224'


@pytest.mark.parametrize('nested', [True, False])
def test_packed_swiglus_that_a_config_of_timms_cannot_name(tmp_path, nested):
    """As for UNI 2 and Virchow, whose users name them in Python; early files have the view beside the architecture."""
    settings = dict(depth=2, embed_dim=64, num_heads=2, img_size=56, reg_tokens=4, mlp_ratio=5.375, init_values=1e-5)
    model = vit('vit_huge_patch14_224', mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, **settings)
    torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
    view = dict(input_size=[3, 56, 56], mean=[0.7, 0.6, 0.5], std=[0.2, 0.2, 0.2])
    config = dict(architecture='vit_huge_patch14_224', model_args=settings, **(dict(pretrained_cfg=view) if nested else view))
    (tmp_path / 'config.json').write_text(json.dumps(config))
    encoder = load_encoder(tmp_path)
    assert_same(encoder, model)
    assert encoder.spec.view.mean == (178.5, 153.0, 127.5)


# ---------------------------------------------------------------- Meta's names


def meta_dinov2(model, registers):
    """The same weights under DINOv2's names, as its own repository writes them."""
    state = dict(model.state_dict(), mask_token=torch.zeros(1, model.embed_dim))
    if registers:
        state['register_tokens'] = state.pop('reg_token')
        position = torch.randn(1, 1, model.embed_dim)
        state['cls_token'] = state['cls_token'] - position
        state['pos_embed'] = torch.cat((position, state['pos_embed']), dim=1)
    if hasattr(model.blocks[0].mlp, 'chunk_dim'):
        state = {key.replace('mlp.fc1.', 'mlp.w12.').replace('mlp.fc2.', 'mlp.w3.'): value for key, value in state.items()}
    return state


def meta_dinov3(model):
    """The same weights under DINOv3's names."""
    state = {'mask_token': torch.zeros(1, model.embed_dim), 'rope_embed.periods': torch.randn(16)}
    names = {'reg_token': 'storage_tokens', 'gamma_1': 'ls1.gamma', 'gamma_2': 'ls2.gamma', 'fc1_g': 'w1', 'fc1_x': 'w2'}
    gated = hasattr(model.blocks[0].mlp, 'fc1_g')
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key.replace('mlp.fc2', 'mlp.w3') if gated else key] = value
    for number in range(len(model.blocks)):
        block = f'blocks.{number}.attn.'
        biases = [state.pop(f'{block}{name}_bias', torch.zeros(model.embed_dim)) for name in 'qv']
        state[f'{block}qkv.bias'] = torch.cat((biases[0], torch.randn(model.embed_dim), biases[1]))
        state[f'{block}qkv.bias_mask'] = torch.tensor([1.0, 0, 1]).repeat_interleave(model.embed_dim)
    return state


@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2', 'vit_giant_patch14_dinov2'])
@pytest.mark.parametrize('chunked', [False, True])
def test_dinov2(tmp_path, name, chunked):
    model = vit(name, img_size=56)
    state = meta_dinov2(model, 'reg4' in name)
    if chunked:  # as its training writes them, inside the teacher
        state = {key.replace('blocks.0', 'blocks.0.0').replace('blocks.1', 'blocks.0.1'): value for key, value in state.items()}
        state = dict(teacher={f'backbone.{key}': value for key, value in state.items()})
    torch.save(state, tmp_path / 'dinov2_vits14_pretrain.pth')
    encoder = load_encoder(tmp_path / 'dinov2_vits14_pretrain.pth')
    assert (encoder.model_name, encoder.spec.origin.library, encoder.spec.view.mean) == (name, 'dinov2', IMAGENET)
    assert_same(encoder, model)


@pytest.mark.parametrize('name', ['vit_small_patch16_dinov3', 'vit_small_patch16_dinov3_qkvb', 'vit_small_plus_patch16_dinov3'])
def test_dinov3(tmp_path, name):
    model = vit(name, img_size=64)
    torch.save(meta_dinov3(model), tmp_path / 'dinov3_vits16_pretrain.pth')
    encoder = load_encoder(tmp_path / 'dinov3_vits16_pretrain.pth', img_size=64)
    assert (encoder.model_name, encoder.spec.origin.library) == (name.removesuffix('_qkvb'), 'dinov3')
    assert_same(encoder, model)


# ---------------------------------------------------------------- Hugging Face's folders


@pytest.mark.parametrize('name', ['vit', 'dinov2', 'dinov2-swiglu', 'dinov2-registers', 'dinov3', 'dinov3-gated', 'beit'])
@torch.no_grad()
def test_hugging_face(name):
    expected = load_file(FOLDERS / name / 'expected.safetensors')
    for source in (FOLDERS / name, FOLDERS / name / 'model.safetensors'):
        encoder = load_encoder(source)
        torch.testing.assert_close(encoder.encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
        assert isinstance(encoder, CAEViT if name == 'beit' else TimmEncoder)
        assert encoder.spec.origin.library == 'huggingface' and encoder.spec.num_heads == 2


@pytest.mark.parametrize(
    ('name', 'wanted', 'activation', 'mean', 'std'),
    [
        ('clip', 'vit_base_patch16_clip_quickgelu_224', 'QuickGELU', CLIP_MEAN, CLIP_STD),
        ('clip-vision', 'vit_base_patch16_clip_224', 'GELU', CLIP_MEAN, CLIP_STD),
        ('siglip', 'vit_base_patch16_siglip_224', 'GELUTanh', (127.5,) * 3, (127.5,) * 3),
        ('siglip-vision', 'vit_base_patch16_siglip_224', 'GELUTanh', (127.5,) * 3, (127.5,) * 3),
    ],
)
@torch.no_grad()
def test_image_towers_of_hugging_face(name, wanted, activation, mean, std):
    """CLIP's and SigLIP's, alone or in a file with the tower for texts, which the report names."""
    expected = load_file(FOLDERS / name / 'expected.safetensors')
    for source in (FOLDERS / name, FOLDERS / name / 'model.safetensors'):
        encoder = load_encoder(source)
        torch.testing.assert_close(encoder.encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
        spec = encoder.spec
        assert (encoder.model_name, type(encoder.blocks[0].mlp.act).__name__) == (wanted, activation)
        assert (spec.view.mean, spec.view.std) == (mean, std)
        assert (spec.origin.library, spec.num_heads, spec.img_size, encoder.has_cls) == ('huggingface', 2, (32, 32), 'sig' not in name)
    beside = dict(clip='logit_scale, text_model, text_projection, visual_projection', siglip='logit_bias, logit_scale, text_model').get(
        name
    )
    report = load_encoder_weights(encoder, FOLDERS / name)
    assert ('; beside the encoder are ' in report) == bool(beside) and (beside or '') in report, report


@torch.no_grad()
def test_early_files_of_clip(tmp_path):
    """Numbers of positions are stored, the tower alone has the prefix too, and config.json is silent where the class has a default."""
    expected, state = load_file(FOLDERS / 'clip/expected.safetensors'), load_file(FOLDERS / 'clip/model.safetensors')
    state = {key: value for key, value in state.items() if key.startswith('vision_model.')}
    save_file(state | {'vision_model.embeddings.position_ids': torch.arange(5)[None]}, tmp_path / 'model.safetensors')
    sizes = dict(num_attention_heads=2, image_size=32, patch_size=16)
    for config in (dict(sizes, model_type='clip_vision_model'), dict(vision_config_dict=sizes), dict(vision_config=sizes)):
        (tmp_path / 'config.json').write_text(json.dumps(config))
        encoder = load_encoder(tmp_path)
        assert encoder.model_name == 'vit_base_patch16_clip_quickgelu_224'
        torch.testing.assert_close(encoder.encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
    view = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3, size=64, crop_size=32, do_center_crop=True, resample=3)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(view))
    view = load_encoder(tmp_path).spec.view
    assert (view.mean, view.std, view.crop_pct, view.interpolation) == ((127.5,) * 3, (63.75,) * 3, 0.5, 'bicubic')
    whole = dict(image_processor=json.loads((tmp_path / 'preprocessor_config.json').read_text()), processor_class='CLIPProcessor')
    (tmp_path / 'preprocessor_config.json').unlink()
    (tmp_path / 'processor_config.json').write_text(json.dumps(whole))  # as transformers 5 writes it
    assert load_encoder(tmp_path).spec.view == view
    (tmp_path / 'config.json').write_text(json.dumps(dict(vision_config=sizes | dict(image_size=64))))
    with pytest.raises(CheckpointError, match='image_size=64, whose positions are 17, and the tensors have 5'):
        load_encoder(tmp_path)


@torch.no_grad()
def test_towers_without_their_config():
    """CLIP's activation is asked for; SigLIP has one alone."""
    for name in ('clip', 'siglip'):
        expected, state = load_file(FOLDERS / name / 'expected.safetensors'), load_file(FOLDERS / name / 'model.safetensors')
        given = dict(num_heads=2)
        if name == 'clip':
            with pytest.raises(
                CheckpointError, match="without the config.json .* one of OpenAI's by .*vit_base_patch16_clip_quickgelu_224"
            ):
                load_encoder(dict(state), **given)
            model = 'vit_base_patch16_clip_quickgelu_224'
            given |= dict(model_name=model, embed_dim=16, depth=2, mlp_ratio=2.0, img_size=32)
        torch.testing.assert_close(load_encoder(dict(state), **given).encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match='does not tell the number of heads'):
        load_encoder(dict(state))


def test_towers_of_another_activation():
    """The tensors have the same shapes."""
    settings = dict(num_heads=2, embed_dim=16, depth=2, mlp_ratio=2.0, img_size=32)
    with pytest.raises(
        CheckpointError, match="MLPs with quick_gelu, and the model has gelu. .*set model_name='vit_base_patch16_clip_quickgelu"
    ):
        load_encoder(FOLDERS / 'clip', model_name='vit_base_patch16_clip_224', **settings)
    with pytest.raises(CheckpointError, match="MLPs with gelu_tanh, and the model has gelu. .*set .*act_layer='gelu_tanh'"):
        load_encoder(FOLDERS / 'siglip', model_name='vit_base_patch16_siglip_224', **settings)
    load_encoder(FOLDERS / 'siglip', model_name='vit_base_patch16_siglip_224', act_layer='gelu_tanh', **settings)


def test_parts_that_no_tower_has():
    state = load_file(FOLDERS / 'siglip-vision/model.safetensors')
    with pytest.raises(
        CheckpointError, match="given state dict: The key 'embeddings.more' belongs to no part of Hugging Face's ViT, .*SigLIP"
    ):
        load_encoder({**state, 'embeddings.more': torch.zeros(2)}, num_heads=2)
    with pytest.raises(CheckpointError, match='given state dict: This is SigLIP 2 for images of any shape'):
        load_encoder({**state, 'embeddings.patch_embedding.weight': torch.zeros(16, 768)}, num_heads=2)
    del state['encoder.layers.1.mlp.fc1.bias']
    with pytest.raises(CheckpointError, match='1 missing: vit.blocks.1.mlp.fc1.bias'):
        load_encoder(state, num_heads=2)


def test_names_of_released_towers():
    """Those of timm where it has the same; SigLIP's largest has heads of 96 channels."""
    from mmcae.checkpoints.timm_models import timm_model_of

    clip, siglip = (dict(model_type=f'{kind}_vision_model') for kind in ('clip', 'siglip'))
    with torch.device('meta'):
        for name, config, changes in (
            ('vit_base_patch16_clip_quickgelu_224', dict(clip, hidden_act='quick_gelu'), {}),
            ('vit_base_patch32_clip_224', dict(clip, hidden_act='gelu'), {}),
            ('vit_large_patch14_clip_quickgelu_224', dict(clip, hidden_act='quick_gelu'), {}),
            ('vit_so400m_patch14_siglip_224', dict(siglip, hidden_act='gelu_pytorch_tanh'), dict(act_layer='gelu_tanh')),
            ('vit_base_patch16_siglip_224', dict(siglip, hidden_act='gelu_pytorch_tanh'), dict(act_layer='gelu_tanh')),
        ):
            state = TimmEncoder(name).vit.state_dict()
            assert timm_model_of(state, config, 'x', layout='huggingface').arguments == dict(model_name=name, **changes)
        state = TimmEncoder('vit_giantopt_patch16_siglip_256', depth=40).vit.state_dict()
        assert timm_model_of(state, siglip, 'x', layout='huggingface').arguments['num_heads'] == 16


# Their names in the state dicts of transformers 5, which are not those that it writes to files.
SINCE_VERSION_5 = (
    ('attention.attention.relative_position_bias.', 'relative_position_bias.'),
    ('attention.attention.query.', 'attention.q_proj.'),
    ('attention.attention.key.', 'attention.k_proj.'),
    ('attention.attention.value.', 'attention.v_proj.'),
    ('attention.output.dense.', 'attention.o_proj.'),
    ('intermediate.dense.', 'mlp.fc1.'),
    ('output.dense.', 'mlp.fc2.'),
    ('mlp.weights_out.', 'mlp.down_proj.'),
)


def in_version_5(state, name):
    renamed = {}
    for key, value in state.items():
        for theirs, ours in SINCE_VERSION_5:
            key = key.replace(theirs, ours)
        if 'mlp.weights_in.' in key:
            for part, half in zip(('gate_proj', 'up_proj'), value.chunk(2), strict=True):
                renamed[key.replace('weights_in', part)] = half
        elif key.startswith('layer.'):
            renamed[f'model.{key}'] = value
        else:
            renamed[key.replace('encoder.layer.', 'layers.') if name in ('vit', 'beit') else key] = value
    return renamed


@pytest.mark.parametrize('name', ['vit', 'dinov2', 'dinov2-swiglu', 'dinov2-registers', 'dinov3', 'dinov3-gated', 'beit'])
@pytest.mark.parametrize('prefix', ['', 'student.encoder.'])
@torch.no_grad()
def test_state_dicts_of_transformers_5(tmp_path, name, prefix):
    expected = load_file(FOLDERS / name / 'expected.safetensors')
    state = in_version_5(load_file(FOLDERS / name / 'model.safetensors'), name)
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / 'pytorch_model.bin')
    shutil.copy(FOLDERS / name / 'config.json', tmp_path)
    torch.testing.assert_close(load_encoder(tmp_path).encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['vit', 'dinov2-registers', 'dinov3', 'beit', 'clip', 'siglip'])
@torch.no_grad()
def test_half_precision_is_not_rounded_again(tmp_path, name):
    shutil.copy(FOLDERS / name / 'config.json', tmp_path)
    state = {key: value.bfloat16() for key, value in load_file(FOLDERS / name / 'model.safetensors').items()}
    save_file(state, tmp_path / 'model.safetensors')
    image = load_file(FOLDERS / name / 'expected.safetensors')['image']
    found = load_encoder(tmp_path).encode(image)
    save_file({key: value.float() for key, value in state.items()}, tmp_path / 'model.safetensors')
    assert torch.equal(found, load_encoder(tmp_path).encode(image))


@pytest.mark.parametrize('activation', ['gelu_new', 'quick_gelu', 'relu'])
@torch.no_grad()
def test_activations_of_hugging_face(tmp_path, activation):
    shutil.copytree(FOLDERS / 'dinov2', tmp_path / 'dinov2')
    path = tmp_path / 'dinov2/config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(hidden_act=activation)))
    values = torch.linspace(-3, 3, 7)
    formulas = dict(
        gelu_new=torch.nn.functional.gelu(values, approximate='tanh'), quick_gelu=values * (1.702 * values).sigmoid(), relu=values.relu()
    )
    torch.testing.assert_close(load_encoder(tmp_path / 'dinov2').blocks[0].mlp.act(values), formulas[activation])


def test_biases_that_dinov3_can_have_or_not():
    """Those that are not there are zero; those of the keys act through the rotary positions, and timm's model has none."""
    state, block = load_file(FOLDERS / 'dinov3/model.safetensors'), 'layer.0.attention.'
    encoder = load_encoder({key: value for key, value in state.items() if key != f'{block}v_proj.bias'}, num_heads=2, img_size=32)
    assert not encoder.blocks[0].attn.v_bias.any() and encoder.blocks[0].attn.q_bias.any()
    encoder = load_encoder({key: value for key, value in state.items() if 'o_proj.bias' not in key}, num_heads=2, img_size=32)
    assert not encoder.blocks[0].attn.proj.bias.any()
    key = torch.ones_like(state[f'{block}q_proj.bias'])
    with pytest.raises(CheckpointError, match="given state dict: The keys' projection of blocks.0 has a bias"):
        load_encoder({**state, f'{block}k_proj.bias': key}, num_heads=2, img_size=32)


@torch.no_grad()
def test_how_hugging_face_prepares_images(tmp_path):
    shutil.copytree(FOLDERS / 'vit', tmp_path / 'vit')
    config = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2, size=dict(shortest_edge=40), crop_size=dict(height=32, width=32))
    (tmp_path / 'vit/preprocessor_config.json').write_text(json.dumps(config | dict(do_center_crop=True)))
    view = load_encoder(tmp_path / 'vit').spec.view
    assert (view.mean, view.std, view.interpolation, view.crop_pct, view.size) == ((127.5,) * 3, (127.5,) * 3, 'bilinear', 0.8, (32, 32))
    for config, wanted in (
        (dict(image_mean=0.5, image_std=[0.25]), ((127.5,), (63.75,))),
        (dict(image_mean=[100] * 3, image_std=[50] * 3, do_rescale=False), ((100,) * 3, (50,) * 3)),
        (dict(image_mean=[1] * 3, image_std=[1] * 3, rescale_factor=1 / 127.5), ((127.5,) * 3, (127.5,) * 3)),
        (dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, do_normalize=False), ((0,), (255,))),
    ):
        (tmp_path / 'vit/preprocessor_config.json').write_text(json.dumps(config))
        view = load_encoder(tmp_path / 'vit').spec.view
        assert (view.mean, view.std) == wanted, config
    for config in (dict(image_mean='a', image_std='b'), dict(rescale_factor=0)):
        (tmp_path / 'vit/preprocessor_config.json').write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match='vit: .* which (are|is) no number'):
            load_encoder(tmp_path / 'vit')


@torch.no_grad()
def test_weights_in_pieces(tmp_path):
    state = load_file(FOLDERS / 'dinov2/model.safetensors')
    shutil.copy(FOLDERS / 'dinov2/config.json', tmp_path)
    names = list(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({key: state[key] for key in part}, tmp_path / f'model-{number}.safetensors')
    listed = {key: f'model-{number % 2}.safetensors' for number, key in enumerate(names)}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=listed)))
    expected = load_file(FOLDERS / 'dinov2/expected.safetensors')
    torch.testing.assert_close(load_encoder(tmp_path).encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
    for name in ('pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin'):  # as older releases have it, all in one file here
        torch.save(state, tmp_path / name)
    with pytest.raises(CheckpointError, match='is one of the 2 files of a model: name the folder'):
        load_encoder(tmp_path / 'pytorch_model-00001-of-00002.bin')
    (tmp_path / 'model.safetensors.index.json').rename(tmp_path / 'kept.json')
    with pytest.raises(CheckpointError, match='is a folder without model.safetensors, .*name the file of weights; in it are'):
        load_encoder(tmp_path)
    index = tmp_path / 'pytorch_model.bin.index.json'
    index.write_text(json.dumps(dict(weight_map=dict.fromkeys(state, 'pytorch_model-00001-of-00002.bin'))))
    for source in (tmp_path, index):
        torch.testing.assert_close(load_encoder(source).encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)
    index.unlink()
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={**listed, 'more': 'model-0.safetensors'})))
    with pytest.raises(CheckpointError, match='lacks 1 tensors that .* lists, the first is more'):
        load_encoder(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={'a': '../model-0.safetensors'})))
    with pytest.raises(CheckpointError, match='lists no files of weights'):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ('folder', 'changes', 'message'),
    [
        ('vit', dict(hidden_act='tanh'), "config.json has hidden_act='tanh'; known are"),
        ('dinov3-gated', dict(hidden_act='gelu'), 'use_gated_mlp with hidden_act'),
        ('vit', dict(num_attention_heads='2'), "config.json has num_attention_heads='2', which is no number"),
        ('vit', dict(image_size='224'), "image_size='224', which is no number"),
        ('beit', dict(layer_norm_eps='x'), "layer_norm_eps='x', which is no number"),
        ('dinov2', dict(hidden_size=99), 'hidden_size=99, and the tensors have 16: it is of another model'),
        ('dinov3', dict(num_hidden_layers=9), 'num_hidden_layers=9, and the tensors have 2'),
        ('vit', dict(patch_size=3), r'patch_size=3, and the tensors have \('),
        ('vit', dict(num_attention_heads=3), 'num_attention_heads=3, which does not divide the width 16'),
        ('vit', dict(num_channels=4), 'num_channels=4, and the tensors have 3'),
        ('beit', dict(intermediate_size=7), 'intermediate_size=7, and the tensors have'),
        ('vit', dict(image_size=96), 'image_size=96, whose positions are .*, and the tensors have'),
        ('dinov2', dict(use_swiglu_ffn=True), 'use_swiglu_ffn=True, and the tensors have False'),
        ('dinov2-registers', dict(num_register_tokens=1), 'num_register_tokens=1, and the tensors have'),
    ],
)
def test_configs_that_cannot_be_followed(tmp_path, folder, changes, message):
    shutil.copytree(FOLDERS / folder, tmp_path / folder)
    path = tmp_path / folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_encoder(tmp_path / folder)


# ---------------------------------------------------------------- strictness, and files of our own


@pytest.mark.parametrize('name', ['vit', 'beit', 'dinov2'])
def test_without_a_config(tmp_path, name):
    """The norms have what Hugging Face's models have by default."""
    shutil.copy(FOLDERS / name / 'model.safetensors', tmp_path)
    heads = json.loads((FOLDERS / name / 'config.json').read_text())['num_attention_heads']
    expected = load_file(FOLDERS / name / 'expected.safetensors')
    found = load_encoder(tmp_path, num_heads=heads).encode(expected['image'])
    torch.testing.assert_close(found, expected['tokens'], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named(tmp_path):
    state = vit('vit_small_patch14_dinov2', img_size=56).state_dict()
    state['blocks.1.attn.adapter.weight'] = torch.zeros(2)
    with pytest.raises(CheckpointError, match='1 unexpected: vit.blocks.1.attn.adapter.weight'):
        load_encoder(dict(state), num_heads=2)
    del state['blocks.1.attn.adapter.weight']
    with pytest.raises(CheckpointError, match='was made for 17 patches, which are no square'):
        load_encoder(dict(state, pos_embed=torch.randn(1, 18, 128)), num_heads=2)
    del state['blocks.1.norm1.weight']
    with pytest.raises(CheckpointError, match='1 missing: vit.blocks.1.norm1.weight'):
        load_encoder(dict(state), num_heads=2)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('vit_base_patch16_clip_quickgelu_224', "a norm in front of its blocks, as CLIP .* model_name='vit_base_patch16_clip_quick"),
        ('vit_small_patch16_rope_mixed_224', 'learned rotary positions'),
        ('aimv2_large_patch14_224', 'norms without biases'),
        ('vit_small_patch16_18x2_224', 'parallel layers'),
        ('vit_base_patch16_xp_224', 'a norm in front of its blocks'),
        ('vit_so400m_patch16_siglip_256', 'no cls token, .* model_name='),
        ('vit_base_patch16_rpn_224', 'no cls token'),
        ('vit_base_patch16_radio_v3', 'no final norm'),
        ('eva02_base_patch16_clip_224', 'norms inside its attentions'),
        ('vit_dwee_patch16_reg1_gap_256', 'differential attention'),
        ('vit_small_patch16_rope_224', 'a biased projection and no positions'),
        ('vit_small_patch16_rope_ape_224', 'gamma_1 and positions'),
        ('vit_medium_patch16_rope_reg1_gap_256', 'neither cls token nor positions'),
        ('eva_giant_patch14_clip_224', 'norms of its blocks stand in front of the branches'),
        ('eva02_enormous_patch14_clip_224', "or behind them, .* model_name='eva_giant_patch14_224'"),
    ],
)
def test_models_that_tensors_do_not_tell_apart_are_named_by_the_user(tmp_path, name, message):
    """Or by timm's config.json beside the file."""
    size = 4 * (14 if 'patch14' in name else 16)
    model, settings = vit(name, img_size=size), dict(depth=2, embed_dim=128, num_heads=2, img_size=size)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(dict(model.state_dict()))
    assert_same(load_encoder(dict(model.state_dict()), model_name=name, **settings), model)
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(dict(architecture=name, model_args=settings)))
    assert_same(load_encoder(tmp_path), model)


def test_heads_that_several_models_have_otherwise_are_asked_for():
    """Those of a released size are known: also where they are not 64 channels wide, as in Virchow and the largest DINOv3."""
    gated = dict(init_values=1e-5, mlp_ratio=5.3375, reg_tokens=4, mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU)
    with torch.device('meta'):
        for name, settings in (
            ('deit3_huge_patch14_224', {}),
            ('vit_huge_patch14_224', gated),
            ('vit_so400m_patch14_reg1_tipsv2', {}),
            ('vit_7b_patch16_dinov3', {}),
            ('vit_huge_plus_patch16_dinov3', {}),
            ('vit_base_patch16_plus_240', {}),
        ):
            model = timm.create_model(name, **settings)
            arguments = read_weights(dict(model.state_dict())).timm_model().arguments
            found = TimmEncoder(**arguments)
            assert found.spec.num_heads == model.blocks[0].attn.num_heads, name
            assert {key: value.shape for key, value in found.vit.state_dict().items()} == {
                key: value.shape for key, value in model.state_dict().items() if not key.startswith('head')
            }
    for name in ('vit_small_patch14_dinov2', 'vit_small_patch16_dinov3', 'eva02_base_patch14_224'):
        with pytest.raises(CheckpointError, match='does not tell the number of heads .* give num_heads='):
            load_encoder(dict(vit(name, num_heads=4, img_size=56).state_dict()))


@pytest.mark.parametrize(
    ('name', 'settings', 'pool'),
    [
        ('vit_small_patch16_224', dict(global_pool='avg'), 'avg'),
        ('vit_small_patch16_224', {}, 'token'),
        ('eva02_small_patch14_224', dict(global_pool='token'), 'token'),
        ('eva02_small_patch14_224', {}, 'avg'),
        ('eva_large_patch14_196', {}, 'avg'),
    ],
)
def test_tensors_tell_whether_the_tokens_are_normalised(name, settings, pool):
    model = vit(name, img_size=56 if '14' in name else 64, **settings)
    encoder = load_encoder(dict(model.state_dict()), num_heads=2)
    assert_same(encoder, model)
    assert encoder.vit.global_pool == pool


def test_what_is_no_plain_file_of_weights():
    state = dict(vit('vit_small_patch16_224', img_size=64).state_dict())
    with pytest.raises(CheckpointError, match='as torch.int8, as quantised models do'):
        load_encoder({**state, 'norm.weight': state['norm.weight'].to(torch.int8)}, num_heads=2)
    with pytest.raises(CheckpointError, match='no whole encoder: blocks.0.mlp.fc1.weight is missing'):
        load_encoder({key: value for key, value in state.items() if key != 'blocks.0.mlp.fc1.weight'}, num_heads=2)
    adapted = {key.replace('.qkv.', '.qkv.base_layer.'): value for key, value in state.items()}
    with pytest.raises(CheckpointError, match='low-rank updates of peft: merge them'):
        load_encoder({**adapted, 'blocks.0.attn.qkv.lora_A.default.weight': torch.zeros(4, 128)}, num_heads=2)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('vit_base_patch16_224_miil', {}),
        ('vit_small_patch16_224', dict(reg_tokens=4)),
        ('vit_giant_patch14_reg4_dinov2', dict(reg_tokens=9)),
    ],
)
def test_biases_and_positions_that_others_have_not(name, settings):
    """No biases of queries, keys and values; positions of registers; many registers."""
    model = vit(name, img_size=56 if '14' in name else 64, **settings)
    assert_same(load_encoder(dict(model.state_dict()), num_heads=2), model)


def test_backbones_start_from_released_files(tmp_path):
    """By init_cfg, with the norm where the model has it, for another image size."""
    model = vit('vit_small_patch16_224', img_size=64, global_pool='avg', seed=3)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    settings = dict(depth=2, embed_dim=128, num_heads=2, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth')))
    encoder = TimmEncoder('vit_small_patch16_224', img_size=96, **settings)
    encoder.init_weights()
    assert torch.equal(encoder.vit.norm.weight, model.fc_norm.weight)
    assert encoder.vit.pos_embed.shape == (1, 37, 128)
    CAEViT(
        dict(embed_dims=128, num_layers=2, num_heads=2), img_size=64, layer_scale_init_value=0, init_cfg=settings['init_cfg']
    ).init_weights()


@torch.no_grad()
def test_backbones_know_the_view_that_the_files_tell(tmp_path):
    """UNI's ViT has the name of timm's own, whose images were normalised otherwise: a backbone takes what lies beside the file."""
    settings = dict(depth=2, embed_dim=128, num_heads=2, img_size=64)
    torch.save(vit('vit_large_patch16_224', **settings).state_dict(), tmp_path / 'pytorch_model.bin')
    encoder = TimmEncoder('vit_large_patch16_224', **settings, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path)))
    assert encoder.spec.view.mean == (127.5,) * 3
    encoder.init_weights()
    assert encoder.spec.view.mean == IMAGENET == load_encoder(tmp_path, num_heads=2).spec.view.mean
    config = dict(architecture='vit_large_patch16_224', model_args=settings, pretrained_cfg=dict(mean=[0.7] * 3, std=[0.2] * 3))
    (tmp_path / 'config.json').write_text(json.dumps(config))
    encoder.init_weights()
    assert encoder.spec.view.mean == (178.5,) * 3 and encoder.spec.view.size == (64, 64)


def test_our_own_files_describe_themselves(tmp_path):
    from mmcae.checkpoints import metadata, write_state_dict

    encoder = TimmEncoder('vit_base_patch16_clip_quickgelu_224', depth=2, embed_dim=30, num_heads=3, img_size=64).eval()
    for path in (tmp_path / 'encoder.safetensors', tmp_path / 'encoder.pth'):
        write_state_dict(path, encoder.state_dict(), metadata(encoder.spec))
        again = load_encoder(path)
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(again.encode(images), encoder.encode(images))
        assert again.spec == encoder.spec


@torch.no_grad()
def test_parts_of_their_training_are_left_out(tmp_path):
    """MAE's decoder, a classifier of Hugging Face's, the projections of DINO."""
    model = vit('vit_small_patch16_224', img_size=64)
    decoder = {
        'mask_token': torch.zeros(1, 1, 8),
        'decoder_pos_embed': torch.zeros(1, 17, 8),
        'decoder_blocks.0.norm1.weight': torch.zeros(8),
    }
    encoder = load_encoder(dict(model=model.state_dict() | decoder), num_heads=2)
    assert encoder.spec.origin.library == 'timm'
    assert_same(encoder, model)
    state = {f'vit.{key}': value for key, value in load_file(FOLDERS / 'vit/model.safetensors').items() if not key.startswith('pooler')}
    save_file(state | {'classifier.weight': torch.zeros(3, 16)}, tmp_path / 'model.safetensors')
    shutil.copy(FOLDERS / 'vit/config.json', tmp_path)
    expected = load_file(FOLDERS / 'vit/expected.safetensors')
    torch.testing.assert_close(load_encoder(tmp_path).encode(expected['image']), expected['tokens'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        ('vit_giant_patch14_dinov2', 'gated MLPs'),
        ('vit_small_patch14_reg4_dinov2', 'registers'),
        ('vit_small_patch16_dinov3', 'rotary positions'),
    ],
)
def test_what_caevit_cannot_be(name, part):
    state = vit(name, img_size=56 if '14' in name else 64).state_dict()
    encoder = CAEViT(dict(embed_dims=128, num_layers=2, num_heads=2), img_size=64)
    from mmcae.checkpoints import load_encoder_weights as load_into

    with pytest.raises(CheckpointError, match=f'holds a ViT with .*{part}.*, which CAEViT has not: build it as mmcae.TimmEncoder'):
        load_into(encoder, dict(state))


def test_a_name_that_is_asked_for_on_the_command_line(tmp_path, fork_tool):
    """It is given once, and what is written names it for all commands."""
    name = 'vit_xsmall_patch16_clip_224'
    model = timm.create_model(name, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / 'clip.pth')
    export = ('export', tmp_path / 'clip.pth', tmp_path / 'named', '--to', 'timm')
    code, output = fork_tool('mmcae/__main__.py', *export)
    assert code == 2 and 'name it, as by --model-name vit_base_patch16_clip_quickgelu_224' in output.splitlines()[-1], output
    code, output = fork_tool('mmcae/__main__.py', *export, '--model-name', name)
    assert code == 0, output
    assert_same(load_encoder(tmp_path / 'named'), model)


def test_the_converter_keeps_timms_names_or_refuses(tmp_path, fork_tool):
    from mmcae.checkpoints import metadata, write_state_dict

    encoder = TimmEncoder('vit_small_patch14_reg4_dinov2', depth=2, embed_dim=32, num_heads=2, img_size=56).eval()
    write_state_dict(tmp_path / 'x.pth', {f'backbone.{key}': value for key, value in encoder.state_dict().items()}, metadata(encoder.spec))
    for source, target in (('x', 'y'), ('y', 'z')):
        code, output = fork_tool('mmcae/__main__.py', 'convert', tmp_path / f'{source}.pth', tmp_path / f'{target}.pth', '--to', 'encoder')
        assert code == 0, output
    images = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(load_encoder(tmp_path / 'z.pth').encode(images), encoder.encode(images))
    for layout in ('official', 'mmpretrain', 'timm'):
        code, output = fork_tool('mmcae/__main__.py', 'convert', tmp_path / 'x.pth', tmp_path / 'q.pth', '--to', layout)
        assert code == 2 and 'holds a ViT of timm' in output.splitlines()[-1] and 'mmcae export' in output.splitlines()[-1]
