"""Uploading what was exported; the formats themselves are in tests/test_checkpoints/test_formats.py."""

import huggingface_hub
import pytest
import torch

from mmcae.commands.main import main
from mmcae.models import CAEViT


@pytest.fixture
def checkpoint(tmp_path):
    encoder = CAEViT(arch=dict(embed_dims=24, num_layers=1, num_heads=2), img_size=32)
    torch.save(dict(state_dict=encoder.state_dict(), meta=dict(encoder=encoder.spec.to_dict())), tmp_path / 'encoder.pth')
    return str(tmp_path / 'encoder.pth')


class Hub:
    """Remembers what it is asked for."""

    calls = []

    def whoami(self):
        return dict(name='me')

    def create_repo(self, repo, **settings):
        self.calls.append((repo, settings))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        return f'https://hub/{repo_id}'


@pytest.mark.parametrize('to', ['hf', 'timm'])
def test_push(checkpoint, to, tmp_path, monkeypatch, capfd):
    """The folder as it was written, into a repository that is private when it is new."""
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    monkeypatch.setattr(Hub, 'calls', [])
    main(['export', checkpoint, str(tmp_path / 'out'), '--to', to, '--push', 'me/encoder'])
    (repo, settings), (_, files) = Hub.calls
    assert repo == 'me/encoder' and settings == dict(private=True, exist_ok=True)
    assert files == sorted(path.name for path in (tmp_path / 'out').iterdir()) and 'config.json' in files
    assert 'Uploaded to https://hub/me/encoder' in capfd.readouterr().out


def test_without_login(checkpoint, tmp_path, monkeypatch, capfd):
    """Said before anything is written."""

    class NoLogin(Hub):
        def whoami(self):
            raise OSError('Token is required, but no token found. Log in.')

    monkeypatch.setattr(huggingface_hub, 'HfApi', NoLogin)
    with pytest.raises(SystemExit):
        main(['export', checkpoint, str(tmp_path / 'out'), '--to', 'hf', '--push', 'me/encoder'])
    assert '--push needs a login at the Hugging Face Hub (hf auth login, or HF_TOKEN): Token is required' in capfd.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_only_folders_are_pushed(checkpoint, tmp_path, capfd):
    with pytest.raises(SystemExit):
        main(['export', checkpoint, str(tmp_path / 'out.onnx'), '--to', 'onnx', '--push', 'me/encoder'])
    assert '--push uploads the folders of timm and hf, not what --to onnx writes' in capfd.readouterr().err
