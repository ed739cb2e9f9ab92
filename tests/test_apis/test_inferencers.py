"""Our configs and checkpoints in the inferencers of mmpretrain, mmdet and mmsegmentation, by file and by name."""

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.registry import DefaultScope
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, get_model, list_models
from mmpretrain.apis import ModelHub
from mmseg.apis import MMSegInferencer

from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config
from mmcae.utils.packaged import CONFIGS, find_config

CLASSES = [str(number) for number in range(10)]


@pytest.fixture
def trained(tmp_path):
    """A config's name and a scope -> its path, and a checkpoint with random weights."""

    def make(name, scope, classes):
        path = find_config(name)
        cfg = load_config(path)
        cfg.model.backbone.init_cfg = None
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build({'data_preprocessor': cfg.get('data_preprocessor'), **cfg.model})
        palette = [(number, number, number) for number in range(len(classes))]
        meta = dict(dataset_meta=dict(classes=classes, palette=palette))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'model.pth')
        return str(path), str(tmp_path / 'model.pth'), model.eval()

    return make


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def test_mmpretrain(trained, image):
    config, checkpoint, source = trained('digits/finetune_vit-digits', 'mmpretrain', CLASSES)
    model = get_model(config, pretrained=checkpoint)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in source.state_dict().items())
    (result,) = ImageClassificationInferencer(config, pretrained=checkpoint)(image)
    assert result['pred_class'] == CLASSES[result['pred_label']]
    ((features,),) = FeatureExtractor(config, pretrained=checkpoint)(image)
    assert features.shape == (96,)


def test_mmpretrain_by_name():
    """The index of models lies in the package; registering it is one line."""
    index = CONFIGS.parent / 'model-index.yml'
    ModelHub.register_model_index(str(index), config_prefix=str(CONFIGS.parent))
    name = 'finetune_vit-tiny-p16_cae-v2_8xb128-amp-100e_in1k'
    assert name in list_models('*cae-v2*')
    assert get_model(name, backbone=dict(init_cfg=None)).backbone.embed_dims == 192


def test_mmdet(trained, image):
    config, checkpoint, _ = trained('digits/mask_rcnn_vit-digits', 'mmdet', CLASSES)
    (result,) = DetInferencer(config, checkpoint, device='cpu')(image)['predictions']
    assert {'labels', 'scores', 'bboxes', 'masks'} <= set(result)


def test_mmsegmentation(trained, image):
    config, checkpoint, _ = trained('digits/upernet_vit-digits', 'mmseg', ['ground', *CLASSES])
    assert MMSegInferencer(config, checkpoint, device='cpu')(image)['predictions'].shape == (48, 48)
