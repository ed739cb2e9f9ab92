"""`mmcae train --dry-run`: the plan is that of the training, and nothing is written."""

import re

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=16, patch_size=8),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
)
train_dataloader = dict(
    batch_size=3,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='{data}', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
)
train_cfg = dict(by_epoch=True, max_epochs=5)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3), accumulative_counts=2)
param_scheduler = dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)
"""


def dry_run(fork_tool, image_folder, tmp_path, *arguments, processes=1):
    (tmp_path / 'tiny.py').write_text(CONFIG.replace('{data}', str(image_folder(count=4, size=(16, 16)))))
    before = sorted(tmp_path.rglob('*'))
    code, output = fork_tool('tools/train.py', 'tiny.py', '--dry-run', *arguments, processes=processes, cwd=tmp_path)
    assert sorted(tmp_path.rglob('*')) == before
    return code, output


def test_the_plan(fork_tool, image_folder, tmp_path):
    code, output = dry_run(fork_tool, image_folder, tmp_path)
    assert code == 0, output
    assert 'Effective batch size 6 (1 process x 3 images x 2 accumulated), lr 0.002; results go to work_dirs/tiny' in output
    assert re.search(r'^data +8 images; the first batch took [\d.]+ s to load by 0 workers$', output, re.MULTILINE)
    assert re.search(r'^model +ImageClassifier, 0\.0 million parameters', output, re.MULTILINE)
    assert re.search(r'^optimizer +AdamW by OptimWrapper, lr 0\.002, 0\.001 in the first step$', output, re.MULTILINE)
    assert '5 epochs of 3 steps, 15 steps; LinearLR on lr from step 0 to 4' in output
    assert re.search(r'^one batch +loss [\d.]+ \(.*\); [\d.]+ s, [\d.,]+ images/s in each process$', output, re.MULTILINE)
    assert re.search(r'^time +0:\d\d per epoch, 0:\d\d for all steps', output, re.MULTILINE)
    assert re.search(r'^memory +0\.\d+ GiB in this process', output, re.MULTILINE)
    assert 'Epoch(train)' not in output and output.splitlines()[-1] == 'Dry run: nothing was written.'


def test_several_processes_print_one_plan(fork_tool, image_folder, tmp_path):
    code, output = dry_run(fork_tool, image_folder, tmp_path, processes=2)
    assert code == 0, output
    assert output.count('Dry run: nothing was written.') == 1 and 'Effective batch size 12 (2 processes x 3 images x 2' in output
    assert '5 epochs of 2 steps, 10 steps' in output


def test_what_cannot_work_is_said(fork_tool, image_folder, tmp_path):
    code, output = dry_run(fork_tool, image_folder, tmp_path, 'optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.accumulative_counts=1')
    assert code == 2 and 'The loss of the first batch is' in output.splitlines()[-1]
