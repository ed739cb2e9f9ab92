"""The detectors as a whole: inputs of any size and content, gradient checkpointing, precision, learning."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mmcae.checkpoints import to_mmpretrain, to_official

MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'
CASCADE = 'configs/cascade_mask_rcnn/cascade-mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'
VITDET = 'configs/mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py'
VITDET_CASCADE = 'configs/cascade_mask_rcnn/cascade-mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py'
ALL = [MASK_RCNN, CASCADE, VITDET, VITDET_CASCADE]
RECIPES = pytest.mark.parametrize('recipe', ALL)


@RECIPES
def test_pretrained_weights_arrive(detector, pretrained, recipe):
    """Through init_cfg, into every block; the position table is resized from the checkpoint's square grid, the final norm left out."""
    model = detector(recipe)
    state = torch.load(pretrained, weights_only=True)
    for name, value in model.backbone.state_dict().items():
        if name != 'pos_embed':
            assert torch.equal(value, state[f'backbone.{name}']), name
    assert model.backbone.pos_embed.shape == (1, 1 + 6 * (6 if 'vitdet' in recipe else 10), 32)
    assert not any(name.startswith('backbone.norm') for name in model.state_dict())


@pytest.mark.parametrize('convert', [to_official, to_mmpretrain])
def test_checkpoints_of_other_layouts(detector, pretrained, convert):
    """The authors' and mmpretrain's give the same detector as ours."""
    wanted = detector().backbone.state_dict()
    torch.save(dict(model=convert(torch.load(pretrained, weights_only=True))), pretrained)
    found = detector().backbone.state_dict()
    assert set(found) == set(wanted) and all(torch.equal(value, wanted[name]) for name, value in found.items())


@RECIPES
def test_images_of_any_size(detector, batch, losses, recipe):
    """Portrait and landscape in one batch, padded to multiples of 32 or squares; then tiny, and one pixel wide."""
    model = detector(recipe).train()
    for sizes in [((50, 90), (90, 50)), ((33, 32),), ((64, 1), (1, 64)), ((160, 224),)]:
        loss, log = losses(model, batch(*sizes))
        loss.backward()
        assert torch.isfinite(loss), log
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    for sizes in [((50, 90), (90, 50)), ((1, 70),)]:
        results = model.test_step(batch(*sizes))
        for size, result in zip(sizes, results, strict=True):
            found = result.pred_instances
            assert found.masks.shape == (len(found), *size)


OBJECTS = dict(
    none=(),
    empty=((5.0, 5.0, 5.0, 20.0),),
    tiny=((5.0, 5.0, 5.2, 5.3),),
    whole=((0.0, 0.0, 64.0, 64.0),),
    twice=((8.0, 8.0, 40.0, 40.0),) * 2,
)


# ViTDet's boxes are learnt as logarithms of sizes, so its pipeline leaves out those without an area: see test_vitdet.py.
@pytest.mark.parametrize(
    ('recipe', 'kind'),
    [(recipe, kind) for recipe in ALL for kind in OBJECTS if kind != 'empty' or 'vitdet' not in recipe],
)
def test_objects_of_any_kind(detector, batch, losses, recipe, kind):
    """No object, boxes without an area, the whole image, the same box with two labels: the loss and its gradients stay finite."""
    model = detector(recipe).train()
    loss, log = losses(model, batch((64, 64), boxes=OBJECTS[kind]))
    loss.backward()
    assert torch.isfinite(loss) and loss > 0, log
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('recipe', [MASK_RCNN, VITDET])
def test_every_parameter_gets_a_gradient(detector, batch, losses, recipe):
    """What is built is used: nothing that distributed training would wait for in vain."""
    model = detector(recipe, model__train_cfg__rcnn__assigner__pos_iou_thr=0.3, model__train_cfg__rcnn__assigner__min_pos_iou=0.1).train()
    losses(model, batch((96, 96), (96, 96)))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('recipe', [MASK_RCNN, VITDET])
def test_gradient_checkpointing_changes_nothing(detector, batch, losses, recipe):
    """The same losses and gradients, drop path included."""
    data = batch((64, 96), (96, 64))
    results = []
    for with_cp in (False, True):
        model = detector(recipe, model__backbone__with_cp=with_cp, model__backbone__drop_path_rate=0.5).train()
        torch.manual_seed(1)
        loss, _ = losses(model, data)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (plain, wanted), (checkpointed, found) = results
    assert plain == checkpointed and set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7, msg=name)


def test_checkpointing_keeps_fewer_activations(detector, batch, losses):
    """What autograd keeps for the backward pass, in elements."""
    kept = []
    for with_cp in (False, True):
        model = detector(model__backbone__with_cp=with_cp).train()
        sizes = {}

        def pack(x, sizes=sizes):
            sizes[x.untyped_storage().data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            features = model.backbone(torch.randn(2, 3, 96, 160))
        assert all(f.requires_grad for f in features)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 3


@RECIPES
def test_bfloat16_trains(detector, small_recipe, batch, recipe):
    """Mixed precision as the recipe asks for it, in the only precision that a CPU has."""
    model = detector(recipe).train()
    wrapper = build_optim_wrapper(model, dict(small_recipe(recipe).optim_wrapper, dtype='bfloat16'))
    found = [float(model.train_step(batch((64, 96)), wrapper)['loss']) for _ in range(3)]
    assert all(map(torch.isfinite, map(torch.tensor, found)))
    assert wrapper.optimizer.param_groups[0]['params'][0].dtype == torch.float32


@pytest.mark.parametrize(
    ('recipe', 'names'),
    [
        (MASK_RCNN, ('loss', 'loss_cls', 'loss_mask', 'loss_rpn_cls')),
        (VITDET, ('loss_mask', 'loss_rpn_cls')),  # that of the boxes grows at first, as more of them are found
    ],
)
def test_loss_decreases(detector, batch, recipe, names):
    """Learns two images by heart."""
    model = detector(recipe, model__backbone__drop_path_rate=0.0).train()
    optimizer = dict(type='AdamW', lr=2e-3)
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=5.0)))
    data = batch((64, 64), (64, 64), boxes=((8.0, 8.0, 40.0, 36.0), (30.0, 20.0, 60.0, 60.0)))
    logs = [model.train_step(data, wrapper) for _ in range(25)]
    for name in names:
        first, last = (sum(float(log[name]) for log in part) / 5 for part in (logs[:5], logs[-5:]))
        assert last < 0.8 * first, (name, first, last)
