"""Fashion-MNIST from its IDX files: trees, splits, pixels, interruption, and refusals that name the file."""

import gzip
import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOL = 'tools/dataset_converters/fashion_mnist.py'
NAMES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
PER_CLASS = {'train': 12, 't10k': 3}
DEBIAN = Path('/usr/share/datasets/fashion-mnist')


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b''.join(length.to_bytes(4, 'big') for length in array.shape) + array.tobytes()


@pytest.fixture(scope='module')
def arrays():
    """Pictures and labels like those of the four files, 120 and 30 of them; the classes are mixed."""
    rng, made = np.random.default_rng(0), {}
    for part, count in PER_CLASS.items():
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), count))
        made[f'{part}-images-idx3-ubyte'] = rng.integers(0, 256, (len(labels), 28, 28), np.uint8)
        made[f'{part}-labels-idx1-ubyte'] = labels
    return made


@pytest.fixture
def source(arrays, tmp_path):
    folder = tmp_path / 'source'
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    return folder


@pytest.fixture
def convert(fork_tool, source, tmp_path):
    def run(*options, source=source, out='fashion'):
        code, output = fork_tool(TOOL, '--source', source, '--out', tmp_path / out, *options, cwd=tmp_path)
        return code, output, tmp_path / out

    return run


@pytest.fixture
def module(repository):
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location('fashion_mnist', repository / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


def test_trees_hold_every_picture_once_and_unchanged(convert, arrays):
    code, output, out = convert('--unpublished')
    assert code == 0, output
    assert 'classification/train 100, classification/val 20, classification/test 30, pretrain/tiles32 100' in output
    seen = {'train': Counter(), 't10k': Counter()}
    for split, part in (('train', 'train'), ('val', 'train'), ('test', 't10k')):
        folders = sorted(path.name for path in (out / 'classification' / split).iterdir())
        assert len(folders) == 10 and folders[0] == '0_t-shirt' and folders[9] == '9_ankle-boot'
        for label, name in enumerate(folders):
            files = sorted((out / 'classification' / split / name).iterdir())
            assert len(files) == dict(train=10, val=2, test=3)[split]
            for path in files:
                index, image = int(path.stem), Image.open(path)
                pixels = np.asarray(image)
                seen[part][index] += 1
                assert image.mode == 'L' and arrays[f'{part}-labels-idx1-ubyte'][index] == label
                np.testing.assert_array_equal(pixels[2:-2, 2:-2], arrays[f'{part}-images-idx3-ubyte'][index])
                assert pixels.shape == (32, 32) and pixels.sum() == pixels[2:-2, 2:-2].sum()  # black around
    assert seen == {'train': Counter(range(120)), 't10k': Counter(range(30))}
    labelled = {path.name: path.read_bytes() for path in (out / 'classification/train').rglob('*.png')}
    assert {path.name: path.read_bytes() for path in (out / 'pretrain/tiles32').iterdir()} == labelled


def test_torchvisions_folder_and_compressed_files_give_the_same(convert, source, tmp_path):
    expected = contents(convert('--unpublished')[2])
    raw = tmp_path / 'root/FashionMNIST/raw'
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / f'{name}.gz').write_bytes(gzip.compress((source / name).read_bytes()))
    for number, folder in enumerate((raw, raw.parent, tmp_path / 'root')):
        code, output, out = convert('--unpublished', source=folder, out=f'again{number}')
        assert code == 0 and contents(out) == expected, output
    # Where both are there, the uncompressed one counts; a compressed file is known by its content.
    shutil.copy(raw / f'{NAMES[0]}.gz', raw / NAMES[0])
    assert convert('--unpublished', source=raw, out='both')[0] == 0


def test_the_files_are_looked_for_where_they_are_installed(module, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = Path('data/FashionMNIST/raw')
    shutil.copytree(source, raw)
    assert module.PLACES == (str(DEBIAN), str(raw))
    monkeypatch.setattr(module, 'PLACES', (str(tmp_path / 'not_installed'), str(raw)))
    assert module.find_source(None) == {name: raw / name for name in NAMES}


def test_an_interrupted_conversion_goes_on_and_a_complete_one_is_left_alone(convert, fork_tool, source, tmp_path):
    _, _, out = convert('--unpublished')
    whole = contents(out)
    kept = (out / 'classification/train').stat().st_ino
    shutil.rmtree(out / 'classification/val')
    shutil.rmtree(out / 'pretrain')
    (out / 'classification/val.unfinished/0_t-shirt').mkdir(parents=True)
    (out / 'classification/val.unfinished/0_t-shirt/99999.png').write_bytes(b'half a pict')
    code, output, _ = convert('--unpublished')
    assert code == 0 and contents(out) == whole, output
    assert (out / 'classification/train').stat().st_ino == kept and str(out / 'classification/train:') not in output
    shutil.rmtree(source)  # what is complete needs no source
    code, output = fork_tool(TOOL, '--out', out, cwd=tmp_path)
    assert code == 0 and 'nothing to do' in output and contents(out) == whole


def cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def rewrite(make):
    """Write a file anew from the array that it holds."""

    def change(path):
        dimensions = 3 if 'images' in path.name else 1
        content, start = path.read_bytes(), 4 + 4 * dimensions
        shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], 'big') for i in range(dimensions)]
        path.write_bytes(idx(np.ascontiguousarray(make(np.frombuffer(content[start:], np.uint8).reshape(shape)))))

    return change


