"""UperNet on ViTs of timm: one with patches of 14 and registers is trained on the recipe's data, tested by sliding crops; other kinds."""

import pytest
import timm
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

RECIPE = 'configs/upernet/upernet_dinov2-vit-small-p14_8xb2-amp-160k_ade20k-504x504.py'
SMALL = dict(depth=4, embed_dim=32, num_heads=2)


def test_train_then_test(repository, scenes, tmp_path):
    released = timm.create_model('vit_small_patch14_reg4_dinov2', **SMALL, img_size=42, num_classes=0)
    torch.save(released.state_dict(), tmp_path / 'dinov2.pth')
    options = [
        f'checkpoint={tmp_path}/dinov2.pth',
        'width=32',
        'train_size=(84,84)',
        f'data_root={scenes()}',
        'batch_size=2',
        'num_workers=0',
    ]
    options += [f'model.backbone.{name}={value}' for name, value in SMALL.items()]
    options += ['model.backbone.out_indices=(0,1,2,3)', 'model.backbone.img_size=84', 'model.decode_head.channels=16']
    options += ['model.auxiliary_head.channels=8', 'model.test_cfg.stride=(56,56)', 'train_cfg.max_iters=6', 'train_cfg.val_interval=6']
    options += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]
    cfg = load_config(repository / RECIPE, options)
    assert cfg.train_dataloader.dataset.pipeline[3].crop_size == (84, 84)
    for step in (cfg.train_dataloader.dataset.pipeline[2], cfg.val_dataloader.dataset.pipeline[1]):
        step.scale = (200, 100)
    cfg.param_scheduler = None
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.work_dir = str(tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    runner.train()
    history = runner.message_hub.get_scalar('train/loss')
    assert history.data[0].shape == (6, 2) or len(history.data[0]) == 6
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    assert runner.model.backbone.grid == (6, 6)


@pytest.mark.parametrize(
    ('name', 'patch'),
    [
        ('vit_small_patch16_dinov3', 16),
        ('eva02_small_patch14_224', 14),
        ('vit_base_patch16_siglip_224', 16),
        ('deit_small_distilled_patch16_224', 16),
        ('vit_base_patch16_clip_quickgelu_224', 16),
    ],
)
def test_other_kinds_of_vits(name, patch, repository):
    """Rotary, no cls token, two prefix tokens, a norm in front: by the names and numbers that the recipe leaves open."""
    side = 6 * patch
    options = ['width=32', f'train_size=({side},{side})', 'model.backbone.init_cfg=None', f'model.backbone.model_name={name}']
    options += [f'model.backbone.{name}={value}' for name, value in SMALL.items()]
    options += ['model.backbone.out_indices=(0,1,2,3)', 'model.decode_head.channels=16', 'model.auxiliary_head.channels=8']
    cfg = load_config(repository / RECIPE, [*options, f'model.test_cfg.stride=({4 * patch},{4 * patch})'])
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert model.backbone.img_size == (side, side)
    for _ in range(2):
        labels = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 9, (1, height, side)))) for height in (side, side - 5)]
        images = [torch.randint(0, 256, (3, height, side), dtype=torch.uint8) for height in (side, side - 5)]
        batch = model.train().data_preprocessor(dict(inputs=images, data_samples=labels), training=True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    size = (side + 3, side + 29)
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4))
    with torch.no_grad():
        (result,) = model.eval().test_step(dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8)], data_samples=[sample]))
    assert result.pred_sem_seg.data.shape == (1, *size)
