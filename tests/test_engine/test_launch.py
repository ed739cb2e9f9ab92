"""What every run is given, whatever its config says."""

import pytest
from mmengine.config import Config

from mmcae.engine.launch import keep_local_logs

CHOICES = [None, [], ['TensorboardVisBackend'], ['mmengine.LocalVisBackend'], ['WandbVisBackend', 'LocalVisBackend']]


@pytest.mark.parametrize('backends', CHOICES)
def test_scalars_are_always_written_locally_and_once(backends):
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=backends and [dict(type=name) for name in backends])))
    keep_local_logs(cfg)
    names = [backend.type for backend in cfg.visualizer.vis_backends]
    assert sum(name.endswith('LocalVisBackend') for name in names) == 1
    assert names[: len(backends or [])] == (backends or [])


def test_training_with_another_backend_leaves_scalars(fork_tool, image_folder, tiny_classifier, tmp_path):
    """MLflow's and W&B's are chosen in the same way; TensorBoard's is the one that needs no server."""
    pytest.importorskip('tensorboard')
    more = "visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='TensorboardVisBackend')])\n"
    more += "default_hooks = dict(logger=dict(type='LoggerHook', interval=1))"
    config = tiny_classifier(image_folder(size=(16, 16)), more)
    code, output = fork_tool('tools/train.py', config, '--work-dir', tmp_path / 'out')
    assert code == 0, output
    assert list((tmp_path / 'out').glob('*/vis_data/scalars.json')) and list((tmp_path / 'out').glob('*/vis_data/events*'))


def test_a_run_without_a_visualizer_has_mmengines():
    cfg = Config(dict(visualizer=None))
    keep_local_logs(cfg)
    assert cfg.visualizer is None
