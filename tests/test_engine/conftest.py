"""A small pretraining that tests of hooks run."""

import pytest
from mmengine.runner import Runner

import mmcae.engine  # noqa: F401 - registers the hooks

LOAD = dict(type='mmcae.LoadImage')
PACK = dict(type='mmpretrain.PackInputs')


@pytest.fixture
def pretrain(image_folder, tmp_path):
    """Pretrain a small CAE on pixels for two epochs, with these hooks; returns the runner."""
    images = image_folder('images', ('a', 'b'), count=4)
    count = 0

    def run(*hooks):
        nonlocal count
        count += 1
        latent = dict(embed_dims=16, num_heads=2, num_layers=1)
        view = dict(type='mmcae.TwoViewCrop', size=32, second_size=32)
        mask = dict(type='mmcae.RandomMaskGenerator', grid=4, ratio=0.5)
        data = dict(type='mmpretrain.CustomDataset', data_root=str(images), with_label=False, pipeline=[LOAD, view, mask, PACK])
        runner = Runner(
            model=dict(
                type='mmcae.CAE',
                backbone=dict(
                    type='mmcae.CAEViT',
                    arch=dict(embed_dims=16, num_layers=2, num_heads=2),
                    img_size=32,
                    patch_size=8,
                    out_type='avg_featmap',
                    drop_path_rate=0.3,
                ),
                regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=16, **latent),
                decoder=dict(type='mmcae.CAEDecoder', num_outputs=192, **latent),
                target_generator=dict(type='mmcae.PixelTargets', patch_size=8),
                data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[120.0], std=[60.0]),
            ),
            work_dir=str(tmp_path / f'run{count}'),
            experiment_name=f'{tmp_path.name}_{count}',
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=data,
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            custom_hooks=list(hooks),
            visualizer=dict(type='mmpretrain.UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            default_scope='mmpretrain',
            randomness=dict(seed=0),
            log_level='WARNING',
        )
        runner.train()
        return runner

    return run
