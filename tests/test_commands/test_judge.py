"""`mmcae judge` on what cannot be judged: one line on stderr that names the culprit and the remedy, and exit code 2."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.checkpoints import metadata, write_state_dict
from mmcae.models import CAEViT


@pytest.fixture
def encoder(tmp_path):
    """Write a tiny encoder that sees 4x4 patches, and return its path: `encoder('name.pth', patch_size=8)`."""

    def make(name='encoder.pth', patch_size=8):
        torch.manual_seed(0)
        model = CAEViT(arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=32, patch_size=patch_size)
        write_state_dict(tmp_path / name, model.state_dict(), metadata(model.spec))
        return tmp_path / name

    return make


@pytest.fixture
def judge(fork_tool, tmp_path):
    """Judge by quick settings; returns exit code and output."""

    def run(*arguments, cache='cache'):
        quick = ('--blocks', '1', '--draws', '2', '--device', 'cpu', '--out', tmp_path / 'out')
        return fork_tool('mmcae/__main__.py', 'judge', *arguments, *quick, env=dict(MMCAE_CACHE=str(tmp_path / cache)))

    return run


@pytest.fixture
def table(image_folder, tmp_path):
    """Write a table of twelve images, a cell for each: `table('label', 'ab' * 6)`; returns its path."""
    image_folder('pictures', (), 12)
    paths = sorted((tmp_path / 'pictures').iterdir())

    def make(*columns, extra=()):
        names, cells = columns[::2], columns[1::2]
        rows = [f'{path.relative_to(tmp_path)},{",".join(row)}' for path, row in zip(paths, zip(*cells, strict=True), strict=True)]
        (tmp_path / 'table.csv').write_text('\n'.join([','.join(('path', *names)), *rows, *extra]) + '\n')
        return tmp_path / 'table.csv'

    return make


@pytest.fixture
def scenes(image_folder, tmp_path):
    """Five images of 32x32 pixels with label maps of two classes."""
    image_folder('scenes/images', (), 5)
    (tmp_path / 'scenes/masks').mkdir()
    for path in (tmp_path / 'scenes/images').iterdir():
        Image.fromarray(np.tri(32, dtype=np.uint8)).save(tmp_path / 'scenes/masks' / f'{path.stem}.png')
    return tmp_path / 'scenes'


def refused(answer, *told):
    code, output = answer
    last = output.splitlines()[-1]
    assert code == 2 and 'Traceback' not in output, output
    assert all(part in last for part in told), last


def test_encoders(judge, encoder, table, tmp_path):
    data = table('label', 'ab' * 6)
    fine = encoder('fine.pth', patch_size=4)
    coarse = encoder()
    refused(judge(f'coarse={coarse}', f'fine={fine}', '--data', data), 'coarse sees images as 4x4 patches and fine as 8x8', '--grid 4 4')
    refused(judge(tmp_path / 'none.pth', '--data', data), 'none.pth')
    refused(judge('random', '--data', data), 'Name a checkpoint')
    (tmp_path / 'text.pth').write_text('no weights')
    refused(judge(tmp_path / 'text.pth', '--data', data), 'text.pth')
    refused(judge(coarse, '--data', data, '--probes', 'knn_segmentation'), "no labels for the probe 'knn_segmentation'", 'classes')


def test_labels(judge, encoder, table):
    encoder = encoder()
    refused(judge(encoder, '--data', table('label', 'aaaaaabbbbbc')), "class 'c' has one image", 'leave it out')
    split = ['train'] * 6 + ['val', 'val', 'val', 'test', 'test', 'test']
    refused(judge(encoder, '--data', table('split', split, 'label', 'ab' * 4 + 'abac')), "class 'c' has 1 image", 'none of them in train')
    refused(
        judge(encoder, '--data', table('split', split, 'furry', '111010101010', 'wild', '000000111111')), "has the tag 'wild'", 'column'
    )
    refused(judge(encoder, '--data', table('age', ['1', 'nan'] * 6)), "line 3: 'nan' in the column 'age' is no number")
    refused(judge(encoder, '--data', table('group', ['p1'] * 12, 'label', 'ab' * 6)), 'belong to one group, p1', 'give splits')
    one = ['p1'] * 6 + ['p2'] * 3 + ['p3'] * 3
    refused(judge(encoder, '--data', table('split', split, 'group', one, 'label', 'ab' * 6)), 'belong to one group, p3')
    refused(judge(encoder, '--data', table('label', 'ab' * 6, extra=['pictures/none.png,a'])), 'none.png does not exist')
    refused(judge(encoder, '--data', table('label', 'ab' * 6, extra=['pictures/000.jpg,b'])), 'lines 2 and 14', '000.jpg')
    refused(judge(encoder, '--data', table('label', 'ab' * 6), '--shots', '9', '--probes', 'few_shot'), 'Class a has', '--shots')
    refused(judge(encoder, '--data', table('label', 'ab' * 6), '--split-by', '('), '--split-by', '(')


def test_label_maps(judge, encoder, scenes):
    encoder = encoder()
    Image.fromarray(np.tri(20, 32, dtype=np.uint8)).save(scenes / 'masks/001.png')
    refused(judge(encoder, '--data', scenes), '001.png is 32x20 pixels', '001.png is 32x32', 'nearest')
    Image.fromarray(np.tri(32, dtype=np.uint8)).convert('RGB').save(scenes / 'masks/001.png')
    refused(judge(encoder, '--data', scenes), '001.png has 3 channels')
    (scenes / 'masks/001.png').unlink()
    refused(judge(encoder, '--data', scenes), '001.png has no label map', '1 of 5')
    for path in (scenes / 'images').iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(scenes / 'masks' / f'{path.stem}.png')
    (scenes / 'classes.txt').write_text('sky\nsea\n')
    refused(judge(encoder, '--data', scenes), 'all pixels of its label maps are ignored (255)')


def test_features_of_another_encoder_in_the_cache(judge, encoder, table, tmp_path):
    arguments = (encoder(), '--data', table('label', 'ab' * 6), '--probes', 'knn')
    assert judge(*arguments)[0] == 0
    (about,) = (tmp_path / 'cache/features').glob('*.json')
    about.write_text(json.dumps(dict(json.loads(about.read_text()), weights='others')))
    for result in (tmp_path / 'cache/results').iterdir():
        result.unlink()
    refused(judge(*arguments), f'{about.stem}.npy holds features of an encoder of other weights', 'Remove')
