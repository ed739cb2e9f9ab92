"""Frozen encoders as targets: those of timm, CLIP, mmpretrain and our own, from local files alone."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmpretrain.models import ResNet, SelfSupDataPreprocessor, VisionTransformer
from mmpretrain.structures import DataSample
from reference import golden
from safetensors.torch import load_file, save_file

from mmcae.models import CAE, CAEViT, Teacher, ViewPreprocessor
from mmcae.utils.errors import CheckpointError, ConfigError, DataError

FOLDERS = Path(__file__).parents[2] / 'reference/huggingface'
VIT = dict(patch_size=8, embed_dim=24, depth=3, num_heads=2)
SIZE = (32, 48)
OWN = dict(type='mmcae.CAEViT', arch=dict(embed_dims=20, num_layers=2, num_heads=2), img_size=64)


def normalised(vectors):
    mean, variance = vectors.mean(-1, keepdim=True), vectors.var(-1, unbiased=False, keepdim=True)
    return (vectors - mean) / (variance + 1e-5).sqrt()


TINY = dict(type='timm', model_name='vit_tiny_patch16_224', img_size=32, depth=2, embed_dim=48, num_heads=4)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- kinds of teachers


def test_timm_vit(images, tmp_path):
    """With a classifier in the file, as people have it, and a position table for another size."""
    source = timm.create_model('vit_tiny_patch16_224', img_size=64, num_classes=7, **VIT).eval()
    save_file(source.state_dict(), tmp_path / 'vit.safetensors')
    model = dict(type='timm', model_name='vit_tiny_patch16_224', img_size=SIZE, **VIT)
    source.set_input_size(img_size=SIZE)
    expected = source.forward_features(images)
    teacher = Teacher(model, tmp_path / 'vit.safetensors')
    assert (teacher.num_outputs, teacher.downsample, teacher.has_cls) == (24, (8, 8), True)
    close(teacher.tokens(images), expected)
    close(teacher.tokenize(images), expected[:, 1:])
    close(Teacher(model, tmp_path / 'vit.safetensors', loss='mse').tokens(images), normalised(expected))
    projected = Teacher(dict(model, num_classes=7), tmp_path / 'vit.safetensors', projected=True)
    close(projected.tokens(images), source.head(expected))
    assert projected.num_outputs == 7
    assert teacher.frozen and not teacher.train().training and not any(p.requires_grad for p in teacher.parameters())


def test_mean_of_the_last_layers(images, tmp_path):
    source = timm.create_model('vit_tiny_patch16_224', img_size=SIZE, num_classes=0, **VIT).eval()
    torch.save(source.state_dict(), tmp_path / 'vit.pth')
    teacher = Teacher(dict(type='timm', model_name='vit_tiny_patch16_224', img_size=SIZE, **VIT), tmp_path / 'vit.pth', layers=2)
    tokens = source._pos_embed(source.patch_embed(images))
    outputs = [tokens := block(tokens) for block in source.blocks]
    close(teacher.tokens(images), (source.norm(outputs[-1]) + source.norm(outputs[-2])) / 2)
    own = CAEViT(**{key: value for key, value in OWN.items() if key != 'type'}, out_type='raw', out_indices=(0, 1)).eval()
    torch.save(own.state_dict(), tmp_path / 'own.pth')
    square = torch.rand(2, 3, 64, 64)
    first, last = own(square)
    close(Teacher(OWN, tmp_path / 'own.pth', layers=2).tokens(square), (own.norm(first) + last) / 2)


@pytest.mark.parametrize(
    ('name', 'arguments', 'cls'),
    [
        ('vit_small_patch14_reg4_dinov2', dict(img_size=28), True),
        ('vit_small_patch16_dinov3', dict(img_size=32), True),
        ('vit_base_patch16_siglip_224', dict(img_size=32), False),
        ('vit_medium_patch16_rope_reg1_gap_256', dict(img_size=32), False),
        ('vit_pe_core_gigantic_patch14_448', dict(img_size=28), False),
    ],
)
def test_registers_are_no_patches(name, arguments, cls):
    """Four patches, whatever else the model computes with."""
    teacher = Teacher(dict(type='timm', model_name=name, depth=1, embed_dim=48, num_heads=4, **arguments))
    images = torch.rand(2, 3, *teacher.model.img_size)
    assert teacher.tokens(images).shape == (2, 4 + cls, 48) and teacher.has_cls == cls
    assert teacher.tokenize(images).shape == (2, 4, 48)


def test_timm_cnn(tmp_path):
    source = timm.create_model('resnet18', num_classes=0).eval()
    torch.save(source.state_dict(), tmp_path / 'resnet.pth')
    teacher = Teacher(dict(type='timm', model_name='resnet18'), tmp_path / 'resnet.pth')
    assert (teacher.num_outputs, teacher.downsample, teacher.has_cls) == (512, (32, 32), False)
    images = torch.rand(2, 3, 64, 96)
    close(teacher.tokenize(images), source.forward_features(images).flatten(2).transpose(1, 2))


def test_mmpretrain(images, tmp_path):
    config = dict(arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48), img_size=SIZE, patch_size=8)
    source = VisionTransformer(**config, out_type='featmap')
    source.eval()
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **{'head.fc.weight': torch.zeros(3, 24)})), tmp_path / 'vit.pth')
    teacher = Teacher(dict(type='VisionTransformer', out_type='featmap', **config), tmp_path / 'vit.pth')
    close(teacher.tokenize(images), source(images)[-1].flatten(2).transpose(1, 2))
    with pytest.raises(ConfigError, match="gives no feature map but a tensor .*set out_type='featmap'"):
        Teacher(dict(type='VisionTransformer', **config))


@pytest.mark.parametrize('described', [False, True])
def test_our_own_encoder_from_a_pretraining_checkpoint(tiny_cae, tmp_path, described):
    """By its sizes, or by what the checkpoint says of itself."""
    source = tiny_cae().eval()
    meta = dict(encoder=source.backbone.spec.to_dict())
    torch.save(dict(state_dict=source.state_dict(), meta=meta if described else {}), tmp_path / 'cae.pth')
    model = dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64)
    teacher = Teacher(None if described else model, tmp_path / 'cae.pth')
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        close(teacher.tokens(images), source.backbone.encode(images))


def test_clip_in_a_released_archive_is_read_not_run(tmp_path):
    """TorchScript, as OpenAI publishes it; equal to the same weights as a state dict."""
    tower = golden.load('clip')
    state = {name: value.half() for name, value in tower['state_dict'].items()}

    class Visual(torch.nn.Module):
        def forward(self, x):
            return x

    def put(module, path, value):
        name, _, rest = path.partition('.')
        if rest:
            if not hasattr(module, name):
                module.add_module(name, Visual())
            put(getattr(module, name), rest, value)
        else:
            module.register_parameter(name, torch.nn.Parameter(value))

    archive = Visual()
    for name, value in {**state, 'token_embedding.weight': torch.zeros(3, 4)}.items():
        put(archive, name, value)
    torch.jit.script(archive).save(str(tmp_path / 'ViT-tiny.pt'))
    torch.save(tower['state_dict'], tmp_path / 'clip.pth')
    model = dict(type='clip', num_heads=tower['config']['heads'], img_size=48)
    image = tower['image'].float()
    found, expected = (Teacher(model, tmp_path / file, projected=True).tokens(image) for file in ('ViT-tiny.pt', 'clip.pth'))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(expected, tower['tokens'], rtol=0, atol=1e-5)
    plain = Teacher(model, tmp_path / 'clip.pth')
    close(plain.tokens(image) @ tower['state_dict']['visual.proj'].float(), expected)
    assert plain.num_outputs == tower['config']['width']


def in_hugging_faces_names(state):
    """A tower of OpenAI's as transformers' CLIPVisionModelWithProjection has it."""
    names = {'class_embedding': 'embeddings.class_embedding', 'positional_embedding': 'embeddings.position_embedding.weight'}
    names |= {'conv1.': 'embeddings.patch_embedding.', 'ln_pre.': 'pre_layrnorm.', 'ln_post.': 'post_layernorm.'}
    names |= {'transformer.resblocks.': 'encoder.layers.', 'ln_': 'layer_norm', 'c_fc': 'fc1', 'c_proj': 'fc2', '.attn.': '.self_attn.'}
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix('visual.')
        for openai, theirs in names.items():
            key = key.replace(openai, theirs)
        if 'in_proj_' in key:
            for letter, part in zip('qkv', value.chunk(3), strict=True):
                renamed[f'vision_model.{key.replace("in_proj_", f"{letter}_proj.")}'] = part.clone()
        elif key == 'proj':
            renamed['visual_projection.weight'] = value.T.contiguous()
        else:
            renamed[f'vision_model.{key}'] = value
    return renamed


@pytest.mark.parametrize('layers', [1, 2])
def test_clip_in_hugging_faces_folder(tmp_path, layers):
    """Equal to the same weights as OpenAI has them, also where positions are resized; and to transformers."""
    tower = golden.load('clip')
    state, sizes = {key: value.float() for key, value in tower['state_dict'].items()}, tower['config']
    torch.save(state, tmp_path / 'clip.pth')
    save_file(in_hugging_faces_names(state), tmp_path / 'model.safetensors')
    config = dict(num_attention_heads=sizes['heads'], image_size=48, patch_size=16)
    (tmp_path / 'config.json').write_text(json.dumps(dict(model_type='clip', vision_config=config)))
    for size, projected in ((48, True), (48, False), (64, True)):
        settings, image = dict(projected=projected, layers=layers), torch.randn(2, 3, size, size)
        expected = Teacher(dict(type='clip', num_heads=sizes['heads'], img_size=size), tmp_path / 'clip.pth', **settings)
        for source in (tmp_path, tmp_path / 'model.safetensors'):
            teacher = Teacher(dict(type='clip', img_size=size), source, **settings)
            torch.testing.assert_close(teacher.tokens(image), expected.tokens(image), rtol=0, atol=1e-6)
            assert (teacher.mean, teacher.std, teacher.num_outputs) == (expected.mean, expected.std, expected.num_outputs)


def test_towers_that_transformers_has_written(tmp_path):
    """CLIP with its projection, one without and with another activation, epsilon and view, and SigLIP, an encoder that describes itself."""
    folder, reference = FOLDERS / 'clip', load_file(FOLDERS / 'clip/expected.safetensors')
    for projected, name in ((True, 'projected'), (False, 'tokens')):
        close(Teacher(dict(type='clip'), folder, projected=projected).tokens(reference['image']), reference[name])
    folder, reference = FOLDERS / 'clip-vision', load_file(FOLDERS / 'clip-vision/expected.safetensors')
    close(Teacher(dict(type='clip'), folder).tokens(reference['image']), reference['tokens'])
    with pytest.raises(CheckpointError, match='projected=True, but .*clip-vision has no visual_projection, as a CLIPVisionModel: give the'):
        Teacher(dict(type='clip'), folder, projected=True)
    shutil.copytree(folder, tmp_path / 'other')
    config = json.loads((folder / 'config.json').read_text())
    (tmp_path / 'other/config.json').write_text(json.dumps(dict(config, layer_norm_eps=0.1)))
    (tmp_path / 'other/preprocessor_config.json').write_text(json.dumps(dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)))
    teacher = Teacher(dict(type='clip'), tmp_path / 'other')
    assert (teacher.mean, teacher.std) == ((127.5,) * 3, (63.75,) * 3)
    assert teacher.model.model.blocks[0].norm1.eps == teacher.model.model.norm.eps == 0.1
    (tmp_path / 'other/config.json').unlink()
    with pytest.raises(CheckpointError, match='is a CLIP without the config.json that tells its activation'):
        Teacher(dict(type='clip'), tmp_path / 'other', projected=True)
    folder, reference = FOLDERS / 'siglip', load_file(FOLDERS / 'siglip/expected.safetensors')
    close(Teacher(None, folder).tokens(reference['image']), reference['tokens'])
    with pytest.raises(CheckpointError, match="siglip holds no image tower of OpenAI's CLIP .*, nor Hugging Face's: .* Teacher.model=None"):
        Teacher(dict(type='clip'), folder)


# ---------------------------------------------------------------- what it sees


@pytest.mark.parametrize(('patch', 'size'), [(16, 64), (14, 56)])
def test_its_view_is_made_of_the_encoders(patch, size):
    """One patch of the teacher for each of the encoder's 4x4: normalised anew, resized where its patches have another size."""
    preprocessor = ViewPreprocessor(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
    teacher = Teacher(dict(OWN, patch_size=patch, img_size=size), mean=[10.0, 20.0, 30.0], std=[4.0, 5.0, 6.0])
    pixels = 255 * torch.rand(2, 3, 64, 64)
    images = (pixels - preprocessor.mean) / preprocessor.std
    view = teacher.view_of(images, (4, 4), preprocessor)
    expected = (pixels - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    if patch == 14:
        expected = F.interpolate(expected, size=(56, 56), mode='bicubic', antialias=True)
    torch.testing.assert_close(view, expected, atol=1e-3, rtol=1e-3)
    assert teacher.tokens(view).shape == (2, 17, 20)


def test_statistics_are_those_of_the_model():
    clip = Teacher(dict(type='clip', depth=1, embed_dim=64, num_heads=1, img_size=32))
    assert clip.mean[0] == pytest.approx(255 * 0.48145466, abs=1e-6)
    siglip = Teacher(dict(type='timm', model_name='vit_base_patch16_siglip_224', depth=1, embed_dim=48, num_heads=4, img_size=32))
    assert tuple(siglip.mean) == tuple(siglip.std) == (127.5,) * 3
    with pytest.raises(ConfigError, match='normalises the images anew: data_preprocessor needs mean and std'):
        siglip.check_preprocessor(SelfSupDataPreprocessor())


def test_precision():
    """float32 on the CPU unless said otherwise; features come in float32."""
    teacher, fast = Teacher(OWN), Teacher(OWN, dtype='bfloat16')
    fast.load_state_dict(teacher.state_dict())
    fast = fast.to('cpu')
    assert next(teacher.parameters()).dtype is torch.float32 and next(fast.parameters()).dtype is torch.bfloat16
    images = torch.rand(2, 3, 64, 64)
    found = fast.tokens(images)
    assert found.dtype is torch.float32 and not torch.equal(found, teacher.tokens(images))
    torch.testing.assert_close(found, teacher.tokens(images), atol=0.1, rtol=0.1)
    with pytest.raises(ConfigError, match="dtype='half' of a target is none of 'float16'"):
        Teacher(OWN, dtype='half')


# ---------------------------------------------------------------- in training


@pytest.mark.parametrize('kind', ['mse', 'cosine'])
def test_loss_in_cae(tiny_cae, kind):
    """Regression, with the decoder's width taken from the target, and no second view."""
    preprocessor = dict(type='mmcae.ViewPreprocessor', mean=[127.5] * 3, std=[127.5] * 3)
    config = dict(type='mmcae.Teacher', model=OWN, loss=kind, mean=127.5, std=127.5)
    model = tiny_cae(target_generator=config, decoder=dict(num_outputs=None), data_preprocessor=preprocessor).eval()
    assert isinstance(model, CAE) and model.decoder.head.out_features == 20
    images, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 1:3] = True
    losses = model.loss([images], [DataSample().set_mask(one) for one in mask])
    target = model.target_generator.tokenize(images)[mask.flatten(1)].view(2, 8, 20)
    prediction = model.predict(images, mask)['logits']
    squared, angular = (prediction - target).square().mean(), 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    torch.testing.assert_close(losses['loss_main'], squared if kind == 'mse' else angular)
    assert 'mlm_acc' not in losses


@pytest.mark.parametrize('kind', ['timm', 'mmcae'])
def test_the_start_of_a_pretraining_leaves_the_weights_alone(kind, tiny_cae):
    """Models of all three libraries would draw new ones when they are asked to initialise themselves."""
    model = dict(timm=dict(type='timm', model_name='vit_tiny_patch16_224', img_size=32, **VIT), mmcae=OWN)[kind]
    preprocessor = dict(type='mmcae.ViewPreprocessor', mean=[127.5] * 3, std=[127.5] * 3)
    target = dict(type='mmcae.Teacher', model=model)
    cae = tiny_cae(target_generator=target, decoder=dict(num_outputs=None), data_preprocessor=preprocessor)
    before = {key: value.clone() for key, value in cae.target_generator.state_dict().items()}
    cae.init_weights()
    assert before and all(torch.equal(value, before[key]) for key, value in cae.target_generator.state_dict().items())


def test_vectors_without_direction():
    teacher = Teacher(OWN)
    for parameter in teacher.parameters():
        parameter.data.zero_()
    with pytest.raises(DataError, match="CAEViT gives 34 zero vectors among 34 tokens, which have no cosine.*loss='mse'"):
        teacher.tokens(torch.rand(2, 3, 64, 64))


# ---------------------------------------------------------------- what does not fit


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_weights_that_do_not_fit(tmp_path):
    resnet = dict(type='timm', model_name='resnet18')
    for model in (resnet, OWN, dict(type='clip'), None):
        with pytest.raises(CheckpointError, match='none.pth'):
            Teacher(model, tmp_path / 'none.pth')
    torch.save(ResNet(18).state_dict(), tmp_path / 'half.pth')
    state = timm.create_model('resnet18', num_classes=0).state_dict()
    state.pop('layer3.0.conv1.weight')
    torch.save(state, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='1 missing: layer3.0.conv1.weight'):
        Teacher(resnet, tmp_path / 'half.pth')
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match='holds no ResNet: its keys begin with weight, bias'):
        Teacher(resnet, tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match="linear.pth holds no image tower of OpenAI's CLIP"):
        Teacher(dict(type='clip'), tmp_path / 'linear.pth')
    (tmp_path / 'code.pth').write_bytes(pickle.dumps(RunsCode(str(tmp_path / 'mark'))))
    for model in (resnet, OWN, dict(type='clip'), None):
        with pytest.raises(CheckpointError, match='code.pth'):
            Teacher(model, tmp_path / 'code.pth')
    assert not (tmp_path / 'mark').exists()


