"""The reference equals what the authors' code computed, wherever their golden files are; some of its properties hold everywhere."""

import random

import numpy as np
import pytest
import timm
import torch
from reference import cae_v2, dalle, dense, golden
from reference.cae import ARCHITECTURES, solve
from reference.examples import CAE_V2, Weights, dense_state, example, pretraining_state
from reference.layers import position_table
from reference.masks import block_mask
from scipy.ndimage import label

CAE_FILES = ('cae_tiny.pt', 'cae_tiny_small_decoder.pt')
CAE_V2_FILES = ('caev2/caev2_tiny.pt', 'caev2/caev2_tiny_small_decoder.pt')


@pytest.fixture
def authors():
    """The tensors of a golden file; skips the test where it is not."""

    def load(name):
        if not golden.present(name):
            pytest.skip(f'no golden file {golden.FOLDER / name}; name their folder in MMCAE_GOLDEN')
        return golden.load(name)

    return load


def assert_same(found, wanted, tolerance, name=''):
    """Compare what the reference found, part by part, with what the authors' code did."""
    if torch.is_tensor(found):
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, msg=lambda text: f'{name}: {text}')
    elif isinstance(found, dict):
        assert set(found) == set(wanted), name
        for key, value in found.items():
            assert_same(value, wanted[key], tolerance, f'{name}.{key}')
    elif isinstance(found, list):
        assert len(found) == len(wanted), name
        for number, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same(*pair, tolerance, f'{name}[{number}]')
    else:
        assert found == (pytest.approx(wanted, abs=tolerance) if isinstance(wanted, float) else wanted), name


