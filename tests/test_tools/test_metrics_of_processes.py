"""Metrics are those of all images, however many processes they were divided over; an odd number of images makes one process repeat one."""

import json

import pytest
import torch

from mmcae.compat import has_accelerator
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

pytestmark = pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')


@pytest.mark.parametrize(
    ('config', 'images', 'metric', 'changes'),
    [
        ('classification_config', 7, 'accuracy/top1', ()),
        # The network was never trained: its boxes are compared too, of which hardly one hits a square.
        ('detection_config', 3, 'coco/bbox_mAP', ('test_evaluator.outfile_prefix={folder}/boxes',)),
        ('segmentation_config', 3, 'mIoU', ()),
    ],
)
def test_two_processes_find_what_one_finds(request, fork_tool, tmp_path, config, images, metric, changes):
    path = request.getfixturevalue(config)
    cfg = load_config(path)
    torch.manual_seed(3)
    model = MODELS.build(dict(cfg.model, type=f'{cfg.default_scope}.{cfg.model.type}', _scope_=cfg.default_scope))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'random.pth')
    changes = ('--cfg-options', f'test_dataloader.dataset.indices={images}', *changes)
    found = []
    for processes in (1, 2):
        own = [change.replace('{folder}/', f'{tmp_path}/{processes}') for change in changes]
        arguments = (path, tmp_path / 'random.pth', '--work-dir', tmp_path / f'{processes}', *own)
        code, output = fork_tool('tools/test.py', *arguments, processes=processes)
        assert code == 0, output
        found.append(json.loads((tmp_path / f'{processes}' / 'metrics.json').read_text()))
    assert found[0] == pytest.approx(found[1], abs=1e-6, nan_ok=True)
    if config == 'detection_config':
        boxes = [sorted(json.dumps(box) for box in json.loads((tmp_path / f'{n}boxes.bbox.json').read_text())) for n in (1, 2)]
        assert boxes[0] == boxes[1] and len(boxes[0]) == 3 * 5
    else:
        assert found[0][metric] > 0
