"""tools/train.py and tools/test.py as processes, for every kind of config; and what they say to bad input."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmcae.checkpoints import read_checkpoint
from mmcae.utils.locks import locked


def test_train_resume_and_test(classification_config, run_tool, tmp_path):
    folder, mark = tmp_path / 'run', tmp_path / 'code-was-run'
    code, output = run_tool('tools/train.py', classification_config, '--work-dir', folder)
    assert code == 0, output
    assert (
        'Effective batch size 4 (1 process x 4 images x 1 accumulated), lr 0.001 '
        f'(chosen for a batch of 8; --auto-scale-lr adapts it); results go to {folder}'
    ) in output
    assert (folder / 'epoch_2.pth').exists() and not (folder / 'metrics.json').exists()

    # On resuming mmengine executes a text that it expects, and never writes, in a checkpoint.
    before = torch.load(folder / 'epoch_2.pth', weights_only=False)  # mmengine's own CheckpointHook has written objects into it
    before['meta']['config'] = f"open('{mark}', 'w')"
    torch.save(before, folder / 'epoch_2.pth')
    code, output = run_tool(
        'tools/train.py', classification_config, '--work-dir', folder, '--resume', '--cfg-options', 'train_cfg.max_epochs=3'
    )
    assert code == 0, output
    assert 'the config text in it is ignored' in output and not mark.exists()
    assert f'resumed from {folder}/epoch_2.pth' in output and 'resumed epoch: 2, iter: 4' in output
    assert 'Epoch(train) [3][2/2]' in output and 'Epoch(train) [2]' not in output
    after = read_checkpoint(folder / 'epoch_3.pth')
    assert after['meta']['iter'] == 6 and after['optimizer']['state'][0]['step'] == before['optimizer']['state'][0]['step'] + 2

    predictions, pictures = tmp_path / 'predictions.pkl', tmp_path / 'pictures'
    with locked(folder):  # as by a training that is still at work there
        before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
        code, output = run_tool(
            'tools/test.py',
            classification_config,
            folder / 'epoch_3.pth',
            '--work-dir',
            folder,
            '--out',
            predictions,
            '--show-dir',
            pictures,
        )
        assert code == 0, output
        after = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    assert {path: content for path, content in after.items() if path.relative_to(folder).parts[0] not in ('test', 'metrics.json')} == before
    metrics = json.loads((folder / 'metrics.json').read_text())
    predicted = pickle.loads(predictions.read_bytes())
    correct = [int(sample['pred_label']) == int(sample['gt_label']) for sample in predicted]
    assert len(correct) == 8 and metrics == {'accuracy/top1': pytest.approx(100 * np.mean(correct))}
    assert len(list(pictures.iterdir())) >= 4  # images of the two classes have the same names


def test_options_of_train(classification_config, run_tool, tmp_path):
    """Accumulation counts into the batch and the scaled lr; --amp, --no-validate; --resume where there is nothing yet."""
    folder = tmp_path / 'run'
    options = ('--amp', '--auto-scale-lr', '--no-validate', '--resume')
    changes = ('optim_wrapper.accumulative_counts=4', 'train_cfg.max_epochs=1', 'train_dataloader.num_workers=1')
    code, output = run_tool('tools/train.py', classification_config, '--work-dir', folder, *options, '--cfg-options', *changes)
    assert code == 0, output
    assert f'Nothing to resume in {folder} yet: starting from the beginning.' in output
    assert "Effective batch size 16 (1 process x 4 images x 4 accumulated), lr 0.002 (the config's 0.001 x 2)" in output
    assert 'Epoch(val)' not in output
    saved = read_checkpoint(folder / 'epoch_1.pth')
    assert saved['optimizer']['param_groups'][0]['initial_lr'] == pytest.approx(2e-3)
    assert Config.fromfile(folder / 'tiny_classifier.py').auto_scale_lr == dict(enable=True, base_batch_size=8)  # to train by it again
    assert 'loss_scaler' in saved['optimizer'] and "type='mmcae.AmpOptimWrapper'" in saved['meta']['cfg']


def test_detection(detection_config, run_tool, tmp_path):
    folder = tmp_path / 'run'
    code, output = run_tool('tools/train.py', detection_config, '--work-dir', folder, '--no-validate')
    assert code == 0, output
    arguments = ('--work-dir', folder, '--out', tmp_path / 'out', '--show-dir', tmp_path / 'pictures')
    code, output = run_tool('tools/test.py', detection_config, folder / 'epoch_2.pth', *arguments)
    assert code == 0, output
    assert 0 <= json.loads((folder / 'metrics.json').read_text())['coco/bbox_mAP'] <= 1
    boxes = json.loads((tmp_path / 'out.bbox.json').read_text())
    assert len(boxes) == 20 and {box['image_id'] for box in boxes} == {0, 1, 2, 3}
    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == ['0.png', '1.png', '2.png', '3.png']

    code, output = run_tool(
        'tools/test.py', detection_config, folder / 'epoch_2.pth', '--work-dir', folder, '--tta', '--out', tmp_path / 'out.pkl'
    )
    assert code == 0, output
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4


def test_segmentation(segmentation_config, run_tool, tmp_path):
    folder = tmp_path / 'run'
    code, output = run_tool('tools/train.py', segmentation_config, '--work-dir', folder, '--no-validate')
    assert code == 0, output
    arguments = ('--work-dir', folder, '--tta', '--out', tmp_path / 'maps', '--show-dir', tmp_path / 'pictures')
    code, output = run_tool('tools/test.py', segmentation_config, folder / 'epoch_2.pth', *arguments)
    assert code == 0, output
    assert 0 < json.loads((folder / 'metrics.json').read_text())['mIoU'] <= 100
    maps = sorted((tmp_path / 'maps').iterdir())
    assert [path.name for path in maps] == ['0.png', '1.png', '2.png', '3.png']
    assert set(np.unique(np.asarray(Image.open(maps[0])))) <= {0, 1}
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4


# ---------------------------------------------------------------- bad input, as processes; the table of it all is in test_nonsense.py


class RunsCode:
    """A pickle that makes a file when it is loaded without protection."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_checkpoint_with_code_is_refused(tool, classification_config, run_tool, tmp_path):
    """In one line, and without running it."""
    bad, mark = tmp_path / 'bad.pth', tmp_path / 'code-was-run'
    torch.save({'state_dict': {}, 'meta': {'epoch': 1, 'iter': 2}, 'x': RunsCode(mark)}, bad)
    arguments = ('--resume', bad) if tool == 'train' else (bad,)
    code, output = run_tool(f'tools/{tool}.py', classification_config, *arguments, '--work-dir', tmp_path / 'run')
    assert code == 2, output
    assert 'error: ' in output.splitlines()[-1] and 'bad.pth was refused' in output.splitlines()[-1]
    assert 'Traceback' not in output and not mark.exists()


