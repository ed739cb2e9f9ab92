"""The configs of three tasks for one checkpoint build models that give what the task needs, with the encoder's weights."""

import pytest
import timm
import torch
from mmengine.registry import DefaultScope

from mmcae.apis import load_encoder
from mmcae.commands.main import main
from mmcae.models import CAEViT
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

SCOPES = dict(classification='mmpretrain', detection='mmdet', segmentation='mmseg')


@pytest.fixture(params=['cae', 'dinov2'])
def checkpoint(request, tmp_path):
    """Of CAE, with a description; of DINOv2 with patches of 14 and registers, as timm stores it."""
    if request.param == 'cae':
        encoder = CAEViT(arch=dict(embed_dims=48, num_layers=4, num_heads=4), img_size=64)
        content = dict(state_dict=encoder.state_dict(), meta=dict(encoder=encoder.spec.to_dict()))
    else:
        content = timm.create_model('vit_small_patch14_reg4_dinov2', img_size=56, num_classes=0).state_dict()
    torch.save(content, tmp_path / 'encoder.pth')
    return tmp_path / 'encoder.pth'


@pytest.mark.parametrize('task', SCOPES)
def test_model_of_a_task(checkpoint, task, tmp_path, capfd):
    main(['configs', 'for', str(checkpoint), task])
    (tmp_path / 'mine.py').write_text(capfd.readouterr().out)
    cfg, source = load_config(tmp_path / 'mine.py'), load_encoder(checkpoint)
    assert cfg.model.backbone.init_cfg.checkpoint == str(checkpoint)
    with DefaultScope.overwrite_default_scope(SCOPES[task]):
        model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    expected, found = source.state_dict(), model.backbone.state_dict()
    for name in ('vit.blocks.3.attn.proj.weight', 'blocks.3.attn.proj.weight'):
        if name in expected:
            assert torch.equal(found[name], expected[name])
    if task == 'classification':
        assert model.head.fc.in_features == source.embed_dims
        return
    patch = source.patch_size[0]
    maps = model.eval().backbone(torch.rand(1, 3, 2 * patch, 4 * patch))
    maps = (model.neck[0] if task == 'detection' else model.neck)(maps)
    assert [tuple(one.shape[1:]) for one in maps] == [(source.embed_dims, *size) for size in ((8, 16), (4, 8), (2, 4), (1, 2))]
    if task == 'detection':
        assert [stride[0] for stride in model.rpn_head.prior_generator.strides][:4] == [patch / 4, patch / 2, patch, 2 * patch]
    else:
        assert all(side % (2 * patch) == 0 for side in model.test_cfg.crop_size)
        assert cfg.train_dataloader.dataset.pipeline[3].crop_size == model.test_cfg.crop_size


def test_unknown_task(checkpoint, capfd):
    with pytest.raises(SystemExit):
        main(['configs', 'for', str(checkpoint), 'detect'])
    assert "no configs for 'detect'; did you mean 'detection'" in capfd.readouterr().err
