"""configs/custom/ as people use them: tools/train.py on a folder, with nothing but options."""

import re
import shutil

import pytest
from mmengine.config import Config
from PIL import Image

SMALL = ['arch=tiny', 'embed_dims=192', 'image_size=32', 'patch_size=8', 'token_size=8', 'batch_size=4', 'num_workers=2', 'max_epochs=2']


@pytest.fixture
def messy_folder(image_folder):
    """20 images in two folders, some of other modes; five more files that cannot be read, and a text file."""
    root = image_folder(count=10, size=(40, 48))
    picture = Image.open(root / 'cat' / '001.png')
    picture.convert('CMYK').save(root / 'cat' / '000.jpg')
    picture.convert('L').save(root / 'dog' / '001.png')
    bad = root / 'dog' / 'bad'
    bad.mkdir()
    for number in range(4):
        (bad / f'{number}.png').write_bytes(b'no image')
    (bad / 'truncated.jpg').write_bytes((root / 'dog' / '000.jpg').read_bytes()[:300])
    (root / 'notes.txt').touch()
    return root


def test_one_command_on_a_folder(run_tool, messy_folder, tmp_path):
    config, work_dir = 'configs/custom/cae_vit-small_folder.py', tmp_path / 'run'
    options = ['--work-dir', work_dir, '--cfg-options', f'data_root={messy_folder}', *SMALL]
    code, output = run_tool('tools/train.py', config, *options, 'max_bad_files=0.3')
    assert code == 0, output
    assert f'25 images in 4 folders of {messy_folder}, left out: 1 files with other suffixes (.txt 1)' in output
    assert re.search(r'5 of 25 files \(20 %\) could not be read, others took their places:\n +\S+/dog/bad/0.png: ', output), output
    listed = (work_dir / 'bad_files.txt').read_text().splitlines()
    assert [line.split('\t')[0] for line in listed] == [
        f'{messy_folder}/dog/bad/{n}' for n in ('0.png', '1.png', '2.png', '3.png', 'truncated.jpg')
    ]
    dumped = Config.fromfile(work_dir / 'cae_vit-small_folder.py')
    assert dumped.train_dataloader.dataset.data_root == dumped.data_root == f'{messy_folder}/'
    assert dumped.default_hooks.checks.bad_files.max_share == 0.3 and dumped.model.backbone.img_size == 32
    assert (work_dir / 'epoch_2.pth').is_file()

    code, output = run_tool('tools/train.py', config, *options)
    assert code == 2 and 'Traceback' not in output, output
    message = output.strip().splitlines()[-1]
    assert re.match(r'error: \d of 25 files .* could not be read, more than max_bad_files=0.01 allows', message), message


def test_tissue_from_tiles_to_a_checkpoint(run_tool, tmp_path):
    tiles, work_dir = tmp_path / 'tissue', tmp_path / 'run'
    code, output = run_tool(
        'tools/dataset_converters/make_tissue_tiles.py', '--out', tiles, '--tiles', 24, '--slides', 4, '--side', 96, '--workers', 1
    )
    assert code == 0 and 'Wrote 24 tiles of 4 slides' in output, output
    options = [f'data_root={tiles}', f'mpp_table={tiles}/slides.csv', 'view_mpp=(0.3,0.6)', *SMALL, 'max_epochs=1']
    code, output = run_tool(
        'tools/train.py', 'configs/custom/cae_vit-small_histology.py', '--work-dir', work_dir, '--cfg-options', *options
    )
    assert code == 0 and f'24 images in 5 folders of {tiles}' in output, output
    assert (work_dir / 'epoch_1.pth').is_file() and not (work_dir / 'bad_files.txt').exists()

    shutil.copy(tiles / 'slides.csv', tmp_path / 'short.csv')
    code, output = run_tool(
        'tools/train.py',
        'configs/custom/cae_vit-small_histology.py',
        '--work-dir',
        work_dir,
        '--cfg-options',
        *options,
        f'mpp_table={tmp_path}/short.csv',
    )
    assert code == 2 and 'neither the tile nor a folder it is in stands in' in output.strip().splitlines()[-1], output


def test_packed_images_in_place_of_the_folder(run_tool, messy_folder, tmp_path):
    packed, work_dir = tmp_path / 'packed', tmp_path / 'run'
    code, output = run_tool(
        'tools/dataset_converters/pack_images.py', messy_folder, packed, '--workers', '0', '--max-bad-files', '0.3', '--shard-size', '0.02'
    )
    assert code == 0 and '20 of 25 files' in output and '5 unreadable' in output, output
    config, options = 'configs/custom/cae_vit-small_folder.py', [f'data_root={packed}', 'train_dataloader.dataset.type=mmcae.PackedImages']
    code, output = run_tool('tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *options, *SMALL, 'max_epochs=1')
    assert code == 0 and (work_dir / 'epoch_1.pth').is_file() and not (work_dir / 'bad_files.txt').exists(), output
