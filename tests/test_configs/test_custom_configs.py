"""The recipes for images of one's own, as processes: other channels and proportions, and starting from a released encoder."""

import numpy as np
import pytest
import tifffile
import torch
from mmengine.runner import Runner

from mmcae.apis import load_cae
from mmcae.checkpoints import to_official
from mmcae.models import CAEv2, CAEViT, DiscreteVAE
from mmcae.utils.configs.loading import load_config

SHORT = ['train_cfg.max_epochs=1', 'param_scheduler.0.warmup=0', 'param_scheduler.0.end=1', 'default_hooks.logger.interval=1']
LOADER = ['train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'train_dataloader.pin_memory=False']


@pytest.fixture
def tiny(repository, tmp_path):
    """A recipe with narrow and few blocks, as a config of its own: `tiny('cae_vit-small_channels')`; returns its path."""

    def write(name):
        path = tmp_path / f'{name}.py'
        path.write_text(
            f"""_base_ = '{repository}/configs/custom/{name}.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2)),
    regressor=dict(in_dims=32, embed_dims=32, num_layers=1, num_heads=2),
    decoder=dict(embed_dims=32, num_layers=1, num_heads=2),
)
"""
        )
        return path

    return write


def test_grey_rectangles(tiny, image_folder, run_tool, tmp_path):
    """192x256, one channel, as the config stands; then what it says to a mask of another grid."""
    data = f'train_dataloader.dataset.data_root={image_folder(size=(200, 300), count=2)}'
    arguments = (tiny('cae_vit-small_channels'), '--work-dir', tmp_path / 'run', '--cfg-options', data, *SHORT, *LOADER)
    code, output = run_tool('tools/train.py', *arguments)
    assert code == 0 and 'loss_align: ' in output, output
    model = load_cae(tmp_path / 'run/epoch_1.pth')
    assert model.backbone.grid == (12, 16) and model.backbone.patch_embed.proj.in_channels == 1
    assert model.decoder.head.out_features == 256

    code, output = run_tool('tools/train.py', *arguments, 'model.backbone.in_channels=3')
    assert code == 2 and 'images have 1 channels, but the encoder was made for 3' in output.splitlines()[-1], output


def test_five_channels_from_tiff_files_to_a_tokenizer_to_pretraining(repository, tmp_path):
    """The chain without processes of its own: a discrete VAE on five channels, 8 bits and 16, whose tokens CAE predicts."""
    for number in range(8):
        pixels = np.random.randint(0, 256, (40, 56, 5), dtype=np.uint8)
        deep = number % 2
        image = pixels.astype(np.uint16) * 257 if deep else pixels
        (tmp_path / 'images').mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / f'images/{number}.tif', image, photometric='minisblack', planarconfig='contig')
    common = {
        'train_dataloader.dataset.data_root': str(tmp_path / 'images'),
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.pin_memory': False,
        'train_dataloader.dataset.pipeline.0.channels': 5,
        'train_cfg.max_epochs': 1,
    }
    cfg = load_config(repository / 'configs/tokenizer/dvae_folder.py')
    sizes = dict(vocab_size=16, channels=(8, 8, 8), num_blocks=1, code_dim=4, in_channels=5)
    cfg.merge_from_dict(common | {f'model.{key}': value for key, value in sizes.items()})
    cfg.merge_from_dict({'train_dataloader.dataset.pipeline.1.size': (16, 24), 'work_dir': str(tmp_path / 'vae')})
    cfg.param_scheduler = None
    Runner.from_cfg(cfg).train()
    assert DiscreteVAE(checkpoint=tmp_path / 'vae/epoch_1.pth').in_channels == 5
    assert (tmp_path / 'vae/reconstructions/epoch_1.png').is_file()

    text = (repository / 'configs/custom/cae_vit-small_channels.py').read_text()
    for old, new in (
        ("'../_base_/", f"'{repository}/configs/_base_/"),
        ('targets/pixels.py', 'targets/dvae.py'),
        ('channels = 1 ', 'channels = 5 '),
        ('image_size = (192, 256)', 'image_size = (28, 42)'),
        ('patch_size = 16', 'patch_size = 14'),
        ('mean, std = [127.5], [50.0]', 'mean, std = [100.0, 110.0, 120.0, 130.0, 140.0], [50.0] * 5'),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / 'cae.py').write_text(text)
    cfg = load_config(tmp_path / 'cae.py')
    small = dict(embed_dims=16, num_layers=1, num_heads=2)
    cfg.merge_from_dict(
        common | {'model.target_generator.checkpoint': str(tmp_path / 'vae/epoch_1.pth'), 'work_dir': str(tmp_path / 'cae')}
    )
    cfg.model.backbone.arch = small
    cfg.model.regressor.update(in_dims=16, **small)
    cfg.model.decoder.update(small)
    for step in cfg.train_dataloader.dataset.pipeline:
        if 'Mask' in step.type:
            step.min_block = 1
    cfg.param_scheduler = None
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.model.backbone.grid == (2, 3) and runner.model.decoder.head.out_features == 16
    assert np.isfinite(runner.message_hub.get_scalar('train/mlm_acc').current())


