"""The segmentation recipes against the numbers of the paper's protocol: settings, parameter groups, learning rates, pipelines."""

import re
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

FOLDER = 'configs/upernet'
# lr, layer decay, drop path, layer scale, blocks that give features, iterations between checkpoints
RECIPES = {
    'upernet_vit-base-p16_cae-300e_8xb2-amp-160k_ade20k-512x512': (3e-4, 0.65, 0.1, 0.1, (3, 5, 7, 11), 8000),
    'upernet_vit-base-p16_cae-800e_8xb2-amp-160k_ade20k-512x512': (2e-4, 0.65, 0.1, 0.1, (3, 5, 7, 11), 8000),
    'upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512': (1e-4, 0.65, 0.1, 0.1, (3, 5, 7, 11), 8000),
    'upernet_vit-large-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512': (4e-5, 0.95, 0.15, 1e-5, (7, 11, 15, 23), 32000),
    'upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_voc12-512x512': (1e-4, 0.65, 0.1, 0.1, (3, 5, 7, 11), 8000),
}
BASE = 'upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512'
OURS = dict(LoadAnnotations='mmcae.LoadLabelMap')
LARGE = 'upernet_vit-large-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512'


@pytest.fixture
def recipe(repository):
    return lambda name: load_config(repository / FOLDER / f'{name}.py')


@pytest.fixture
def without_storage(recipe):
    """A recipe and its model with all shapes and names, but without memory behind the parameters."""

    def build(name):
        cfg = recipe(name)
        init_default_scope('mmseg')
        with torch.device('meta'):
            return cfg, MODELS.build(cfg.model)

    return build


def test_every_recipe_is_listed(repository):
    assert {path.stem for path in (repository / FOLDER).glob('upernet_vit-*.py')} == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_settings(recipe, name):
    cfg = recipe(name)
    lr, layer_decay, drop_path, layer_scale, out_indices, interval = RECIPES[name]
    wrapper, backbone = cfg.optim_wrapper, cfg.model.backbone
    optimizer = dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05)
    assert wrapper == dict(
        type='mmcae.AmpOptimWrapper',
        optimizer=optimizer,
        constructor='mmcae.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=layer_decay),
    )
    assert (backbone.drop_path_rate, backbone.layer_scale_init_value, backbone.out_indices) == (drop_path, layer_scale, out_indices)
    assert backbone.arch == ('large' if 'large' in name else 'base')
    epochs = name.split('cae-')[1].split('e_')[0]
    assert Path(backbone.init_cfg.checkpoint).stem == f'cae_vit-{backbone.arch}-p16_{epochs}e'
    assert backbone.use_rel_pos_bias and not backbone.final_norm and backbone.img_size == (512, 512)
    assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg == dict(type='mmcae.IterBasedTrainLoop', max_iters=160000, val_interval=16000)
    assert cfg.default_hooks.checkpoint.interval == interval
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))


