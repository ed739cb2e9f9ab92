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
        ('path,label\n' + rows('ab' * 6) + '\n./3.png,a', r'lines 5 and 14, name the same image, .*3\.png'),
        ('path,label\n' + rows('ab' * 6) + '\n,a', "line 14: the column 'path' is empty"),
        ('path,age,age\n' + rows(['1,2', '3,4']), "two columns called 'age'"),
        ('path,split,furry,wild\n' + rows(['train,1,0', 'val,1,1', 'test,1,0'] * 4), "no image of train has the tag 'wild'"),
        ('path,split,furry,wild\n' + rows(['train,1,1', 'val,1,1', 'test,0,0'] * 4), 'no image of test has any tag'),
        ('path,split,age\n' + rows(['train,1', 'val,2', 'test,3', 'train,4'] * 3), "'age' is 2 for all images of val"),
        ('path;label\n' + rows('ab' * 6), 'no column "path"'),
        ('path,label\n', 'no column "path"'),
        ('path,labels\n' + rows(['cat|dog', 'cat'] * 6), "'cat|dog' in the column 'labels' is no number"),
    ],
)
def test_refused_tables(files, text, told):
    with pytest.raises(DataError, match=told):
        read_labelled(table(files, text))


def test_tags_that_are_not_judged_are_told(files, monkeypatch):
    told = []
    monkeypatch.setattr('mmcae.datasets.sources.labelled_images.print_log', lambda text, *_: told.append(text))
    read_labelled(table(files, 'path,split,furry,wild\n' + rows(['train,1,1', 'val,1,1', 'test,1,0'] * 4)))
    assert told == ["table: no image of test has 'wild': left out of its mean"]


@pytest.fixture
def maps(tmp_path):
    """Three images of 8x6 pixels for each split, and label maps of two classes."""
    for split in ('train', 'val', 'test'):
        for number in range(3):
            for folder, image in (('images', Image.new('RGB', (8, 6))), ('masks', Image.fromarray(np.eye(6, 8, dtype=np.uint8)))):
                path = tmp_path / folder / split / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return tmp_path


def test_label_maps_that_do_not_fit(maps, monkeypatch):
    label_map = maps / 'masks/val/1.png'

    def read(pixels):
        Image.fromarray(pixels).save(label_map)
        images = read_labelled(maps)
        return [images.label_maps.read(row) for row in range(len(images.paths))]

    assert len(read(np.eye(6, 8, dtype=np.uint8))) == 9
    for shape, found in (((8, 6), '6x8'), ((3, 4), '4x3')):
        with pytest.raises(DataError, match=rf'val/1\.png is {found} pixels .*images/val/1\.png is 8x6'):
            read(np.zeros(shape, np.uint8))
    (maps / 'classes.txt').write_text('sky\nsea\n')
    with pytest.raises(DataError, match=r'val/1\.png has the number 2; .*classes\.txt names the classes 0 to 1'):
        read(np.full((6, 8), 2, np.uint8))
    (maps / 'classes.txt').write_text('sky\n')
    with pytest.raises(DataError, match=r'one class at most \(sky\)'):
        read(np.zeros((6, 8), np.uint8))
    (maps / 'classes.txt').unlink()
    told = []
    monkeypatch.setattr('mmcae.datasets.sources.labelled_readers.print_log', lambda text, *_: told.append(text))
    (maps / 'images/test/2.png').unlink()
    read(np.zeros((6, 8), np.uint8))
    assert '1 label maps of which' in told[0] and told[1].endswith('labels: label_maps (0, 1)')


def test_split_by(files, image_folder):
    root = image_folder('tree', ('a', 'b'), 12)
    images = read_labelled(root, split_by=r'(\d+)\.')
    assert all(len(set(images.splits[images.groups == group])) == 1 for group in images.groups)
    with pytest.raises(DataError, match=r"--split-by 'slide\(.*finds no id in 24 of 24 paths"):
        read_labelled(root, split_by=r'slide(\d)')


def test_refused_folders(image_folder, tmp_path):
    with pytest.raises(DataError, match='s3://bucket/images is in a store; .* copy them there'):
        read_labelled('s3://bucket/images')
    with pytest.raises(DataError, match='nothing does not exist'):
        read_labelled(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='There is no image in'):
        read_labelled(tmp_path / 'empty')
    with pytest.raises(DataError, match='is not in the folder of a class'):
        read_labelled(image_folder('flat', (), 4))
    with pytest.raises(DataError, match='must be folders'):
        read_labelled(tmp_path / 'empty', tmp_path / 'none')
