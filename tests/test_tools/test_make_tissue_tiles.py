"""The generated tissue: the same files from the same arguments, tables that fit them, and colours of the two stains."""

import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

from mmcae.datasets.transforms.tissue import rgb_to_stains

TOOL = 'tools/dataset_converters/make_tissue_tiles.py'


@pytest.fixture
def make(run_tool, tmp_path):
    def run(name, *options):
        code, output = run_tool(TOOL, '--out', tmp_path / name, '--tiles', 30, '--slides', 3, '--side', 64, *options)
        assert code == 0, output
        return tmp_path / name

    return run


def contents(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob('*.*')}


def table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_the_same_whatever_the_number_of_processes(make):
    one, two, other = make('one', '--workers', 1), make('two', '--workers', 2), make('other', '--seed', 1)
    assert contents(one) == contents(two)
    assert set(contents(one).values()).isdisjoint(set(contents(other).values()))

    tiles, slides = table(one / 'tiles.csv'), table(one / 'slides.csv')
    assert {tile['path'] for tile in tiles} == {path for path in contents(one) if path.endswith('.jpg')} and len(tiles) == 30
    assert [(slide['path'], slide['patient']) for slide in slides] == [
        ('patient000_slide0', 'patient000'),
        ('patient000_slide1', 'patient000'),
        ('patient001_slide0', 'patient001'),
    ]
    resolutions = {slide['path']: slide['mpp'] for slide in slides}
    assert all(tile['mpp'] == resolutions[tile['slide']] in ('0.25', '0.5') for tile in tiles)
    amounts = {}
    for tile in tiles:
        pixels = np.asarray(Image.open(one / tile['path']))
        assert pixels.shape == (64, 64, 3)
        amounts.setdefault(tile['tissue'], []).append(rgb_to_stains(pixels).reshape(-1, 3).mean(axis=0))
    haematoxylin, eosin, dab = (np.mean(amounts['epithelium'], axis=0) - 0).tolist()
    assert haematoxylin > 0.1 and eosin > 0.1 and abs(dab) < 0.1
    if 'glass' in amounts:
        assert np.abs(np.mean(amounts['glass'], axis=0)).max() < 0.1


@pytest.mark.parametrize(('options', 'message'), [(['--tiles', '2'], '--tiles at least --slides'), (['--side', '8'], '--side at least 16')])
def test_refused(run_tool, tmp_path, options, message):
    code, output = run_tool(TOOL, '--out', tmp_path / 'new', *options)
    assert code == 2 and message in output


def test_nothing_is_overwritten(run_tool, tmp_path):
    (tmp_path / 'mine.txt').touch()
    code, output = run_tool(TOOL, '--out', tmp_path)
    assert code == 2 and 'is not empty' in output and [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_folder_that_cannot_be_made(run_tool, tmp_path):
    (tmp_path / 'file').write_text('')
    code, output = run_tool(TOOL, '--out', tmp_path / 'file/tissue', '--tiles', 2, '--slides', 2)
    assert code == 2 and output.splitlines()[-1].startswith('error: Not a directory') and 'Traceback' not in output
