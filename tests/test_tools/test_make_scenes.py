"""Scenes from class trees of other pictures: objects cut out of their ground, splits kept apart, annotations, refusals."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

TOOL = 'tools/dataset_converters/make_scenes.py'
SPLITS = ('train', 'val', 'test')


@pytest.fixture
def scenes(repository, monkeypatch):
    """The modules behind the tool: `scenes('files')`."""
    import importlib

    monkeypatch.syspath_prepend(repository / 'tools/dataset_converters')
    return lambda name: importlib.import_module(f'scenes.{name}')


def draw(name, split, number):
    """A disc in shades of grey on black (grey file), a red and blue rectangle on white (colour), a green triangle on nothing (alpha)."""
    brightness = 120 + 10 * number + dict(train=0, val=3, test=6)[split]
    y, x = np.mgrid[:20, :24]
    if name == 'disc':
        return Image.fromarray(np.where(np.hypot(x - 12, y - 10) < 8, brightness + x, 0).astype(np.uint8))
    if name == 'rectangle':
        pixels = np.full((20, 24, 3), 255, np.uint8)
        pixels[4:16, 2:12], pixels[4:16, 12:22] = (200, 0, brightness), (0, 0, brightness)
        return Image.fromarray(pixels)
    pixels = np.zeros((20, 24, 4), np.uint8)
    pixels[(x > 2) & (y > x - 2) & (y < 18)] = (0, brightness, 0, 255)
    return Image.fromarray(pixels)


@pytest.fixture
def tree(tmp_path):
    """Three classes of four pictures in each split."""
    for split in SPLITS:
        for name in ('disc', 'rectangle', 'triangle'):
            folder = tmp_path / 'tree' / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                draw(name, split, number).save(folder / f'{number}.png')
    (tmp_path / 'tree/train/.ipynb_checkpoints').mkdir()
    (tmp_path / 'tree/train/disc/Thumbs.db').write_bytes(b'no picture')
    return tmp_path / 'tree'


@pytest.fixture
def make(fork_tool, tree, tmp_path):
    def run(name='out', *options, source=tree):
        code, output = fork_tool(TOOL, source, '--out', tmp_path / name, '--scale', '0.005', '--workers', '1', *options)
        return code, output, tmp_path / name

    return run


def test_scenes_of_a_class_tree(make, tree, capsys):
    code, output, out = make()
    assert code == 0, output
    sources = json.loads((out / 'sources.json').read_text())['images']
    for path, used in sources.items():
        split = 'train' if path.startswith('pretrain/') else path.split('/')[1]
        assert {name.split('/')[0] for name in used['pictures'] + used['fragments']} == {split}
        assert all((tree / name).is_file() for name in used['pictures'] + used['fragments'])
    assert {path.rsplit('/', 1)[0] for path in sources} == {
        *(f'{kind}/{split}' for kind in ('scenes64', 'scenes96') for split in SPLITS),
        'pretrain/scenes64',
        'pretrain/scenes96',
    }
    for split in SPLITS:
        coco = COCO(str(out / f'annotations/scenes96_{split}.json'))
        classes = [category['name'] for category in coco.loadCats(coco.getCatIds())]
        assert classes == ['disc', 'rectangle', 'triangle'] and coco.getCatIds() == [1, 2, 3]
        for image in coco.loadImgs(coco.getImgIds()):
            path = f'scenes96/{split}/{image["file_name"]}'
            pixels, painted = np.asarray(Image.open(out / path)).astype(float), np.zeros((96, 96), np.uint8)
            objects = coco.loadAnns(coco.getAnnIds(image['id']))
            assert [classes[found['category_id'] - 1] for found in objects] == [name.split('/')[1] for name in sources[path]['pictures']]
            for found in objects:
                mask = coco.annToMask(found).astype(bool)
                assert not painted[mask].any()
                painted[mask] = found['category_id']
                ys, xs = np.nonzero(mask)
                x, y, w, h = found['bbox']
                assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) and found['area'] == mask.sum()
                # Coloured objects keep their colours; grey ones have become shades of one colour.
                red, green, blue = pixels[mask].mean(0)
                if found['category_id'] == 2:
                    assert blue > green + 40 and red > green + 20
                if found['category_id'] == 3:
                    assert green > red + 40 and green > blue + 40
            np.testing.assert_array_equal(painted, np.asarray(Image.open(out / path.replace('scenes96', 'scenes96_labels'))))
    capsys.readouterr()


def test_finished_scenes_are_left_alone_and_other_pictures_refused(make, tree):
    assert make()[0] == 0
    code, output, out = make()
    assert code == 0 and 'nothing to do' in output
    before = {path: path.read_bytes() for path in out.rglob('*.*')}
    marker = json.loads((out / 'picture_scenes.json').read_text())
    (out / 'picture_scenes.json').write_text(json.dumps({**marker, 'complete': False}))
    (out / 'sheet.png').unlink()
    assert make()[0] == 0 and {path: path.read_bytes() for path in out.rglob('*.*')} == before
    (tree / 'val/disc/0.png').rename(tree / 'val/disc/9.png')
    code, output, _ = make()
    assert code == 2 and 'made with' in output and 'Delete it' in output


def broken(kind):
    """Break a class tree in one way."""

    def change(tree):
        path = tree / 'train/disc/0.png'
        if kind == 'no split':
            (tree / 'val').rename(tree / 'validation')
        elif kind == 'other class':
            (tree / 'test/disc').rename(tree / 'test/ball')
        elif kind == 'empty class':
            for picture in (tree / 'test/disc').iterdir():
                picture.unlink()
        else:
            for path in (tree / 'train').rglob('*.png'):  # whichever is drawn first
                if kind == 'blank':
                    Image.fromarray(np.full((20, 24), 7, np.uint8)).save(path)
                elif kind == '16 bits':
                    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24)).save(path)
                else:
                    path.write_bytes(path.read_bytes()[:60])

    return change


@pytest.mark.parametrize(
    'kind, said',
    [
        ('no split', ('tree/val', 'class folders')),
        ('other class', ("'ball'", 'test')),
        ('empty class', ('test/disc', 'no pictures')),
        ('blank', ('.png', 'plain ground')),
        ('16 bits', ('.png', '8 bits')),
        ('cut off', ('.png', 'Repair it')),
    ],
)
def test_broken_trees_are_refused_by_name(make, tree, kind, said):
    broken(kind)(tree)
    code, output, _ = make()
    assert code == 2 and all(word in output.splitlines()[-1] for word in said), output


def test_a_missing_tree_and_folders_of_others_are_refused(make, tree, tmp_path):
    code, output, _ = make(source=tmp_path / 'nothing')
    assert code == 2 and 'nothing' in output.splitlines()[-1]
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/holiday.jpg').write_bytes(b'precious')
    code, output, out = make(tree / 'train/scenes')
    assert code == 2 and 'lies in' in output.splitlines()[-1] and not out.exists()
    code, output, _ = make('photos')
    assert (
        code == 2 and 'not empty' in output.splitlines()[-1] and [path.name for path in (tmp_path / 'photos').iterdir()] == ['holiday.jpg']
    )


# ---------------------------------------------------------------- cutting out, and COCO's masks


def test_an_object_is_what_differs_from_the_ground_with_its_holes(scenes):
    ring = np.zeros((20, 30), np.uint8)
    ring[5:15, 10:24] = 200
    ring[8:12, 14:20] = 0
    for image in (Image.fromarray(ring), Image.fromarray(ring).convert('RGB'), Image.fromarray(255 - ring)):
        picture = scenes('pictures').cut_out(image)
        cover = np.asarray(picture.cover)
        assert cover.shape == (14, 18) and picture.side == 14 and picture.texture.mode == 'L'
        assert (cover[2:-2, 2:-2] == 255).all() and cover.sum() == 255 * 10 * 14
        np.testing.assert_array_equal(np.asarray(picture.texture)[2:-2, 2:-2], np.asarray(image.convert('L'))[5:15, 10:24])


def test_transparency_is_ground_in_every_mode(scenes):
    colours = np.full((8, 8, 4), (10, 200, 30, 0), np.uint8)
    colours[2:6, 3:5, 3] = 255
    whole = Image.fromarray(colours)
    palette = whole.convert('RGB').quantize(4)
    pixels = np.asarray(palette).copy()
    pixels[2:6, 3:5] = 1
    palette = Image.fromarray(pixels)
    palette.putpalette([10, 200, 30, 200, 0, 0])
    palette.info['transparency'] = 0
    for image in (whole, palette):
        assert np.asarray(scenes('pictures').cut_out(image).cover).sum() == 255 * 8


def test_large_pictures_are_reduced(scenes):
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[100:200, 100:300] = (255, 0, 0)
    picture = scenes('pictures').cut_out(Image.fromarray(pixels))
    assert picture.side in range(31, 35) and picture.texture.mode == 'RGB'


@pytest.mark.parametrize('kind', ['random', 'empty', 'full', 'corner', 'long runs'])
def test_masks_are_compressed_as_pycocotools_does(scenes, kind):
    mask = dict(
        random=np.random.default_rng(0).random((37, 53)) < 0.4,
        empty=np.zeros((5, 7), bool),
        full=np.ones((300, 200), bool),
        corner=np.arange(12).reshape(3, 4) < 1,
    ).get(kind, np.add.outer(np.arange(400), np.arange(300)) % 331 > 200)
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    files = scenes('files')
    assert files.compress(files.run_lengths(mask)).encode() == expected['counts']
    if mask.any():
        instance = files.coco_instance(3, mask)
        assert instance['segmentation'] == dict(size=list(mask.shape), counts=expected['counts'].decode())
        assert instance['area'] == coco_mask.area(expected)


def test_no_pycocotools_is_needed(fork_tool, tree, repository, tmp_path):
    """Neither by the scenes of class trees nor by those of digits: it is replaced by a module that cannot be imported."""
    tools, small = repository / 'tools/dataset_converters', ('--scale', '0.001', '--workers', '1', '--out')
    (tmp_path / 'hidden').mkdir()
    (tmp_path / 'hidden/pycocotools.py').write_text('raise ImportError("not here")')
    for name, arguments in {'make_digit_scenes.py': (), 'make_scenes.py': (tree,)}.items():
        argv = [str(word) for word in (tools / name, *arguments, *small, name)]
        (tmp_path / 'without.py').write_text(
            'import runpy, sys\n'
            'for name in [name for name in sys.modules if name.startswith("pycocotools")]:\n    del sys.modules[name]\n'
            f'sys.path[:0] = {[str(tmp_path / "hidden"), str(tools)]}\nsys.argv = {argv}\n'
            'runpy.run_path(sys.argv[0], run_name="__main__")\n'
        )
        code, output = fork_tool(tmp_path / 'without.py', cwd=tmp_path)
        assert code == 0, output
        assert (tmp_path / name / 'annotations/scenes96_val.json').is_file()
