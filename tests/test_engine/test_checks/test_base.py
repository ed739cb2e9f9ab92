"""The hook that runs the checks: switches, when each check is called, checks of a user's own."""

from types import SimpleNamespace

import pytest
import torch

from mmcae.engine import Check, Checks
from mmcae.registry import CHECKS
from mmcae.utils.errors import ConfigError

NAMES = {'sample', 'classes', 'objects', 'label_maps', 'loss', 'bad_files'}


@pytest.fixture
def recorder():
    """Registers a check that records its calls and applies to linear layers."""
    calls = []

    @CHECKS.register_module('recorder')
    class Recorder(Check):
        def __init__(self, tag='default'):
            self.tag = tag

        def applies_to(self, model):
            return isinstance(model, torch.nn.Linear)

        def before_split(self, runner, split):
            calls.append((self.tag, split))

        def before_iter(self, runner, batch):
            calls.append(('batch', batch))

        def after_train_iter(self, runner, batch, outputs):
            calls.append(('outputs', outputs))

        def after_train_epoch(self, runner):
            calls.append('epoch')

    yield calls
    CHECKS.module_dict.pop('recorder')


def only(**switches):
    """The hook with all checks off but these."""
    return Checks(**dict.fromkeys(CHECKS.module_dict, False) | switches)


def run(hook, runner):
    """What mmengine's loops call."""
    hook.before_train(runner)
    hook.before_train_iter(runner, 0, data_batch='images')
    hook.after_train_iter(runner, 0, data_batch='images', outputs='values')
    for _ in range(2):
        hook.before_val(runner)
        hook.before_val_iter(runner, 0, data_batch='val images')
    hook.after_train_epoch(runner)
    hook.before_test(runner)
    hook.before_test_iter(runner, 0, data_batch='test images')


def test_a_check_is_called_at_each_stage(recorder):
    wrapped = SimpleNamespace(module=SimpleNamespace(module=torch.nn.Linear(1, 1)))
    run(only(recorder=dict(tag='own')), SimpleNamespace(model=wrapped, val_loop=True))
    assert recorder == [
        *(('own', 'train'), ('own', 'val')),
        *(('batch', 'images'), ('outputs', 'values')),
        *(('batch', 'val images'), ('batch', 'val images')),
        'epoch',
        *(('own', 'test'), ('batch', 'test images')),
    ]


def test_a_check_is_not_called_for_other_models(recorder):
    run(only(recorder=True), SimpleNamespace(model=torch.nn.ReLU(), val_loop=True))
    assert recorder == []


def test_validation_data_is_checked_without_a_training(recorder):
    only(recorder=True).before_val(SimpleNamespace(model=torch.nn.Linear(1, 1)))
    assert recorder == [('default', 'val')]


def test_all_checks_are_on_by_default(recorder):
    assert set(Checks().checks) == {*NAMES, 'recorder'}
    assert set(Checks(loss=False, recorder=True, label_maps=dict(maps=3)).checks) == {*NAMES, 'recorder'} - {'loss'}


@pytest.mark.parametrize(
    ('switches', 'message'),
    [
        (dict(los=True), r"no check 'los'; did you mean 'loss'\? \(it has bad_files, classes, label_maps, loss, objects, sample\)"),
        (dict(loss=1), 'loss=1 must be True, False or a dict'),
        (dict(loss=dict(patience=0)), 'loss.patience=0'),
    ],
)
def test_invalid_switches(switches, message):
    with pytest.raises(ConfigError, match=message):
        Checks(**switches)
