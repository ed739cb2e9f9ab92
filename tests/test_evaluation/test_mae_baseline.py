"""The baseline: mmpretrain's MAE trains by our config, and CAEViT computes exactly what its encoder does."""

import torch

from mmcae import checkpoints
from mmcae.apis import load_encoder
from mmcae.engine.launch import build_runner
from mmcae.models import CAEViT
from mmcae.utils.configs.loading import load_config


def test_its_encoder_is_a_caevit_without_layer_scale(repository, image_folder, tmp_path):
    images = image_folder('tiles', classes=(), count=4)
    changes = [f'train_dataloader.dataset.data_root={images.parent}/', 'train_dataloader.dataset.data_prefix=tiles']
    changes += ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_cfg.max_iters=2', 'param_scheduler.0.end=2']
    changes += ['param_scheduler.0.warmup=0', 'default_hooks.checkpoint.interval=2']
    cfg = load_config(repository / 'configs/digits/mae_vit-digits.py', changes)
    cfg.update(work_dir=str(tmp_path / 'run'), experiment_name=tmp_path.name, log_level='WARNING')
    runner = build_runner(cfg)
    runner.train()
    model = runner.model.eval()
    with torch.no_grad():
        for layer in model.backbone.layers:  # a bias of the keys that would show, if it mattered
            layer.attn.qkv.bias.add_(torch.randn_like(layer.attn.qkv.bias))
        batch = torch.randn(3, 3, 32, 32)
        (expected,) = model.extract_feat(batch)
        state = dict(state_dict=model.state_dict())
        encoder = CAEViT(
            arch=dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8, layer_scale_init_value=0, out_type='raw'
        ).eval()
        checkpoints.load_encoder_weights(encoder, state)
        torch.testing.assert_close(encoder(batch)[0], expected, rtol=1e-4, atol=1e-5)
        guessed = load_encoder(state, num_heads=4, out_type='raw')
        torch.testing.assert_close(guessed(batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_it_sees_as_many_tokens_as_cae(repository):
    """Of each image CAE encodes the visible patches and, again with a cls token, the masked ones; MAE the visible ones alone."""
    cae, mae = (load_config(repository / f'configs/digits/{name}_vit-digits.py') for name in ('cae', 'mae'))
    mask = next(step for step in cae.train_dataloader.dataset.pipeline if 'Mask' in step.type)
    patches = (cae.model.backbone.img_size // cae.model.backbone.patch_size) ** 2
    visible = patches - int(mask.ratio * patches)
    kept = int(patches * (1 - mae.model.backbone.mask_ratio))
    assert kept == visible
    images = [cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size for cfg in (cae, mae)]
    assert images[0] * (patches + 2) == images[1] * (kept + 1)
    for key in ('optim_wrapper', 'randomness'):
        assert cae[key] == mae[key]
    datasets = [dict(cfg.train_dataloader.dataset) for cfg in (cae, mae)]
    pipelines = [dataset.pop('pipeline') for dataset in datasets]
    assert datasets[0] == datasets[1]
    crops = [next(step for step in pipeline if 'Crop' in step.type) for pipeline in pipelines]
    assert crops[0].scale == crops[1].crop_ratio_range and crops[0].size == crops[1].scale
    assert crops[0].interpolation == crops[1].interpolation
