"""One tree of images for two purposes: pretraining leaves nothing in it, and hidden folders in it are no classes."""

import shutil

import numpy as np
import pytest
import tifffile

PRETRAINING = """
_base_ = ['{root}/configs/digits/cae_pixels_vit-digits.py']
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='mmcae.ImageFolder', data_root='{data}', pipeline=_base_.train_pipeline),
)
train_cfg = dict(max_iters=2)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=1, end=2, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=2))
"""


def everything(root):
    """Names, contents and times of a tree."""
    return {
        path.relative_to(root): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.read_bytes() if path.is_file() else None)
        for path in [root, *root.rglob('*')]
    }


def test_labelled_runs_before_and_after_pretraining(fork_tool, classification_config, image_folder, tmp_path, repository):
    root = tmp_path / 'images'
    labelled = ('tools/train.py', classification_config, '--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    code, output = fork_tool(*labelled, '--work-dir', tmp_path / 'before')
    assert code == 0, output
    for hidden in ('.ipynb_checkpoints', '.mmcae'):
        shutil.copytree(root / 'dog', root / hidden)
    before = everything(root)
    (tmp_path / 'pretrain.py').write_text(PRETRAINING.replace('{root}', str(repository)).replace('{data}', str(root)))
    code, output = fork_tool('tools/train.py', tmp_path / 'pretrain.py', '--work-dir', tmp_path / 'pretrained')
    assert code == 0 and f'8 images in 3 folders of {root}, left out: 2 hidden entries' in output, output
    assert f'Remove it by: rm -r {root}/.mmcae' in output
    code, output = fork_tool(*labelled, '--work-dir', tmp_path / 'after')
    assert code == 0, output
    assert everything(root) == before


@pytest.mark.parametrize('brightest', [255, 65535])
def test_labelled_images_of_sixteen_bits(fork_tool, classification_config, tmp_path, brightest):
    """They are read, or refused where nothing would be left of them."""
    random = np.random.default_rng(0)
    for label in ('cat', 'dog'):
        for path in (tmp_path / 'images' / label).iterdir():
            tifffile.imwrite(path.with_suffix('.tif'), random.integers(0, brightest, (16, 16), np.uint16), photometric='minisblack')
            path.unlink()
    options = ('--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    code, output = fork_tool('tools/train.py', classification_config, '--work-dir', tmp_path / 'run', *options)
    if brightest == 65535:
        assert code == 0, output
    else:
        line = output.strip().splitlines()[-1]
        assert code == 2 and '.tif cannot be read as an image: its 16-bit unsigned numbers reach only 25' in line, output
