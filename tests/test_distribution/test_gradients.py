"""Every parameter gets a gradient in every step, so that distributed training needs no find_unused_parameters.

The recipes are too large for a test; on torch's meta device their graphs are built without numbers.
"""

from pathlib import Path

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmcae.models.methods.base import split_patches
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PRETRAINING = sorted(path for path in (CONFIGS / 'cae').glob('*.py') if 'deepspeed' not in path.name)
DOWNSTREAM = [
    path for folder in ('finetune', 'mask_rcnn', 'cascade_mask_rcnn', 'upernet') for path in sorted((CONFIGS / folder).glob('*.py'))
]


def without_gradient(model):
    """Names of the parameters that should have a gradient and have none."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


@pytest.mark.parametrize('align_loss_weight', [2.0, 0.0])
@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_pretraining_recipes(path, align_loss_weight):
    cfg = load_config(path, [f'model.align_loss_weight={align_loss_weight}'])
    cfg.model.target_generator = None
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        images, target = torch.empty(2, 3, 224, 224), torch.zeros(2, 98, dtype=torch.int64)
    mask = torch.arange(196).expand(2, -1) < 98
    visible, masked = split_patches(mask, images)
    losses = model.losses(target=target, prediction=(parts := model.forward_parts(images, visible, masked)).pop('logits'), **parts)
    assert ('loss_align' in losses) == bool(align_loss_weight)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert not without_gradient(model)


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda path: path.stem)
def test_encoders_of_the_recipes(path):
    backbone = load_config(path).model.backbone
    backbone.pop('init_cfg', None)
    with torch.device('meta'):
        encoder = MODELS.build(backbone).train()
        images = torch.empty(2, 3, 224, 224)
    sum(output.sum() for output in encoder(images)).backward()
    assert not without_gradient(encoder)


def train_once(name, inputs, samples):
    """One step of a config of configs/digits; returns the model."""
    cfg = load_config(CONFIGS / 'digits' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    for part in (cfg.model, cfg.model.get('backbone', {})):
        part.pop('init_cfg', None)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(cfg.model).train()
    losses = model(**model.data_preprocessor(dict(inputs=inputs, data_samples=samples), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    return model


@pytest.mark.parametrize('name', ['finetune_vit-digits', 'linear_vit-digits', 'attentive_vit-digits'])
def test_classification(name):
    model = train_once(name, torch.rand(4, 3, 32, 32) * 255, [DataSample().set_gt_label(label) for label in range(4)])
    assert not without_gradient(model)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize('name', ['dvae_digits', 'tokenizer_digits'])
def test_tokenizers(name):
    assert not without_gradient(train_once(name, torch.rand(8, 3, 32, 32) * 255, [DataSample() for _ in range(8)]))


def test_detection():
    data = demo_mm_inputs(2, [[3, 96, 96]] * 2, num_items=[3, 2], num_classes=10, with_mask=True)
    assert not without_gradient(train_once('mask_rcnn_vit-digits', data['inputs'], data['data_samples']))


def test_segmentation():
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 11, (1, 64, 64)))) for _ in range(2)]
    assert not without_gradient(train_once('upernet_vit-digits', list(torch.rand(2, 3, 64, 64) * 255), samples))
