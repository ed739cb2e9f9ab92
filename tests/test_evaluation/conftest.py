"""The real configs of configs/digits on a few small images, with a random encoder of the right size."""

import pytest
import torch

CLASSES = tuple('0123456789')


@pytest.fixture
def digits(image_folder, tmp_path):
    """Class folders train, val and test, four images of each digit in the first, two in the others; returns their root."""
    for split, count in (('train', 4), ('val', 2), ('test', 2)):
        image_folder(f'digits/{split}', CLASSES, count)
    return tmp_path / 'digits'


@pytest.fixture
def checkpoint(tmp_path):
    """Write a pretraining checkpoint with an encoder of random weights: `checkpoint(embed_dims=96)`; returns its path."""
    from mmcae.models import CAE

    def make(embed_dims=96, patch_size=8, name='cae.pth'):
        torch.manual_seed(3)
        latent = dict(embed_dims=32, num_heads=4, num_layers=1)
        model = CAE(
            backbone=dict(
                type='mmcae.CAEViT',
                arch=dict(embed_dims=embed_dims, num_layers=4, num_heads=4),
                img_size=4 * patch_size,
                patch_size=patch_size,
            ),
            regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=embed_dims, **latent),
            decoder=dict(type='mmcae.CAEDecoder', num_outputs=24, **latent),
        )
        torch.save(dict(state_dict=model.state_dict()), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def options(digits, checkpoint):
    """Changes that have a config of configs/digits run on these images: `options('linear', max_iters=3)`."""

    def make(protocol, max_iters=3, encoder=None):
        root = f'{digits}/'
        if protocol == 'knn':
            bank = 'test_cfg.bank_dataloader.dataset'
            return [f'test_dataloader.dataset.data_root={root}', f'{bank}.dataset.data_root={root}', f'{bank}.labels=40']
        return [
            f'model.backbone.init_cfg.checkpoint={encoder or checkpoint()}',
            f'train_dataloader.dataset.dataset.data_root={root}',
            *(f'{split}_dataloader.dataset.data_root={root}' for split in ('val', 'test')),
            'train_dataloader.dataset.labels=40',
            'train_dataloader.batch_size=20',
            f'train_cfg.max_iters={max_iters}',
            f'train_cfg.val_interval={max_iters}',
            f'param_scheduler.0.end={max_iters}',
            'param_scheduler.0.warmup=0',
            f'default_hooks.checkpoint.interval={max_iters}',
        ]

    return make


@pytest.fixture
def make_runner(repository, tmp_path):
    """Build the runner of a config of configs/digits: `make_runner('linear', options)`."""
    from mmcae.engine.launch import build_runner
    from mmcae.utils.configs.loading import load_config

    count = 0

    def make(protocol, changes, **settings):
        nonlocal count
        count += 1
        cfg = load_config(repository / 'configs' / 'digits' / f'{protocol}_vit-digits.py', changes)
        cfg.update(settings, work_dir=str(tmp_path / f'run{count}'), experiment_name=f'{tmp_path.name}_{count}', log_level='WARNING')
        return build_runner(cfg)

    return make
