"""Features that are kept: computed once, told apart by all they depend on, and never those of another encoder."""

import json

import numpy as np
import pytest
import torch

from mmcae.evaluation.block_features import block_tokens, patch_features, pooled_features
from mmcae.evaluation.feature_cache import kept_features, kept_result
from mmcae.models import CAEViT, TimmEncoder
from mmcae.utils.errors import ConfigError, DataError

ABOUT = dict(encoder=dict(width=2), weights='w1', data='d1', view='v1')
VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


def kept(folder, about=ABOUT, parts=(VALUES[:2], VALUES[2:])):
    calls = []

    def compute():
        calls.append(1)
        return iter(parts)

    return np.array(kept_features(about, (3, 2), 'float32', compute, folder)), len(calls)


def test_computed_once_for_each_content(tmp_path):
    assert kept(tmp_path)[1] == 1
    values, calls = kept(tmp_path)
    assert calls == 0 and (values == VALUES).all()
    for name in ABOUT:
        assert kept(tmp_path, dict(ABOUT, **{name: 'other'}))[1] == 1


def test_features_of_another_encoder_and_damage_are_refused(tmp_path):
    kept(tmp_path)
    (about,) = tmp_path.glob('*.json')
    content = json.loads(about.read_text())
    about.write_text(json.dumps(dict(content, weights='w2')))
    with pytest.raises(DataError, match='holds features of an encoder of other weights. Remove '):
        kept(tmp_path)
    about.write_text(json.dumps(content))
    about.with_suffix('.npy').write_bytes(b'\x93NUMPY')
    with pytest.raises(DataError, match='is damaged'):
        kept(tmp_path)


def test_interrupted_computation_leaves_nothing(tmp_path):
    def parts():
        yield VALUES[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path, parts=parts())
    assert kept(tmp_path)[1] == 1
    with pytest.raises(DataError, match='Features of 2 images were computed, and 3'):
        kept(tmp_path, dict(ABOUT, data='d2'), (VALUES[:2],))


def test_results(tmp_path):
    assert kept_result(ABOUT, lambda: [1], tmp_path) == [1]
    assert kept_result(ABOUT, lambda: [2], tmp_path) == [1]
    assert kept_result(dict(ABOUT, data='d2'), lambda: [2], tmp_path) == [2]
    for path in tmp_path.glob('*.json'):
        path.write_text('{')
    assert kept_result(ABOUT, lambda: [3], tmp_path) == [3]


def test_where_nothing_can_be_kept_it_is_computed(tmp_path):
    (tmp_path / 'file').touch()
    for _ in range(2):
        values, calls = kept(tmp_path / 'file')
        assert calls == 1 and (values == VALUES).all()
    assert kept_result(ABOUT, lambda: [1], tmp_path / 'file') == [1]


def test_where_there_is_no_room_nothing_is_kept(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=47))  # of 24 bytes
    assert kept_features(ABOUT, (3, 2), 'float32', lambda: iter([VALUES]), tmp_path, in_memory=False) is None
    assert kept(tmp_path)[1] == kept(tmp_path)[1] == 1
    assert not list(tmp_path.glob('*.npy'))
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=48))
    assert kept(tmp_path)[1] == 1
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(free=0))  # what is there already needs none
    assert kept(tmp_path)[1] == 0


def test_block_tokens_are_those_of_out_indices():
    torch.manual_seed(0)
    settings = dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2), img_size=32, patch_size=8, out_type='raw')
    encoder = CAEViT(**settings).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = block_tokens(encoder, images, (0, -1))
    last = encoder(images)[-1]
    torch.testing.assert_close(tokens[:, 1], last)
    cut = CAEViT(**{**settings, 'arch': dict(settings['arch'], num_layers=1)}).eval()
    cut.load_state_dict({name: value for name, value in encoder.state_dict().items() if not name.startswith(('blocks.1', 'blocks.2'))})
    torch.testing.assert_close(tokens[:, 0], cut(images)[-1])
    pooled = pooled_features(encoder, images, 9)
    assert pooled.shape == (2, 3, 2, 16)
    torch.testing.assert_close(pooled[:, -1], torch.stack((last[:, 0], last[:, 1:].mean(dim=1)), dim=1))
    patches = patch_features(encoder, images, 2)
    assert patches.shape == (2, 16, 2, 16)
    torch.testing.assert_close(patches[:, :, 1], last[:, 1:])
    torch.testing.assert_close(patches[:, :, 0], block_tokens(encoder, images, (1,))[:, 0, 1:])
    with pytest.raises(ConfigError, match='Block 3 is not there'):
        block_tokens(encoder, images, (3,))


def test_blocks_of_an_encoder_of_timm_without_cls():
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    encoder = TimmEncoder('vit_base_patch16_siglip_224', **sizes, out_type='raw').eval()
    images = torch.randn(2, 3, 32, 32)
    pooled = pooled_features(encoder, images, 2)
    assert (pooled[:, :, 0] == 0).all()
    torch.testing.assert_close(pooled[:, 1, 1], encoder.encode(images).mean(dim=1))
