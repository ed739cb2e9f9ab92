"""Files that come or go while a run is interrupted, and processes that see different folders."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

COMMON = """
train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='{sampler}'),
    dataset=dict(pipeline=[*_base_.train_dataloader.dataset.pipeline[:-1], dict(type='PackInputs', meta_keys=('img_path',))]),
)
randomness = dict(seed=1)
custom_hooks = [dict(type='WriteDownImages')]
"""
STEPS = """
train_cfg = dict(_delete_=True, type='mmcae.IterBasedTrainLoop', max_iters=26)
param_scheduler = [dict(type='PolyLR', by_epoch=False, end=26)]
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(by_epoch=False))
"""


@HOOKS.register_module()
class WriteDownImages(Hook):
    """One line for each iteration into a file beside the work dir: its number, and the images that were trained on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = [Path(sample.img_path).name for sample in data_batch['data_samples']]
        with open(f'{runner.work_dir}.images', 'a') as file:
            print(runner.iter + 1, *names, file=file)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'images'


@pytest.fixture
def interrupted(start, variant, folder, tmp_path):
    """A run that is stopped after the second of the six iterations of its second epoch; then three files come and one goes: 7 iterations.

    `interrupted()` returns a function that resumes it with options and gives what it logged.
    """
    for path in folder.glob('*/*'):  # to tell the images of the two classes apart
        path.rename(path.with_name(f'{path.parent.name}_{path.name}'))

    def make(text='', sampler='DefaultSampler'):
        config = variant(COMMON.format(sampler=sampler) + text)
        stopping = tmp_path / 'stopping.py'
        signals = dict(signal=dict(type='SignalAt', iteration=8, number=int(signal.SIGTERM)))
        stopping.write_text(f"_base_ = ['{config}']\ndefault_hooks = {signals}\n")
        stopped = start(config=stopping)
        assert stopped.wait() == 143, stopped.text
        (folder / 'cat/cat_001.png').unlink()
        for name in ('dog_100.jpg', 'dog_101.jpg', 'dog_102.jpg'):
            shutil.copy(folder / 'dog/dog_000.jpg', folder / 'dog' / name)

        def resume(*options):
            training = start('--resume', config=config, options=options)
            assert training.wait() == 0, training.text
            return training.text

        return resume

    return make


def images_of(tmp_path):
    """Iteration -> names, the last time it was done."""
    lines = (tmp_path / 'run.images').read_text().splitlines()
    return {int(number): names for number, *names in map(str.split, lines)}


def test_the_next_epoch_begins(interrupted, folder, tmp_path):
    text = interrupted()()
    assert 'The data set has changed since the checkpoint was written: 12 images then, 14 now' in text
    assert 'Going on with epoch 3, from iteration 14, because it is not known' in text and "changed_data='continue'" in text
    assert 'WarmupCosineLR.end 18 -> 21' in text and 'Epoch(train) [3][1/7]' in text
    images = images_of(tmp_path)
    assert sorted(images) == [*range(1, 9), *range(15, 22)]
    seen = Counter(name for iteration in range(15, 22) for name in images[iteration])
    assert seen == Counter(path.name for path in folder.glob('*/*'))


def test_the_epoch_goes_on_if_asked_to(interrupted, tmp_path):
    text = interrupted()('default_hooks.checkpoint.changed_data=continue')
    assert '12 images then, 14 now' in text and 'Going on with' not in text
    assert 'An epoch has 7 iterations, and had 6 in the checkpoint' in text and 'going on from iteration 9' in text
    assert sorted(images_of(tmp_path)) == [*range(1, 9), *range(10, 22)]


def test_the_last_epoch_goes_on(interrupted, tmp_path):
    text = interrupted()('train_cfg.max_epochs=2', 'param_scheduler.0.end=2')
    assert 'Going on within the epoch, because it is the last' in text
    assert max(images_of(tmp_path)) == 14 and (tmp_path / 'run/epoch_2.pth').exists()


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_counted_in_iterations(interrupted, folder, tmp_path, sampler):
    text = interrupted(STEPS, sampler)()
    assert '12 images then, 14 now' in text and 'Going on with a new pass over all images' in text
    images = images_of(tmp_path)
    assert sorted(images) == list(range(1, 27))
    seen = Counter(name for iteration in range(9, 23) for name in images[iteration])
    assert seen == Counter({path.name: 2 for path in folder.glob('*/*')})  # two whole passes


def test_another_file_of_the_same_number(start, folder, config):
    options = ['train_cfg.max_epochs=1', 'train_dataloader.num_workers=0']
    assert start(options=options).wait() == 0
    os.rename(folder / 'cat/000.jpg', folder / 'dog/zzz.jpg')
    training = start('--resume', options=['train_cfg.max_epochs=2', options[1]])
    assert training.wait() == 0, training.text
    assert '12 images as before, but other files, or in another order' in training.text
    assert 'Going on with' not in training.text and 'resumed epoch: 1, iter: 6' in training.text  # between two epochs nothing is left out


def test_processes_that_see_different_folders(start, variant, folder, tmp_path):
    """Process 1 lacks an image."""
    other = shutil.copytree(folder, tmp_path / 'of_rank_1')
    (other / 'cat/000.jpg').unlink()
    text = f"import os\nroot = '{folder}' if os.environ['RANK'] == '0' else '{other}'\n"
    trainings = start(config=variant(f'{text}train_dataloader = dict(num_workers=0, dataset=dict(data_root=root))'), processes=2)
    assert [training.wait() for training in trainings] == [2, 2]
    line = trainings[0].text.strip().splitlines()[-1]
    assert 'The processes have different data sets: process 1 (host' in line
    assert f'has 11 images, first {other}/cat/001.png; all others have 12, first {folder}/cat/000.jpg' in line
