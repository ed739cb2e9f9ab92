"""Labelled images from class trees, label maps and tables: what is read, how splits are made, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mmcae.datasets.sources.labelled_readers import read_labelled
from mmcae.utils.errors import DataError


def table(folder, text):
    path = folder / 'table.csv'
    path.write_text(text)
    return path


@pytest.fixture
def files(tmp_path):
    """Twelve images 0.png to 11.png."""
    for number in range(12):
        Image.new('RGB', (8, 8)).save(tmp_path / f'{number}.png')
    return tmp_path


def test_class_tree_without_splits_is_divided_in_proportion(image_folder):
    root = image_folder('tree', ('a', 'b'), 10)
    images = read_labelled(root)
    names, labels = images.classes
    assert names == ['a', 'b'] and len(images.paths) == 20
    assert {split: np.bincount(labels[images.index(split)]).tolist() for split in ('train', 'val', 'test')} == {
        'train': [6, 6],
        'val': [2, 2],
        'test': [2, 2],
    }
    again, other = read_labelled(root), read_labelled(root, seed=1)
    assert (again.splits == images.splits).all() and (other.splits != images.splits).any()
    assert images.fingerprint() == again.fingerprint() and images.labels_fingerprint() != other.labels_fingerprint()


def test_val_alone_is_what_is_reported(image_folder, tmp_path):
    for split in ('train', 'validation'):
        image_folder(f'tree/{split}', ('a', 'b'), 10)
    images = read_labelled(tmp_path / 'tree')
    assert {'validation' in path for path in np.array(images.paths)[images.index('test')]} == {True}
    assert len(images.index('val')) == 4 and len(images.index('train')) == 16


def test_label_maps_in_a_folder_of_their_own(files, tmp_path):
    for split in ('train', 'test'):
        for folder in ('pictures', 'truth'):
            (tmp_path / folder / split).mkdir(parents=True)
        for number in range(5):
            Image.new('RGB', (8, 8)).save(tmp_path / 'pictures' / split / f'{number}.jpg')
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / 'truth' / split / f'{number}.png')
    images = read_labelled(tmp_path / 'pictures', tmp_path / 'truth')
    assert images.label_maps.names == ['0', '1', '2', '3', '4']
    for row, path in enumerate(images.paths):
        assert (images.label_maps.read(row) == int(path[-5])).all()
    (tmp_path / 'classes.txt').write_text('sky\nsea\nsand\nship\nsun\n')
    assert read_labelled(tmp_path / 'pictures', tmp_path / 'truth').label_maps.names[-1] == 'sun'
    (tmp_path / 'truth/test/3.png').unlink()
    with pytest.raises(DataError, match=r'test/3\.jpg has no label map.*1 of 10'):
        read_labelled(tmp_path / 'pictures', tmp_path / 'truth')


def test_table_of_everything(files):
    lines = [f'{n}.png,{("train", "val", "test")[n % 3]},p{n % 3},c{n // 3 % 2},{n % 2},{n / 7}' for n in range(12)]
    images = read_labelled(table(files, 'path,split,group,label,furry,weight\n' + '\n'.join(lines)))
    assert images.kinds == ['classes', 'tags', 'numbers']
    assert images.tags[0] == ['furry'] and images.tags[1][:, 0].tolist() == [n % 2 == 1 for n in range(12)]
    assert images.numbers[0] == ['weight'] and np.allclose(images.numbers[1][:, 0], np.arange(12) / 7)
    assert images.splits.tolist() == ['train', 'val', 'test'] * 4


def rows(cells):
    return '\n'.join(f'{number}.png,{cell}' for number, cell in enumerate(cells))


@pytest.mark.parametrize(
    'text, told',
    [
        ('file,label\n0.png,a', 'no column "path"'),
        ('path,label\n0.png,a,b', 'line 2, has more cells'),
        ('path,split,label\n' + rows(['train,a', 'dev,b']), "line 3: 'dev' is no split"),
        ('path,label\n' + rows(['a', '']), "line 3: the column 'label' is empty"),
        ('path,age\n' + rows(['1', 'old']), "line 3: 'old' in the column 'age' is no number"),
        ('path,age\n' + rows(['1', 'nan']), 'is no number'),
        ('path,label\n' + rows('aaaaaabbbbbc'), "class 'c' has one image"),
        ('path,label\n' + rows('aaaaaaaaaaaa'), "one class, 'a'"),
        ('path,group,label\n' + rows(['p1,a', 'p1,b'] * 6), 'all 12 images of "train" belong to one group, p1'),
        (
            'path,split,group,label\n' + rows(['train,p1,a', 'test,p1,a', 'val,p2,b', 'train,p3,b'] * 3),
            'group p1 has images in train and in',
        ),
        ('path,split,group,age\n' + rows(['test,p1,1', 'val,p2,2'] * 6), 'no split "train"'),
        ('path,split\n' + rows(['train', 'test'] * 6), 'no labels'),
    ],
)
def test_refused_tables(files, text, told):
    with pytest.raises(DataError, match=told):
        read_labelled(table(files, text))


def test_split_by(files, image_folder):
    root = image_folder('tree', ('a', 'b'), 12)
    images = read_labelled(root, split_by=r'(\d+)\.')
    assert all(len(set(images.splits[images.groups == group])) == 1 for group in images.groups)
    with pytest.raises(DataError, match=r"--split-by 'slide\(.*finds no id in 24 of 24 paths"):
        read_labelled(root, split_by=r'slide(\d)')


def test_refused_folders(image_folder, tmp_path):
    with pytest.raises(DataError, match='nothing does not exist'):
        read_labelled(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='There is no image in'):
        read_labelled(tmp_path / 'empty')
    with pytest.raises(DataError, match='is not in the folder of a class'):
        read_labelled(image_folder('flat', (), 4))
    with pytest.raises(DataError, match='must be folders'):
        read_labelled(tmp_path / 'empty', tmp_path / 'none')
