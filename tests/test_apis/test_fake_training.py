"""Training steps without numbers: none waits for the device but where the list says, and no tensors of host and device meet."""

from pathlib import Path

import mmseg.models  # noqa: F401
import pytest
import torch

from mmcae.apis.fake_device import Wait
from mmcae.apis.fake_training import FakeTraining, Uninitialised, largest_size, training_pipeline
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RECIPES = [  # one of each kind in its full size; those of other sizes differ in numbers alone
    'cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k',
    'cae_v2/cae_v2_vit-tiny-p16_8xb256-amp-coslr-300e_in1k',
    'finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k',
    'upernet/upernet_vit-base-p16_cae-300e_8xb2-amp-160k_ade20k-512x512',
    'cae_v2/cae_v2_vit-large-p16_8xb256-amp-coslr-300e_in1k',
    'linear_probe/linear_vit-tiny-p16_cae-v2_8xb2048-amp-90e_in1k',
    'adapt/cae_v2_dinov2-vit-small_folder',
    'cae/cae_vit-base-p16_stored-tokens_32xb64-amp-coslr-300e_in1k',  # its store need not be there
    'tokenizer/dvae_folder',
]
DIGITS = [
    f'digits/{name}'
    for name in (
        'cae_vit-digits',
        'cae_no-align_vit-digits',
        'cae_pixels_vit-digits',
        'cae_teacher_vit-digits',
        'cae_v2_vit-digits',
        'cae_dvae_vit-digits',
        'beit_vit-digits',
        'simmim_vit-digits',
        'data2vec_vit-digits',
        'ijepa_vit-digits',
        'mae_vit-digits',
        'dvae_digits',
        'tokenizer_digits',
        'finetune_vit-digits',
        'linear_vit-digits',
        'attentive_vit-digits',
        'upernet_vit-digits',
    )
]

# The waits of every step that are left, by file: all in libraries, or after the update.
EVERY_STEP = {
    ('engine/amp.py', 'update_params'),
    ('mmengine/optim/optimizer/optimizer_wrapper.py', '_clip_grad'),
    ('mmengine/model/averaged_model.py', 'update_parameters'),
    ('mmpretrain/engine/optimizers/lars.py', 'step'),
    ('mmpretrain/models/losses/utils.py', 'convert_to_one_hot'),
    ('mmseg/models/losses/accuracy.py', 'accuracy'),
    ('models/targets/quantizer.py', 'learn'),
}


def fake(name, *options, **settings):
    return FakeTraining(load_config(CONFIGS / f'{name}.py', options), **settings)


@pytest.mark.parametrize('name', RECIPES + DIGITS)
def test_no_wait_for_the_device(name):
    """Nor do tensors of host and device meet."""
    run = fake(name, batch_size=4, device='meta')
    assert {parameter.device.type for parameter in run.model.parameters()} == {'meta'}
    with run.active():
        for _ in range(2):  # what happens in the first step alone may be missing in the second
            run.host.reads.clear()
            assert run.step()
    assert set(run.host.reads) <= EVERY_STEP
    assert all(parameter.grad is None for parameter in run.model.parameters())  # freed after the update


def test_mixed_precision():
    run = fake('cae_v2/cae_v2_vit-tiny-p16_8xb256-amp-coslr-300e_in1k', 'optim_wrapper.dtype=bfloat16', batch_size=2)
    dtypes = []
    run.model.predictor.fc.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with run.active():
        assert set(run.step()) == {'loss', 'loss_main'}
    assert dtypes == [torch.bfloat16]


@pytest.mark.skipif(torch.version.cuda is None, reason="needs torch's CUDA build, though no GPU")
@pytest.mark.parametrize('name', [RECIPES[0], *DIGITS])
def test_forward_passes_on_cuda(name):
    run = fake(name, batch_size=4, device='cuda')
    with run.active(), torch.no_grad(), run.optim_wrapper.optim_context(run.model):
        run.model(**run.model.data_preprocessor(dict(run.batch), True), mode='loss')


def broken(monkeypatch, loss, device='meta'):
    """A step of a model whose `losses` are changed."""
    run = fake('digits/cae_pixels_vit-digits', batch_size=2, device=device)
    original = run.model.losses
    monkeypatch.setattr(run.model, 'losses', lambda *args: loss(original(*args)))
    with run.active():
        run.step()


@pytest.mark.parametrize(
    'loss',
    [
        lambda losses: losses if losses['loss_main'] > 0 else {},
        lambda losses: dict(losses, value=losses['loss_main'].item()),
        lambda losses: dict(losses, count=losses['loss_main'].new_ones(4).nonzero()),
        lambda losses: dict(losses, loss_more=losses['loss_main'].new_ones(4)[losses['loss_main'].expand(4) > 0].sum()),
    ],
    ids=['bool', 'item', 'nonzero', 'mask as index'],
)
def test_waits_are_found(monkeypatch, loss):
    with pytest.raises(Wait) as error:
        broken(monkeypatch, loss)
    assert error.value.site[0].endswith('test_fake_training.py')


def test_tensors_of_two_devices_are_found(monkeypatch):
    with pytest.raises(Exception, match='two devices, meta and cpu'):
        broken(monkeypatch, lambda losses: dict(loss_main=losses['loss_main'] * torch.ones(2)))


def test_numbers_of_the_host_may_be_read():
    run = fake('digits/cae_vit-digits', batch_size=2)
    with run.active():
        assert int(run.batch['data_samples'][0].mask.sum()) > 0