def assert_same_layout(found, wanted):
    """Names in their order, shapes and precisions."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name


def parts(tensors, found):
    """Those parts of a golden file that were computed, not given."""
    return {name: value for name, value in tensors.items() if name in found}


@pytest.mark.parametrize('name', CAE_FILES)
def test_cae(authors, name):
    """Latents, logits, losses, gradients in double precision, and four steps of training."""
    file = authors(name)
    given = (file['state_dict'], file['image'], file['mask'], file['token_ids'])
    found = solve(file['config'], *given, rate=file['sgd_trajectory']['lr'])
    assert set(file) - set(found) == {'config', 'state_dict', 'image', 'mask', 'token_ids'}
    assert_same(found, parts(file, found), 1e-12, name)
    assert_same_layout(pretraining_state(file['config'], file['config']['vocab_size'], Weights(0)), file['state_dict'])


@pytest.mark.parametrize('name', CAE_V2_FILES)
def test_cae_v2(authors, name):
    file = authors(name)
    given = (file['state_dict'], file['image'], file['mask'], file['target_features'])
    found = cae_v2.solve(file['config'], *given, rate=file['sgd_trajectory']['lr'])
    assert set(file) - set(found) == {'config', 'state_dict', 'image', 'mask', 'target_features'}
    gradients, wanted = found.pop('grads'), file.pop('grads')
    assert_same(found, parts(file, found), 1e-11, name)
    assert_same(gradients, wanted, 1e-8, 'grads')  # stored in single precision
    assert_same_layout(pretraining_state(file['config'], file['config']['num_out_dim'], Weights(0)), file['state_dict'])


def test_clip(authors):
    """Their tower ran in single precision."""
    file = authors('caev2/clip_visual_tiny.pt')
    found = cae_v2.solve_clip(file['config'], file['state_dict'], file['image'], file['image_resized'])
    assert_same(found, parts(file, found), 1e-5, 'clip')


def test_segmentation(authors):
    file = authors('cae_downstream_tiny.pt')
    resize = file['pos_embed_resize']
    given = (file['state_dict'], file['input'], resize['src'], resize['src_grid'], resize['dst_grid'])
    assert_same(found := dense.solve_segmentation(file['config'], *given), parts(file, found), 2e-6, 'segmentation')
    assert_same_layout(dense_state(file['config'], Weights(0)), file['state_dict'])
    for number in range(file['config']['depth']):
        index = file['state_dict'][f'blocks.{number}.attn.relative_position_index']
        assert torch.equal(dense.offset_index(*dense.grid_of(file['config'])), index)


def test_detection(authors):
    file = authors('cae_detection_tiny.pt')
    assert_same(found := dense.solve_detection(file['config'], file['state_dict'], file['inputs']), parts(file, found), 2e-6, 'detection')
    table = dense.resize_table(file['ckpt_pos_embed'], file['ckpt_grid'], dense.grid_of(file['config']))
    torch.testing.assert_close(table, file['state_dict']['pos_embed'], rtol=0, atol=1e-6)
    assert_same_layout(dense_state(file['config'], Weights(0)), file['state_dict'])


def test_dalle(authors):
    file = authors('dalle_encoder_tiny.pt')
    assert_same(found := dalle.solve(file['state_dict'], file['image01']), parts(file, found), 1e-5, 'dalle')


def test_position_table(authors):
    """Theirs is computed in single precision."""
    for name in (*CAE_FILES, *CAE_V2_FILES):
        state, config = authors(name)['state_dict'], authors(name)['config']
        grid = [config['img_size'] // config['patch_size']] * 2
        for key in ('encoder.pos_embed', 'rd_pos_embed'):
            torch.testing.assert_close(position_table(*grid, state[key].shape[-1]), state[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(('name', 'number'), [('masks.json', None), ('caev2/masks_caev2.json', 0), ('caev2/masks_caev2.json', 1)])
def test_masks(authors, name, number):
    """2,000 masks have the statistics of the authors' 4,000: five standard errors of the difference."""
    file = authors(name) if number is None else authors(name)[number]
    config, wanted = file['config'], file.get('large_sample', file)
    random.seed(0)
    drawn = 2000
    sizes = (config['height'], config['width'], config['num_masking_patches'], config['min_num_patches'], config['max_num_patches'])
    masks = np.array([block_mask(*sizes) for _ in range(drawn)])
    assert set(masks.sum((1, 2))) == set(file['counts'])
    error = (1 / drawn + 1 / wanted['num_samples']) ** 0.5
    expected = np.array(wanted['mean_mask'])
    assert np.all(np.abs(masks.mean(0) - expected) < 5 * error * np.sqrt(expected * (1 - expected)))
    measures = dict(
        masked_components_4conn=[label(mask)[1] for mask in masks],
        masked_components_8conn=[label(mask, np.ones((3, 3)))[1] for mask in masks],
        visible_components_4conn=[label(~mask)[1] for mask in masks],
        boundary_length=[(mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum() for mask in masks],
    )
    for measure, values in measures.items():
        assert abs(np.mean(values) - wanted[measure]['mean']) < 5 * error * wanted[measure]['std'], measure


# ---------------------------------------------------------------- what holds without the golden files


def test_the_authors_encoders_have_twelve_heads_but_the_large_one():
    assert {name: heads for name, (_, _, heads) in ARCHITECTURES.items()} == dict(tiny=12, small=12, base=12, large=16)
    for width, _, heads in ARCHITECTURES.values():
        assert width % heads == 0


@pytest.mark.parametrize('name', CAE_V2)
def test_every_token_of_cae_v2_counts_the_same(name):
    """The loss is no mean of the means over the three kinds of tokens; the regressor's last norm has no part in it."""
    found = example(name)
    masked, tokens = found['config']['num_masked'], found['config']['num_patches'] + 1
    visible = tokens - 1 - masked
    assert found['loss'] == pytest.approx((found['loss_cls'] + visible * found['loss_visible'] + masked * found['loss_masked']) / tokens)
    assert found['no_grad'] == ['regresser.norm.weight', 'regresser.norm.bias']
    lengths = torch.cat([found['prediction'], found['labels']]).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    raster = cae_v2.reorder(found['prediction_raster'], found['order'])
    torch.testing.assert_close(raster, found['prediction'], rtol=0, atol=0)
    steps = [step['loss'] for step in found['sgd_trajectory']['steps']]
    assert steps[0] == found['loss'] > steps[-1]


def test_clip_is_that_of_timm():
    """By OpenAI's names through timm's own conversion, in timm's model with QuickGELU."""
    found = example('clip')
    config = found['config']
    sizes = dict(embed_dim=config['width'], depth=config['layers'], num_heads=config['heads'], num_classes=config['output_dim'])
    size = config['patch_size'] * config['grid_src']
    model = timm.create_model('vit_base_patch16_clip_quickgelu_224', img_size=size, **sizes).eval()
    state = {name: tensor.float() for name, tensor in found['state_dict'].items()}
    model.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, model))
    with torch.no_grad():
        tokens = model.head(model.forward_features(found['image'].float()))
    torch.testing.assert_close(tokens, found['tokens'], rtol=0, atol=1e-5)
