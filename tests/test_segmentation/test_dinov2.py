"""UperNet on a ViT of timm with patches of 14 and registers: trained for some steps on the recipe's data, and tested by sliding crops."""

import timm
import torch
from mmengine.runner import Runner

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
