"""reconstruct: the pictures show what was masked, what was predicted, and what the tokenizer makes of it."""

import numpy as np
import pytest
import torch
from PIL import Image

import mmcae.models
from mmcae.apis import load_pretrained, reconstruct
from mmcae.models.targets import PatchCodebook
from mmcae.utils.errors import CheckpointError, ConfigError

PREPROCESSOR = dict(
    type='mmpretrain.TwoNormDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    second_mean=[0.0, 0.0, 0.0],
    second_std=[255.0, 255.0, 255.0],
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def codebook(tmp_path):
    """A trained tokenizer of 24 tokens over 8x8 patches: the view it needs is half as large as the model's."""
    tokenizer = PatchCodebook(vocab_size=24, patch_size=8)
    tokenizer.training_loss(torch.rand(16, 3, 32, 32))
    torch.save(dict(state_dict=tokenizer.state_dict()), tmp_path / 'tokenizer.pth')
    return dict(type='mmcae.PatchCodebook', checkpoint=str(tmp_path / 'tokenizer.pth'))


@pytest.fixture
def model(tiny_cae, codebook):
    model = tiny_cae(target_generator=codebook, data_preprocessor=PREPROCESSOR)
    model.target_generator.load_state_dict(torch.load(codebook['checkpoint'])['state_dict'])  # tiny_cae makes all weights random
    return model.eval()


def test_the_masked_patches_and_only_they_are_grey(model, image):
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[3, 0] = True
    result = reconstruct(model, image, mask)
    np.testing.assert_array_equal(result.image, image)
    hidden = (result.masked != image).any(axis=2)
    assert hidden[16:32, 32:48].mean() > 0.95 and hidden[48:, :16].mean() > 0.95
    assert (result.masked[16:32, 32:48] == 128).all()
    hidden[16:32, 32:48] = hidden[48:, :16] = False
    assert not hidden.any()


def test_visible_patches_show_their_own_tokens_and_masked_ones_the_predicted(model, image):
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    result = reconstruct(model, image, mask)
    assert result.predicted.shape == (32, 32, 3)
    np.testing.assert_array_equal(result.predicted[16:], result.tokenized[16:])
    assert (result.predicted[:16] != result.tokenized[:16]).any()
    # The tokens by hand.
    tokenizer = model.target_generator
    small = torch.from_numpy(resized(image, 32)).permute(2, 0, 1)[None] / 255
    true = tokenizer.tokenize(small)
    normalized = (torch.from_numpy(image).float() - torch.tensor(PREPROCESSOR['mean'])) / torch.tensor(PREPROCESSOR['std'])
    logits = model.predict(normalized.permute(2, 0, 1)[None], torch.from_numpy(mask).flatten()[None])['logits']
    guess = logits.argmax(-1)[0]
    assert result.accuracy == pytest.approx((guess == true.flatten()[:8]).float().mean().item())
    tokens = torch.cat((guess, true.flatten()[8:])).view(1, 4, 4)
    drawn = tokenizer.decode(tokens, reference=small)[0].permute(1, 2, 0) * 255
    np.testing.assert_allclose(result.predicted, drawn.numpy(), atol=1)


def resized(image, side):
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def test_a_perfect_prediction_looks_like_the_tokenizer_alone(model, image, monkeypatch):
    true = model.target_generator.tokenize(torch.from_numpy(resized(image, 32)).permute(2, 0, 1)[None] / 255)
    monkeypatch.setattr(model, 'predict', lambda images, mask: dict(logits=torch.eye(24)[true.flatten(1)[mask]][None]))
    result = reconstruct(model, image, 0.5)
    assert result.accuracy == 1
    np.testing.assert_array_equal(result.predicted, result.tokenized)


def test_a_share_masks_so_many_patches_at_random_by_seed(model, image):
    masks = [reconstruct(model, image, 0.75, seed=seed).mask for seed in (1, 1, 2)]
    assert [mask.sum() for mask in masks] == [12, 12, 12]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_other_sizes(model):
    image = np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8)
    result = reconstruct(model, image, 0.5, img_size=(32, 96))
    assert result.image.shape == (32, 96, 3) and result.mask.shape == (2, 6) and result.predicted.shape == (16, 48, 3)


@pytest.mark.parametrize('normalize', [False, True])
def test_pixel_targets_have_pictures_but_no_accuracy(tiny_cae, image, normalize):
    target = dict(type='mmcae.PixelTargets', patch_size=16, normalize=normalize)
    model = tiny_cae(target_generator=target, decoder=dict(num_outputs=768), data_preprocessor=PREPROCESSOR).eval()
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    result = reconstruct(model, image, mask)
    assert result.accuracy is None
    np.testing.assert_allclose(result.tokenized, image, atol=1)
    np.testing.assert_allclose(result.predicted[16:], image[16:], atol=1)
    assert (result.predicted[:16] != image[:16]).any()