def compress_and_cut(path):
    content = gzip.compress(path.read_bytes())
    path.with_name(f'{path.name}.gz').write_bytes(content[: len(content) // 2])
    path.unlink()


def exchange(other):
    def change(path):
        content = path.read_bytes()
        path.write_bytes(path.with_name(other).read_bytes())
        path.with_name(other).write_bytes(content)

    return change


@pytest.mark.parametrize(
    'name, change, said',
    [
        (NAMES[0], Path.unlink, 'but no train-images-idx3-ubyte'),
        (NAMES[0], cut(5000), 'is cut off: it has 5,000 bytes'),
        (NAMES[3], cut(6), 'is cut off'),
        (NAMES[1], cut(0), 'no IDX file'),
        (NAMES[2], lambda path: path.write_bytes(path.read_bytes() + b'x'), 'is too long'),
        (NAMES[2], compress_and_cut, 'damaged or cut off'),
        (NAMES[1], lambda path: path.write_text('<html>404</html>'), 'no IDX file'),
        (NAMES[0], lambda path: path.write_bytes(b'\0\0\x0d' + path.read_bytes()[3:]), 'no IDX file of bytes'),
        (NAMES[0], exchange(NAMES[1]), 'holds labels where pictures belong'),
        (NAMES[1], exchange(NAMES[3]), 'pictures, but'),
        (NAMES[2], rewrite(lambda array: array[:, :14]), 'pictures of (14, 28)'),
        (NAMES[3], rewrite(lambda array: array + 1), 'other than 0 to 9'),
        (NAMES[1], rewrite(lambda array: array % 9), 'other than 0 to 9'),
    ],
)
def test_files_that_are_wrong_are_named(convert, source, name, change, said):
    change(source / name)
    code, output, out = convert('--unpublished')
    last = output.splitlines()[-1]
    assert code == 2 and name in last and said in last and 'dataset-fashion-mnist' in last, output
    assert not contents(out)


def test_other_pictures_under_the_same_names_are_refused(convert):
    """Such as MNIST's digits, which only the content tells apart."""
    code, output, out = convert()
    assert code == 2 and 'not the published file' in output and '--unpublished' in output and not contents(out)


def test_absent_files_and_folders_of_others(convert, source, tmp_path):
    (tmp_path / 'empty').mkdir()
    code, output, _ = convert(source=tmp_path / 'empty')
    last = output.splitlines()[-1]
    assert code == 2 and 'dataset-fashion-mnist' in last and 'download=True' in last and '--source' in last

    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/holiday.jpg').write_bytes(b'precious')
    code, output, out = convert('--unpublished', out='photos')
    assert code == 2 and 'holiday.jpg' in output and [path.name for path in out.iterdir()] == ['holiday.jpg']
    code, output, _ = convert('--unpublished', out='photos/holiday.jpg')
    assert code == 2 and 'is a file' in output

    assert convert('--unpublished')[0] == 0
    rewrite(lambda array: 255 - array)(source / NAMES[0])
    code, output, out = convert('--unpublished')
    assert code == 2 and 'made from other files' in output
    (out / 'fashion_mnist.json').write_text('{"vers')
    code, output, _ = convert('--unpublished')
    assert code == 2 and 'fashion_mnist.json is damaged' in output


def test_the_split_is_part_of_every_published_figure(module):
    """val is drawn by a generator of its own; numpy keeps the streams of its generators' permutations."""
    labels = {'train': np.tile(np.arange(10, dtype=np.uint8), 600), 'test': np.zeros(7, np.uint8)}
    train, val = module.members('train', labels), module.members('val', labels)
    assert len(val) == 1000 and not set(train) & set(val) and set(train) | set(val) == set(range(6000))
    assert (np.bincount(labels['train'][val]) == 100).all()
    assert val[:6].tolist() == [1, 9, 11, 21, 35, 37]
    assert module.members('test', labels).tolist() == list(range(7))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason='the Debian package dataset-fashion-mnist is not installed')
def test_the_published_files(module, tmp_path):
    from mmcae.utils.errors import DataError

    found = module.find_source(None)
    pictures, labels, _ = module.read_source(found, unpublished=False)
    assert {split: len(own) for split, own in pictures.items()} == {'train': 60_000, 'test': 10_000}
    assert (np.bincount(labels['train']) == 6000).all() and (np.bincount(labels['test']) == 1000).all()
    assert len(module.members('train', labels)) == 50_000
    for kind in ('images-idx3', 'labels-idx1'):
        one, two = f'train-{kind}-ubyte', f't10k-{kind}-ubyte'
        found[one], found[two] = found[two], found[one]
    with pytest.raises(DataError, match='training and test set exchanged'):
        module.read_source(found, unpublished=False)