def test_projection_that_is_missing(tmp_path):
    torch.save(timm.create_model('vit_tiny_patch16_224', img_size=SIZE, num_classes=0, **VIT).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match='projected=True, but .*vit.pth has no head'):
        Teacher(dict(type='timm', model_name='vit_tiny_patch16_224', img_size=SIZE, **VIT), tmp_path / 'vit.pth', projected=True)
    with pytest.raises(ConfigError, match='projected=True: mmcae.CAEViT has no head'):
        Teacher(OWN, projected=True)


@pytest.mark.parametrize(
    ('model', 'settings', 'message'),
    [
        (dict(type='timm', model_name='vit_tiny_patch16_225'), {}, "timm has no model .*did you mean 'vit_tiny_patch16_2"),
        (dict(type='timm', model_name='resnet18', pretrained=True), {}, 'downloads nothing'),
        (dict(type='timm', model_name='resnet18', deep=1), {}, 'refuses its arguments'),
        (dict(model_name='resnet18'), {}, 'needs a type'),
        (None, {}, 'needs a model, or a checkpoint'),
        (OWN, dict(loss='huber'), "loss='huber' is none of"),
        (OWN, dict(layers=0), 'layers=0 must be a whole number, at least 1'),
        (OWN, dict(layers=[1, 2]), r'layers=\[1, 2\] must be a whole number'),
        (TINY, dict(layers=3), 'layers=3, but vit_tiny_patch16_224 has 2 blocks'),
        (TINY, dict(mean=[1, 2]), r'mean=\[1, 2\] must be one number or 3'),
        (TINY, dict(std=0), r'std=0 must be one number or 3 \(std above 0\)'),
        (dict(TINY, num_heads=5), {}, 'refuses its arguments: dim should be divisible by num_heads'),
        (dict(TINY, img_size=40), {}, 'gives no features for images of 32x32 pixels .*give it img_size'),  # of whole patches
        (dict(TINY, num_classes=0), dict(projected=True), 'projected=True: vit_tiny_patch16_224 has no head'),
        (dict(type='timm', model_name='hiera_tiny_224'), {}, 'gives no features for images of 224x224 .* choose another model'),
        ('clip', {}, 'must be a dict with a type'),
        (dict(type='mmpretrain.ResNet', depth=18), dict(layers=2), 'layers=2: mmpretrain.ResNet gives its last map alone'),
    ],
)
def test_models_that_do_not_work(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        Teacher(model, **settings)


@pytest.mark.parametrize('changes', [dict(depth=3), dict(init_values=0.1)])
def test_weights_of_a_larger_model(tmp_path, changes):
    """Blocks and layer scales that the model has not would be left out, and it would compute something else."""
    settings = {key: value for key, value in TINY.items() if key not in ('type', 'model_name')}
    torch.save(timm.create_model('vit_tiny_patch16_224', num_classes=0, **(settings | changes)).state_dict(), tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match='does not fit this VisionTransformer .* unexpected: blocks'):
        Teacher(TINY, tmp_path / 'vit.pth')


def test_patches_that_are_merged_on_the_way():
    teacher = Teacher(
        dict(type='timm', model_name='swin_tiny_patch4_window7_224', embed_dim=24, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2))
    )
    assert teacher.downsample == (32, 32) and teacher.tokenize(torch.rand(1, 3, 224, 224)).shape == (1, 49, 192)


def test_another_size_than_the_models():
    """A fixed position table, at the grid of another encoder."""
    teacher = Teacher(dict(type='timm', model_name='vit_tiny_patch16_224', depth=1))
    with pytest.raises(ConfigError, match='gives no features for images of 64x64 pixels .*give it img_size'):
        teacher.tokens(torch.rand(1, 3, 64, 64))
