"""Missing data: one message that names the path and what to do, for every config of ours and every kind of data set."""

import pytest
from mmengine.config import Config

from mmcae.datasets import check_data
from mmcae.utils.errors import DataError

CONFIGS = ('digits_pretrain', 'digits_pretrain_scenes', 'digits_classification', 'digits_coco', 'digits_segmentation', 'imagenet_cae')


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_names_the_path_and_the_remedy(repository, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(repository / f'configs/_base_/datasets/{name}.py')
    with pytest.raises(DataError) as error:
        check_data(cfg)
    remedy = 'Put ImageNet-1k there' if name.startswith('imagenet') else 'python tools/dataset_converters/make_digit_scenes.py'
    assert str(error.value).startswith('data/') and remedy in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name', CONFIGS[:-1])
def test_complete_data_passes(repository, digit_scenes, monkeypatch, name):
    monkeypatch.chdir(digit_scenes.parents[1])
    check_data(Config.fromfile(repository / f'configs/_base_/datasets/{name}.py'))


def config(tmp_path, split='train', **dataset):
    return dict({f'{split}_dataloader': dict(dataset=dict(type='X', data_root=str(tmp_path), **dataset))})


@pytest.mark.parametrize(
    'dataset, missing',
    [
        (dict(ann_file='a.json'), 'a.json'),
        (dict(data_prefix='images'), 'images'),
        (dict(data_prefix=dict(img='here', seg='labels')), 'labels'),
        (dict(data_prefix=dict(img='here'), ann_file='/nowhere/list.txt'), '/nowhere/list.txt'),
        (dict(dataset=dict(type='Y', data_root='elsewhere')), 'elsewhere'),
        (dict(datasets=[dict(type='Y', data_prefix='here/one'), dict(type='Y', data_prefix='two')]), 'here/one'),
    ],
)
def test_each_part_is_looked_for(tmp_path, dataset, missing):
    (tmp_path / 'here').mkdir()
    with pytest.raises(DataError, match=f'{missing} does not exist, but train_dataloader reads it. Set data_root'):
        check_data(config(tmp_path, **dataset))


@pytest.mark.parametrize('dataset', [dict(data_root=5), dict(ann_file=['a', 'b']), dict(data_prefix=dict(img=3))])
def test_what_is_no_path(tmp_path, dataset):
    with pytest.raises(DataError, match='is set where data_root, data_prefix or ann_file'):
        check_data(dict(train_dataloader=dict(dataset=dict(dict(type='X', data_root=str(tmp_path)), **dataset))))


def test_only_the_dataloaders_in_use_are_checked(tmp_path):
    cfg = config(tmp_path / 'nowhere', split='test')
    check_data(cfg, splits=('train', 'val'))
    with pytest.raises(DataError, match='test_dataloader'):
        check_data(cfg, splits=('test',))


def test_dataloaders_that_are_switched_off_are_fine(tmp_path):
    check_data(Config(dict(train_dataloader=dict(dataset=dict(data_root=str(tmp_path))), val_dataloader=None)))


@pytest.mark.parametrize('name', ['a.yaml', 'a.yml', 'a.pkl', 'a.pickle'])
def test_annotations_that_would_run_code(tmp_path, name):
    mark = tmp_path / 'code-was-run'
    pickled, tagged = b"cposix\nsystem\n(S'touch %s'\ntR." % bytes(mark), b"!!python/object/apply:os.system ['touch %s']" % bytes(mark)
    (tmp_path / name).write_bytes(pickled if name.startswith('a.p') else tagged)
    with pytest.raises(DataError, match=rf'{name}.* refused'):
        check_data(config(tmp_path, ann_file=name))
    assert not mark.exists()
