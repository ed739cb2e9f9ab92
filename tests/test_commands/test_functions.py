"""mmcae.train and mmcae.load_encoder; mmcae.embed has tests/test_apis/test_embedding.py."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mmcae
from mmcae.apis import extract_features
from mmcae.checkpoints import metadata, write_state_dict
from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError


def test_train_returns_the_last_checkpoint(tiny_classifier, image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_classifier()
    data = image_folder(size=(16, 16))
    with pytest.raises(ConfigError, match='train_dataloader.batch_sise'):
        mmcae.train(config, settings={'train_dataloader.batch_sise': 2})
    path = mmcae.train(config, tmp_path / 'run', settings={'train_dataloader.batch_size': 2}, data_root=data)
    assert path == tmp_path / 'run' / 'epoch_1.pth' and path.exists()
    path = mmcae.train(config, tmp_path / 'run', resume=True, settings={'train_cfg.max_epochs': 2}, data_root=data)
    assert path.name == 'epoch_2.pth' and torch.load(path, weights_only=False)['meta']['iter'] == 4 + 2


def test_load_encoder_gives_the_transform_too(tmp_path):
    model = CAEViT(dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=32)
    write_state_dict(tmp_path / 'encoder.pth', model.state_dict(), metadata(model.spec, None))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    encoder, transform = mmcae.load_encoder(tmp_path / 'encoder.pth', out_type='avg_featmap')
    assert not encoder.training and encoder.spec.embed_dims == 16
    expected = extract_features(tmp_path / 'encoder.pth', pixels, out_type='avg_featmap')
    for image in (tmp_path / 'image.png', Image.fromarray(pixels), pixels):
        tensor = transform(image)
        assert tensor.shape == (3, 32, 32) and tensor.dtype == torch.float32
        with torch.no_grad():
            assert np.allclose(encoder(tensor[None])[0], expected, atol=1e-5)


def test_importing_mmcae_imports_none_of_it():
    code = 'import mmcae, sys; assert not {"torch", "mmcae.apis", "mmcae.commands"} & set(sys.modules); mmcae.load_encoder; mmcae.embed'
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(AttributeError, match='no attribute .embedd'):
        _ = mmcae.embedd
