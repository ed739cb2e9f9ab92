"""`mmcae train --dry-run`: the plan is that of the training, and nothing is written."""

import re

import pytest

MORE = """
train_dataloader.update(batch_size=3)
train_cfg.update(max_epochs=5)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3), accumulative_counts=2)
param_scheduler = dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4)
"""


@pytest.fixture
def dry_run(tiny_classifier, fork_tool, image_folder, tmp_path):
    """Run it with further arguments; returns the exit code and the output, and nothing has been written."""
    tiny_classifier(image_folder(count=4, size=(16, 16)), MORE)

    def run(*arguments, processes=1):
        before = sorted(tmp_path.rglob('*'))
        code, output = fork_tool('tools/train.py', 'tiny.py', '--dry-run', *arguments, processes=processes, cwd=tmp_path)
        assert sorted(tmp_path.rglob('*')) == before
        return code, output

    return run


def test_the_plan(dry_run):
    code, output = dry_run()
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


@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_scaled_lr_counts_accumulation(dry_run, runner):
    code, output = dry_run('--auto-scale-lr', 'auto_scale_lr.base_batch_size=12', f'runner_type={runner}')
    assert code == 0 and "lr 0.001 (the config's 0.002 x 0.5); results" in output, output
    assert re.search(r'^optimizer +AdamW by OptimWrapper, lr 0\.001, 0\.0005 in the first step$', output, re.MULTILINE)


def test_several_processes_print_one_plan(dry_run):
    code, output = dry_run(processes=2)
    assert code == 0, output
    assert output.count('Dry run: nothing was written.') == 1 and 'Effective batch size 12 (2 processes x 3 images x 2' in output
    assert '5 epochs of 2 steps, 10 steps' in output


def test_what_cannot_work_is_said(dry_run):
    code, output = dry_run('optim_wrapper.optimizer.lr=1e30', 'optim_wrapper.accumulative_counts=1')
    assert code == 2 and 'The loss of the first batch is' in output.splitlines()[-1]