@pytest.mark.parametrize('name', RECIPES)
def test_model(without_storage, name):
    cfg, model = without_storage(name)
    width, depth = (1024, 24) if 'large' in name else (768, 12)
    assert len(model.backbone.blocks) == depth
    # 63 * 63 offsets between patches of the 32 * 32 grid, and three rows for cls
    assert {block.attn.relative_position_bias_table.shape for block in model.backbone.blocks} == {(63 * 63 + 3, width // 64)}
    assert model.backbone.pos_embed.shape == (1, 1 + 32 * 32, width)
    assert len(list(model.backbone.norm.parameters())) == 0
    norms = [type(module).__name__ for module in model.modules() if 'BatchNorm' in type(module).__name__]
    assert norms and set(norms) == {'SyncBatchNorm'}
    classes = 21 if 'voc12' in name else 150
    for head, channels, weight in ((model.decode_head, width, 1.0), (model.auxiliary_head, 256, 0.4)):
        assert (head.num_classes, head.channels, head.loss_decode.loss_weight) == (classes, channels, weight)
        assert head.conv_seg.out_channels == classes and not head.align_corners and head.dropout_ratio == 0.1
    assert model.auxiliary_head.in_index == 2 and len(model.auxiliary_head.convs) == 1
    assert [stage[0].output_size for stage in model.decode_head.psp_modules] == [1, 2, 3, 6]


@pytest.mark.parametrize('name', (BASE, LARGE))
def test_learning_rate_and_decay_of_every_parameter(without_storage, name):
    cfg, model = without_storage(name)
    lr, rate, depth = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.layer_decay_rate, len(model.backbone.blocks)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert set(found) == set(names.values())
    for parameter, (got_lr, got_decay) in found.items():
        part = parameter.split('.')
        if parameter.startswith('backbone.blocks.'):
            power = depth - int(part[2])
        else:
            power = depth + 1 if part[0] == 'backbone' else 0
        assert got_lr == pytest.approx(lr * rate**power), parameter
        vector = model.get_parameter(parameter).ndim == 1
        assert got_decay == (0.0 if vector else 0.05), parameter
    # Three that are easily missed: the cls token and the bias tables are decayed, the pyramid has the full learning rate.
    assert found['backbone.cls_token'] == (pytest.approx(lr * rate ** (depth + 1)), 0.05)
    assert found['backbone.blocks.0.attn.relative_position_bias_table'] == (pytest.approx(lr * rate**depth), 0.05)
    assert found['neck.scales.0.0.weight'] == (pytest.approx(lr), 0.05)
    assert 'backbone.pos_embed' not in found


def test_learning_rate_of_every_iteration(recipe):
    """A linear decay that starts at iteration 0, times a linear warm-up of 1500 iterations from 1e-6."""
    cfg = recipe(BASE)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedulers = [PARAM_SCHEDULERS.build(dict(settings, optimizer=optimizer)) for settings in cfg.param_scheduler]
    for iteration in range(cfg.train_cfg.max_iters):
        wanted = 1e-4 * (1 - iteration / 160000)
        if iteration < 1500:
            wanted *= 1e-6 + (1 - 1e-6) * iteration / 1500
        got = optimizer.param_groups[0]['lr']
        assert abs(got - wanted) < 1e-5 * wanted, (iteration, got, wanted)
        if iteration == 0:
            optimizer.step()  # mmengine warns of schedulers without it
        for scheduler in schedulers:
            scheduler.step()


def test_pipelines_are_mmsegs(recipe):
    """Augmentation and layout of ADE20K are those of the config that mmseg documents; label maps are checked when they are loaded."""
    ours = recipe(BASE)
    theirs = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/_base_/datasets/ade20k.py')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        got, wanted = ours[loader].dataset, theirs[loader].dataset
        # mmseg's file repeats an argument that it calls deprecated: the dataset decides.
        pipeline = [{k: v for k, v in step.items() if k != 'reduce_zero_label'} for step in wanted.pipeline]
        assert [dict(step) for step in got.pipeline] == [dict(step, type=OURS.get(step['type'], step['type'])) for step in pipeline]
        assert (got.type, got.data_root, got.data_prefix) == (wanted.type, wanted.data_root, wanted.data_prefix)
    assert ours.model.data_preprocessor.seg_pad_val == 255 and ours.model.data_preprocessor.bgr_to_rgb


def test_scales_of_test_time_augmentation(recipe):
    scales, flips = recipe(BASE).tta_pipeline[1].transforms[:2]
    assert [step.scale for step in scales] == [(1024, 256), (1536, 384), (2048, 512), (2560, 640), (3072, 768), (3584, 896)]
    assert [step.prob for step in flips] == [0.0, 1.0]


def test_voc_is_a_file_of_few_lines(repository):
    for path in ('_base_/datasets/voc12_512x512.py', f'upernet/{list(RECIPES)[-1]}.py'):
        lines = [line for line in (repository / 'configs' / path).read_text().splitlines() if line and not line.startswith('#')]
        assert len(lines) <= 10


def test_examples_in_the_documentation(repository, tmp_path):
    """The config files that docs/segmentation.md shows can be used as they stand, next to the recipes."""
    blocks = re.findall(r'```python\n(.*?)```', (repository / 'docs/segmentation.md').read_text(), re.DOTALL)
    configs = []
    for number, block in enumerate(blocks):
        path = tmp_path / f'example{number}.py'
        path.write_text(block.replace("'./", f"'{repository / FOLDER}/"))
        configs.append(load_config(path))
    crop, own, binary = configs
    assert crop.train_dataloader.dataset.pipeline[3] == dict(type='RandomCrop', crop_size=(640, 640), cat_max_ratio=0.75)
    assert crop.model.backbone.img_size == crop.model.data_preprocessor.size == crop.model.data_preprocessor.test_cfg.size == (640, 640)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = own[loader].dataset
        assert (dataset.type, dataset.data_root, dataset.reduce_zero_label) == ('BaseSegDataset', 'data/leaves/', False)
        assert len(dataset.metainfo.classes) == own.model.decode_head.num_classes == own.model.auxiliary_head.num_classes == 3
        assert dataset.data_prefix.img_path == ('images/train' if loader == 'train_dataloader' else 'images/val')
        assert dataset.pipeline[-1].type == 'PackSegInputs'
    loaders = [step for step in (*binary.train_dataloader.dataset.pipeline, *binary.val_dataloader.dataset.pipeline) if 'remap' in step]
    assert [dict(step) for step in loaders] == [dict(type='mmcae.LoadLabelMap', remap={255: 1})] * 2
    assert binary.tta_pipeline[1].transforms[2][0].remap == {255: 1} and binary.model.decode_head.num_classes == 2
    assert binary.test_dataloader.dataset.data_prefix.seg_map_path == 'masks/val'