def test_checkpoint_of_another_model_is_refused(classification_config, run_tool, tmp_path):
    """mmengine would warn and go on with random weights."""
    other, folder = tmp_path / 'other.pth', tmp_path / 'run'
    torch.save({'state_dict': {'backbone.blocks.0.attn.qkv.weight': torch.zeros(3, 3), 'head.extra': torch.zeros(1)}}, other)
    code, output = run_tool('tools/test.py', classification_config, other, '--work-dir', folder)
    assert code == 2, output
    line = output.splitlines()[-1]
    assert 'other.pth belongs to another model' in line and 'head.extra' in line and 'attn.qkv.weight' in line
    assert not (folder / 'metrics.json').exists()


def test_the_flexible_runner_counts_epochs_after_a_validation(classification_config, fork_tool, tmp_path):
    """When a better checkpoint is found, mmengine saves the last one anew, by its FlexibleRunner as if an epoch more was done."""
    config = tmp_path / 'flexible.py'
    config.write_text(
        f"_base_ = ['{classification_config}']\nrunner_type = 'FlexibleRunner'\n"
        "train_cfg = dict(_delete_=True, type='mmcae.EpochBasedTrainLoop', max_epochs=2)\n"
        "default_hooks = dict(checkpoint=dict(type='mmcae.CheckpointHook', interval=1, save_best='auto'))\n"
    )
    code, output = fork_tool('tools/train.py', config, '--work-dir', tmp_path / 'run')
    assert code == 0 and 'The best checkpoint with' in output, output
    for epoch in (1, 2):
        meta = torch.load(tmp_path / f'run/epoch_{epoch}.pth', weights_only=True)['meta']
        assert (meta['epoch'], meta['iter']) == (epoch, 2 * epoch)
    code, output = fork_tool(
        'tools/train.py', config, '--work-dir', tmp_path / 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=3'
    )
    assert code == 0 and 'resumed epoch: 2, iter: 4' in output, output