@pytest.mark.parametrize('loss', ['mse', 'cosine'])
@pytest.mark.parametrize('method', ['CAE', 'CAEv2'])
def test_features_of_a_teacher_are_drawn_as_colours(method, loss, image):
    """One colour for each patch; visible ones have the teacher's, masked ones another."""
    encoder = dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=2, num_heads=4), img_size=64)
    parts = dict(
        backbone=encoder,
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, embed_dims=48, num_heads=4, num_layers=1),
        target_generator=dict(type='mmcae.Teacher', model=encoder, loss=loss),
        data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=PREPROCESSOR['mean'], std=PREPROCESSOR['std']),
    )
    if method == 'CAE':
        parts['decoder'] = dict(type='mmcae.CAEDecoder', embed_dims=48, num_heads=4, num_layers=1, num_outputs=None)
    torch.manual_seed(0)
    model = getattr(mmcae.models, method)(**parts).eval()
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    result = reconstruct(model, image, mask)
    assert result.accuracy is None and result.predicted.shape == (64, 64, 3)
    np.testing.assert_array_equal(result.predicted[32:], result.tokenized[32:])
    assert (result.predicted[:32] != result.tokenized[:32]).any()
    assert len(np.unique(result.tokenized[:16, :16].reshape(-1, 3), axis=0)) == 1


def test_bad_masks_are_refused(model, image):
    with pytest.raises(ConfigError, match=r'shape \(4, 4\)'):
        reconstruct(model, image, np.ones((3, 4), bool))
    with pytest.raises(ConfigError, match='shape'):
        reconstruct(model, image, np.ones((4, 4), int))
    with pytest.raises(ConfigError, match='between 1 and 15'):
        reconstruct(model, image, 1.0)


def test_a_model_without_tokenizer_is_refused(tiny_cae, image):
    with pytest.raises(ConfigError, match='no tokenizer'):
        reconstruct(tiny_cae(), image)


CONFIG = """
default_scope = 'mmpretrain'
data_preprocessor = {preprocessor!r}
model = dict(
    type='mmcae.CAE',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64),
    regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, embed_dims=48, num_heads=4, num_layers=2),
    decoder=dict(type='mmcae.CAEDecoder', embed_dims=48, num_heads=4, num_layers={layers}, num_outputs=24),
    target_generator={tokenizer!r},
)
"""


def write_config(path, codebook, layers=2):
    path.write_text(CONFIG.format(preprocessor=PREPROCESSOR, tokenizer=codebook, layers=layers))
    return path


def test_from_config_and_checkpoint(model, codebook, image, tmp_path):
    config = write_config(tmp_path / 'config.py', codebook)
    checkpoint = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    loaded, direct = reconstruct((config, checkpoint), image, seed=3), reconstruct(model, image, seed=3)
    np.testing.assert_array_equal(loaded.predicted, direct.predicted)
    assert loaded.accuracy == direct.accuracy


def test_a_checkpoint_of_another_model_is_refused(model, codebook, tmp_path):
    checkpoint = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    with pytest.raises(CheckpointError, match='decoder.blocks.2'):
        load_pretrained(write_config(tmp_path / 'config.py', codebook, layers=3), checkpoint)
    (tmp_path / 'other.py').write_text("default_scope = 'mmpretrain'\nmodel = dict(type='mmcae.PatchCodebook')\n")
    with pytest.raises(ConfigError, match='PatchCodebook'):
        load_pretrained(tmp_path / 'other.py', checkpoint)


def test_grey_images_are_drawn_in_grey(tiny_cae):
    """Pixel targets of one channel: the pictures have three equal ones."""
    model = tiny_cae(
        backbone=dict(in_channels=1),
        decoder=dict(num_outputs=None),
        target_generator=dict(type='mmcae.PixelTargets', patch_size=16, in_channels=1),
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[127.5], std=[50.0]),
    ).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    result = reconstruct(model, image)
    assert result.accuracy is None
    for picture in (result.image, result.masked, result.predicted, result.tokenized):
        assert picture.shape == (64, 64, 3) and (picture == picture[..., :1]).all()
    np.testing.assert_array_equal(result.image[..., :1], image)
    np.testing.assert_allclose(result.tokenized[..., :1], image, atol=1)
