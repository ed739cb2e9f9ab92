"""The embedded data as the tool writes it: formats, splits by source digit, occlusion, determinism, and care for folders of others."""

import json
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

TOOL = 'tools/dataset_converters/make_digit_scenes.py'
SPLITS = ('train', 'val', 'test')


@pytest.fixture(scope='module')
def provenance(digit_scenes):
    return json.loads((digit_scenes / 'sources.json').read_text())


def fingerprints(folder):
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*')) if p.is_file()}


def split_of(path):
    return path.split('/')[1] if not path.startswith('pretrain/') else 'train'


def test_the_images_are_those_of_every_version_so_far(digit_scenes):
    """Published results depend on them. A change of them is one of VERSION in tools/dataset_converters/scenes/making.py, too."""
    digest = sha256()
    for path in sorted(digit_scenes.rglob('*.*')):
        digest.update(str(path.relative_to(digit_scenes)).encode())
        digest.update(np.asarray(Image.open(path)).tobytes() if path.suffix == '.png' else path.read_bytes())
    assert digest.hexdigest() == '6f243c30addfe75aa00534e74c65fbf2df9a922839e761d0ef15e93a3363ea38'


def test_no_source_digit_stands_in_two_splits(provenance):
    parts = [set(provenance['splits'][split]) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(load_digits().target)
    for path, used in provenance['images'].items():
        allowed = set(provenance['splits'][split_of(path)])
        assert set(used['digits']) <= allowed and set(used['fragments']) <= allowed, path


def test_no_two_splits_share_an_equal_source_image(provenance):
    images = load_digits().images
    parts = [{images[i].tobytes() for i in provenance['splits'][split]} for split in SPLITS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_every_image_is_listed_and_readable(digit_scenes, provenance):
    on_disk = {str(p.relative_to(digit_scenes)) for p in digit_scenes.rglob('*.png') if '_labels' not in str(p) and p.name != 'sheet.png'}
    assert on_disk == set(provenance['images'])
    sides = Counter()
    for path in on_disk:
        image = Image.open(digit_scenes / path)
        assert image.mode == 'RGB' and image.width == image.height
        sides[path.rsplit('/', 1)[0].replace('pretrain/', '').split('/')[0], image.width] += 1
    assert sides == {
        ('classification', 32): 180,
        ('tiles32', 32): 160,
        ('scenes64', 64): 60 + 40,
        ('scenes96', 96): 60 + 20,
    }


def test_class_folders_hold_their_digit(digit_scenes, provenance):
    target = load_digits().target
    counts = Counter()
    for path, used in provenance['images'].items():
        if path.startswith('classification/'):
            _, split, folder, _ = path.split('/')
            assert [str(target[i]) for i in used['digits']] == [folder]
            assert len(used['fragments']) <= 2
            counts[split, folder] += 1
    assert {count for (split, _), count in counts.items() if split == 'train'} == {12} and len(counts) == 30


@pytest.mark.parametrize('split', SPLITS)
def test_coco_masks_are_the_label_maps(digit_scenes, provenance, split, capsys):
    coco = COCO(str(digit_scenes / f'annotations/scenes96_{split}.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list('0123456789')
    target = load_digits().target
    for image in coco.loadImgs(coco.getImgIds()):
        path = f'scenes96/{split}/{image["file_name"]}'
        labels = np.asarray(Image.open(digit_scenes / path.replace('scenes96', 'scenes96_labels')))
        instances = coco.loadAnns(coco.getAnnIds(image['id']))
        painted = np.zeros_like(labels)
        for instance in instances:
            mask = coco.annToMask(instance).astype(bool)
            assert not painted[mask].any(), 'visible parts must not overlap'
            painted[mask] = instance['category_id']
            ys, xs = np.nonzero(mask)
            x, y, w, h = instance['bbox']
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert instance['area'] == mask.sum() > 30
        np.testing.assert_array_equal(painted, labels)
        assert sorted(i['category_id'] - 1 for i in instances) == sorted(target[provenance['images'][path]['digits']])
        assert 1 <= len(instances) <= 4
    capsys.readouterr()


def test_digits_are_brighter_than_the_background(digit_scenes):
    inside, outside = [], []
    for path in (digit_scenes / 'scenes64/train').iterdir():
        grey = np.asarray(Image.open(path).convert('L')).astype(float)
        labels = np.asarray(Image.open(digit_scenes / 'scenes64_labels/train' / path.name))
        inside.append(grey[labels > 0].mean())
        outside.append(np.median(grey[labels == 0]))
    assert np.mean(np.array(inside) > np.array(outside)) > 0.95
    assert np.mean(inside) > np.mean(outside) + 50


def test_result_depends_on_the_seed_and_not_on_the_workers(run_tool, tmp_path):
    def make(name, *options):
        code, output = run_tool(TOOL, '--out', tmp_path / name, '--scale', '0.001', *options)
        assert code == 0, output
        return fingerprints(tmp_path / name)

    one, two, other = make('one', '--workers', '1'), make('two', '--workers', '3'), make('other', '--seed', '1')
    assert one == two
    changed = [path for path in one if path.endswith('.png') and one[path] != other.get(path)]
    assert len(changed) == len([path for path in one if path.endswith('.png')])
    splits = [json.loads((tmp_path / name / 'sources.json').read_text())['splits'] for name in ('one', 'other')]
    assert splits[0] == splits[1]  # another seed makes other scenes, but moves no digit to another split


def test_finished_data_is_left_alone_and_interrupted_data_completed(run_tool, tmp_path):
    out = tmp_path / 'digits'
    command = (TOOL, '--out', out, '--scale', '0.001', '--workers', '1')
    assert run_tool(*command)[0] == 0
    before = fingerprints(out)
    times = {path: (out / path).stat().st_mtime_ns for path in before}
    code, output = run_tool(*command)
    assert code == 0 and 'nothing to do' in output
    assert times == {path: (out / path).stat().st_mtime_ns for path in before}

    marker = json.loads((out / 'digit_scenes.json').read_text())
    (out / 'digit_scenes.json').write_text(json.dumps({**marker, 'complete': False}))
    (out / 'sheet.png').unlink()
    assert run_tool(*command)[0] == 0
    assert fingerprints(out) == before


def test_folders_of_others_and_other_settings_are_refused(run_tool, tmp_path):
    foreign = tmp_path / 'photos'
    foreign.mkdir()
    (foreign / 'holiday.jpg').write_bytes(b'precious')
    code, output = run_tool(TOOL, '--out', foreign)
    assert code == 2 and 'not empty' in output and '--out' in output
    assert [p.name for p in foreign.iterdir()] == ['holiday.jpg']

    ours = tmp_path / 'ours'
    ours.mkdir()
    (ours / 'digit_scenes.json').write_text(json.dumps({'version': 1, 'seed': 0, 'scale': 0.5, 'complete': True}))
    code, output = run_tool(TOOL, '--out', ours)
    assert code == 2 and "'scale': 0.5" in output and 'Delete it' in output
    code, output = run_tool(TOOL, '--out', foreign / 'holiday.jpg')
    assert code == 2 and 'is a file' in output


@pytest.mark.parametrize('option', [('--scale', '0'), ('--scale', 'much'), ('--workers', '0'), ('--seed', '-1')])
def test_impossible_options_are_refused(run_tool, tmp_path, option):
    code, output = run_tool(TOOL, '--out', tmp_path / 'new', *option)
    assert code == 2 and option[0] in output
    assert not (tmp_path / 'new').exists()
