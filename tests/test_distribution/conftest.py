"""A tiny pretraining in which nothing but the division of labour differs between runs: the masks belong to the images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.checkpoints import load_state, read_checkpoint

HELPERS = '''
import json
import random
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS


@TRANSFORMS.register_module()
class MaskOfTheImage(BaseTransform):
    """The same mask for an image in whatever process it is loaded, of 16 patches."""

    def __init__(self, number=6):
        self.number = number

    def transform(self, results):
        order = random.Random(Path(results['img_path']).name).sample(range(16), self.number)
        mask = np.zeros(16, bool)
        mask[order] = True
        return dict(results, mask=mask.reshape(4, 4))


@HOOKS.register_module()
class NoteImages(Hook):
    """Write down which images this process trained on in each epoch, and its own losses."""

    def before_train(self, runner):
        self.epochs, self.losses = [], []

    def before_train_epoch(self, runner):
        self.epochs.append([])

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.epochs[-1] += [Path(sample.img_path).name for sample in data_batch['data_samples']]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value) for name, value in outputs.items()})

    def after_train(self, runner):
        content = dict(epochs=self.epochs, losses=self.losses)
        Path(runner.work_dir).with_suffix(f'.rank{get_rank()}.json').write_text(json.dumps(content))
'''

CONFIG = """
custom_imports = dict(imports=['helpers_of_the_test'])
default_scope = 'mmpretrain'
model = dict(
    type='mmcae.CAE',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=16, patch_size=4),
    regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=16, embed_dims=16, num_layers=1, num_heads=2),
    decoder=dict(type='mmcae.CAEDecoder', embed_dims=16, num_outputs=8, num_layers=1, num_heads=2),
    target_generator=dict(type='mmcae.PatchCodebook', checkpoint='{codebook}'),
    data_preprocessor=dict(
        type='mmcae.ViewPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, second_mean=[0.0] * 3, second_std=[255.0] * 3, to_rgb=False
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='{images}',
        with_label=False,
        pipeline=[
            dict(type='mmcae.LoadImage'),
            dict(type='mmcae.TwoViewCrop', size=16, second_size=16, scale=(1, 1), ratio=(1, 1)),
            dict(type='MaskOfTheImage'),
            dict(type='PackInputs', meta_keys=('img_path',)),
        ],
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=0.5),
)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1),
    statistics=dict(type='mmcae.TrainingStatistics', interval=1, images=4),
)
log_processor = dict(type='mmcae.LogProcessor', window_size=1)
labelled = dict(type='CustomDataset', data_root='{labelled}', pipeline=[dict(type='mmcae.LoadImage'), dict(type='PackInputs')])
probe = dict(
    type='mmcae.OnlineProbe',
    dataloader=dict(batch_size=4, dataset=dict(data_prefix='bank', **labelled)),
    query_dataloader=dict(batch_size=4, dataset=dict(data_prefix='queries', **labelled)),
    interval=3,
    by_epoch=False,
    k=(3,),
    dtype='float32',
)
custom_hooks = [dict(type='NoteImages'), probe]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
"""
# Configs that differ from tiny.py in more than --cfg-options can say.
VARIANTS = dict(
    # eps above the rounding errors of the gradients, which Adam would otherwise divide by themselves: whole steps out of noise.
    adamw="optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, eps=1e-6, weight_decay=0.05))",
    ema="custom_hooks = [dict(type='NoteImages'), {{_base_.probe}}, dict(type='EMAHook', momentum=0.2, priority='ABOVE_NORMAL')]",
    amp="optim_wrapper = dict(type='mmcae.AmpOptimWrapper')",
    zero="runner_type = 'FlexibleRunner'\n"
    "strategy = dict(type='mmcae.DeepSpeedStrategy', zero_optimization=dict(stage=1), gradient_clipping=0.5)\n"
    "optim_wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper', constructor='mmcae.LayerDecayOptimWrapperConstructor',\n"
    "    optimizer=dict(type='AdamW', lr=1e-3, eps=1e-6, weight_decay=0.05))",
    events="visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])",
    fsdp="runner_type = 'FlexibleRunner'\nstrategy = dict(type='mmcae.FSDPStrategy', state_dict_cfg='full')\n"
    "optim_wrapper = dict(type='mmcae.AmpOptimWrapper', use_fsdp=True)",
    fsdp2="runner_type = 'FlexibleRunner'\nstrategy = dict(type='mmcae.FSDP2Strategy')",
)


@pytest.fixture(scope='module')
def pretraining(tmp_path_factory):
    """Write the config, 24 images and a codebook; returns the folder, in which the config is tiny.py."""
    from mmcae.models.targets import PatchCodebook

    folder = tmp_path_factory.mktemp('pretraining')
    random = np.random.default_rng(0)
    (folder / 'images').mkdir()
    for number in range(24):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / 'images' / f'{number:02d}.png')
    for name, count in (('bank', 9), ('queries', 5)):  # neither number is even in all processes
        for number in range(count):
            path = folder / 'labelled' / name / 'ab'[number % 2] / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    codebook = PatchCodebook(vocab_size=8, patch_size=4)
    codebook.quantizer.codes.data.normal_()
    codebook.quantizer.usage.fill_(1 / 8)
    torch.save(dict(state_dict=codebook.state_dict()), folder / 'codebook.pth')
    (folder / 'helpers_of_the_test.py').write_text(HELPERS)
    text = CONFIG.replace('{images}', str(folder / 'images')).replace('{codebook}', str(folder / 'codebook.pth'))
    text = text.replace('{labelled}', str(folder / 'labelled'))
    (folder / 'tiny.py').write_text(text)
    for name, changes in VARIANTS.items():
        (folder / f'{name}.py').write_text(f"_base_ = 'tiny.py'\n{changes}\n")
    return folder


class Run:
    """What a training run has left.

    Attributes:
        folder: The work dir.
        output: What all processes printed.
        weights: State dict of the last checkpoint.
        logged: The scalars of each iteration, as logged.
        statistics: What the hook TrainingStatistics logged after each.
        probed: What the hook OnlineProbe logged, by iteration.
        ranks: For each process the images of each epoch, and the losses that it computed itself.
    """

    def __init__(self, folder, output, processes):
        self.folder, self.output = folder, output
        checkpoint = folder / (folder / 'last_checkpoint').read_text().strip().rsplit('/', 1)[-1]
        if (checkpoint / 'mp_rank_00_model_states.pt').exists():
            checkpoint /= 'mp_rank_00_model_states.pt'
        self.checkpoint = read_checkpoint(checkpoint)
        self.weights = load_state(self.checkpoint)  # without the prefix that the flexible runner leaves
        (scalars,) = folder.glob('*/vis_data/scalars.json')
        entries = [json.loads(line) for line in scalars.read_text().splitlines()]
        self.logged = [entry for entry in entries if 'loss' in entry]
        self.probed = {entry['step']: entry for entry in entries if 'probe/knn3_top1' in entry}
        self.statistics = [entry for entry in entries if 'stat/data_wait' in entry]
        self.ranks = [json.loads(folder.with_suffix(f'.rank{rank}.json').read_text()) for rank in range(processes)]


@pytest.fixture(scope='module')
def train(pretraining, fork_tool, tmp_path_factory):
    """Train by tools/train.py: `train('name', 'key=value', ..., processes=2)`; returns a Run."""

    def run(name, *changes, processes=1, config='tiny.py', arguments=()):
        folder = tmp_path_factory.mktemp('runs') / name
        options = ('--work-dir', folder, *arguments, *(('--cfg-options', *changes) if changes else ()))
        paths = dict(PYTHONPATH=str(pretraining))
        code, output = fork_tool('tools/train.py', pretraining / config, *options, processes=processes, env=paths)
        assert code == 0, output
        return Run(folder, output, processes)

    return run