@pytest.fixture
def released(tiny_cae, tmp_path):
    """A checkpoint in the authors' layout, of a small model with another vocabulary."""
    latent = dict(feedforward_channels=None)
    model = tiny_cae(
        latent_dims=32,
        backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2), img_size=224),
        regressor=dict(in_dims=32, num_layers=1, num_heads=2, **latent),
        decoder=dict(num_layers=1, num_heads=2, **latent),
    )
    torch.save(dict(model=to_official(model.state_dict())), tmp_path / 'released.pth')
    return model


def test_from_a_released_checkpoint(released, tiny, image_folder, run_tool, tmp_path):
    """All parts but the head; the first block of the encoder stays as it is, the rest learns."""
    changes = [
        f'train_dataloader.dataset.data_root={image_folder(size=(230, 240), count=1)}',
        f'model.init_cfg.checkpoint={tmp_path}/released.pth',
        'model.backbone.frozen_stages=1',
    ]
    arguments = (
        tiny('cae_vit-base_continued'),
        '--work-dir',
        tmp_path / 'run',
        '--cfg-options',
        *changes,
        *SHORT,
        *LOADER,
    )
    code, output = run_tool('tools/train.py', *arguments)
    assert code == 0, output
    assert '2 not in it in this shape and left as they are (decoder.head)' in output
    before, after = released.state_dict(), load_cae(tmp_path / 'run/epoch_1.pth').state_dict()
    frozen = [key for key in before if key.startswith(('backbone.blocks.0.', 'backbone.patch_embed', 'backbone.cls_token'))]
    assert len(frozen) > 10 and all(torch.equal(before[key], after[key]) for key in frozen)
    for key in ('backbone.blocks.1.mlp.fc1.weight', 'regressor.blocks.0.attn.q.weight', 'decoder.blocks.0.mlp.fc1.weight'):
        change = (after[key] - before[key]).abs().max()
        assert 0 < change < 1e-2, key


def test_from_a_released_encoder_alone(released, tiny, tmp_path):
    """Regressor and decoder start afresh."""
    from mmengine.registry import init_default_scope

    from mmcae.registry import MODELS

    changes = [
        'model.init_cfg=None',
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={tmp_path}/released.pth',
    ]
    cfg = load_config(tiny('cae_vit-base_continued'), changes)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    before, after = released.state_dict(), model.state_dict()
    encoder = [key for key in before if key.startswith('backbone.')]
    assert encoder and all(torch.equal(before[key], after[key]) for key in encoder)
    assert not torch.equal(before['regressor.blocks.0.attn.q.weight'], after['regressor.blocks.0.attn.q.weight'])
    assert (after['decoder.head.bias'] == 0).all()


@pytest.mark.parametrize(
    'changes', [(), ('resize_backend=device', 'complementary=True', 'num_masked=98', "supervise=['visible','masked']")]
)
def test_cae_v2_with_a_teacher_file(repository, image_folder, run_tool, tmp_path, changes):
    """The teacher is an encoder of our own, which its checkpoint describes; then with complementary masks, and views made by the device."""
    teacher = CAEViT(arch=dict(embed_dims=20, num_layers=1, num_heads=2), img_size=224)
    torch.save(dict(state_dict=teacher.state_dict(), meta=dict(encoder=teacher.spec.to_dict())), tmp_path / 'teacher.pth')
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = '{repository}/configs/custom/cae_v2_vit-small_folder.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2)),
    regressor=dict(in_dims=32, embed_dims=32, num_heads=2),
)
""")
    data = f'data_root={image_folder(size=(200, 300), count=2)}'
    settings = (data, f'teacher.checkpoint={tmp_path / "teacher.pth"}', 'teacher.model=None', 'teacher.projected=False', *changes)
    arguments = (config, '--work-dir', tmp_path / 'run', '--cfg-options', *settings, *SHORT, *LOADER)
    code, output = run_tool('tools/train.py', *arguments)
    assert code == 0 and 'loss_main: ' in output, output
    model = load_cae(tmp_path / 'run/epoch_1.pth')
    assert isinstance(model, CAEv2) and model.predictor.fc.out_features == 20 and model.backbone.blocks[0].attn.num_heads == 2
    weights = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert weights['meta']['method']['name'] == 'CAEv2' and not any(key.startswith('target') for key in weights['state_dict'])

    code, output = run_tool('tools/train.py', *arguments, 'teacher.checkpoint=none.pth')
    assert code == 2 and 'none.pth' in output.splitlines()[-1], output