@pytest.mark.parametrize(
    ('name', 'rois', 'positives', 'maps'),
    [('digits/mask_rcnn_vit-digits', 32, 8, 1), ('cascade_mask_rcnn/cascade-mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco', 512, 128, 4)],
)
def test_detectors_compute_what_train_cfg_allows(name, rois, positives, maps):
    """As many RoIs and positives as samplers may take, in each stage; and each RoI on one map of the pyramid."""
    run = fake(name, batch_size=2)
    head, classified, masked, aligned = run.model.roi_head, [], [], []
    for part, sizes in ((head.bbox_head, classified), (head.mask_head, masked)):
        for module in part if isinstance(part, torch.nn.ModuleList) else [part]:
            module.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(inputs[0])))
    stages = len(head.bbox_head) if isinstance(head.bbox_head, torch.nn.ModuleList) else 1
    extractor = head.bbox_roi_extractor[0] if stages > 1 else head.bbox_roi_extractor
    for layer in extractor.roi_layers:
        layer.register_forward_hook(lambda module, inputs, output: aligned.append(len(inputs[1])))
    with run.active():
        assert {'loss_rpn_cls', 'loss_rpn_bbox'} < set(run.step())
    assert classified == [2 * rois] * stages and masked == [2 * positives] * stages
    assert sum(aligned) == 2 * rois and len(aligned) == maps
    assert all(site in EVERY_STEP or site[0].startswith(('mmdet/', 'mmcv/', 'mmengine/')) for site in run.host.reads)


def test_operators_of_mmcv_are_themselves_afterwards():
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    run = fake('digits/mask_rcnn_vit-digits', batch_size=2)
    with run.active():
        pass
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1].tolist() == [0, 2]


@pytest.mark.parametrize(
    ('transforms', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800))], (800, 1333)),
        ([dict(type='RandomChoiceResize', scales=[(1333, 480), (1333, 800), (1333, 640)])], (800, 1333)),
        ([dict(type='RandomResize', scale=(1024, 1024), ratio_range=(0.1, 2)), dict(type='RandomCrop', crop_size=(640, 512))], (512, 640)),
        ([dict(type='Resize', scale=64), dict(type='PackDetInputs')], (64, 64)),
        ([dict(type='RandomChoice', transforms=[[dict(scale=(8, 9))], [dict(crop_size=(4, 4)), dict(scale=(10, 12))]])], (12, 10)),
        ([dict(type='RandomApply', transforms=[dict(scale=(8, 9))])], (9, 8)),
        ([dict(type='RandomResize', scale=(200, 100), ratio_range=(0.5, 2))], (200, 400)),
        ([dict(scale=(8, 9)), dict(type='RandomCrop', crop_size=(0.5, 0.9), crop_type='relative_range')], (9, 8)),
        ([dict(type='mmcae.OneViewCrop', size=(6, 7), scale=(0.2, 1.0))], (6, 7)),  # a share of the image, and (height, width)
        ([dict(type='Resize', scale=(8, 9)), dict(type='Pad', size=(12, 10))], (10, 12)),
        ([dict(type='Resize', scale=(8, 9)), dict(type='mmcae.HEDJitter', scale=0.15)], (9, 8)),
        ([dict(type='LoadImageFromFile')], None),
    ],
)
def test_largest_images_of_a_pipeline(transforms, size):
    assert largest_size(transforms) == size


def test_images_of_all_recipes_have_sides_of_16_pixels_and_more():
    for path in CONFIGS.glob('[!_]*/*.py'):
        cfg = load_config(path)
        if cfg.get('train_dataloader'):
            assert min(largest_size(training_pipeline(cfg)) or [16]) >= 16, path


def test_a_pipeline_without_a_size():
    with pytest.raises(ConfigError, match='mask_rcnn_vit-digits.py: no transform of the training pipeline says how large'):
        fake('digits/mask_rcnn_vit-digits', 'train_dataloader.dataset.pipeline=[dict(type="PackDetInputs")]')


PLAIN = ['optim_wrapper.constructor=DefaultOptimWrapperConstructor', 'optim_wrapper.paramwise_cfg=None']


@pytest.mark.parametrize(
    ('name', 'options', 'size'),
    [
        ('finetune', ['train_dataloader.dataset.dataset.pipeline.1.scale=48'], (48, 48)),
        ('linear', [], (32, 32)),  # the pipeline has no size: the encoder's
        ('finetune', ["model.backbone=dict(_delete_=True, type='ResNet', depth=18)", *PLAIN], (32, 32)),
        (
            'upernet',
            [
                'model.data_preprocessor.size=None',
                'model.data_preprocessor.size_divisor=64',
                'train_dataloader.dataset.pipeline=[dict(type="Resize", scale=(100, 60))]',
            ],
            (64, 128),
        ),
        ('tokenizer', [], (32, 32)),
    ],
)
def test_images_have_the_size_that_the_pipeline_gives(name, options, size):
    config = 'tokenizer_digits' if name == 'tokenizer' else f'{name}_vit-digits'
    assert fake(f'digits/{config}', *options, batch_size=2).batch['inputs'][0].shape[-2:] == size


def test_draws_within_bounds_end_whatever_the_memory_held():
    """torch repeats a truncated draw while a value lies outside; memory that is left uninitialised may hold such values for ever."""
    weight = torch.full((100, 100), 9.0)
    with Uninitialised():
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-2, b=2)
    assert torch.equal(weight, torch.full((100, 100), 9.0))
