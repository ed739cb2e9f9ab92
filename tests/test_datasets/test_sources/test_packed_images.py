"""Packed images: the same samples as from the folder, in random access, from any process; damage is named; webdataset reads them too."""

import errno
import json
import os
import pickle
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmcae.datasets import ImageFolder, PackedImages, transforms
from mmcae.datasets.sources import packing, shards
from mmcae.utils.errors import ConfigError, DataError, StorageError

PIPELINE = [dict(type='mmcae.LoadImage'), dict(type='PackInputs')]


def pack(source, folder, shard_bytes=20_000, workers=0, **options):
    found = ImageFolder(str(source))
    paths = [os.path.relpath(found.get_data_info(i)['img_path'], source) for i in range(len(found))]
    return packing.pack(packing.SourceFiles(source, paths, **options), folder, {}, shard_bytes, workers, max_bad_files=0.5)


@pytest.fixture
def source(image_folder):
    init_default_scope('mmpretrain')
    return image_folder(classes=('cat', 'dog', 'emu/young'), count=8, size=(40, 30))


@pytest.fixture
def packed(source, tmp_path):
    manifest = pack(source, tmp_path / 'packed')
    assert manifest.complete and manifest.images == 24 and len(manifest.shards) > 2
    return tmp_path / 'packed'


def damage(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 255
    file.write_bytes(data)


def test_samples_are_those_of_the_folder(source, packed):
    folder, dataset = ImageFolder(str(source), pipeline=PIPELINE), PackedImages(str(packed), pipeline=PIPELINE)
    assert len(dataset) == len(folder) == 24
    for i in (*range(24), -1):
        ours, theirs = dataset[i], folder[i]
        assert torch.equal(ours['inputs'], theirs['inputs'])
        assert ours['data_samples'].sample_idx == theirs['data_samples'].sample_idx
        shard, path = ours['data_samples'].img_path.split('.tar/')
        assert path == os.path.relpath(theirs['data_samples'].img_path, source)
        assert Path(f'{shard}.tar').is_file()


@pytest.mark.parametrize('workers', [0, 2])
def test_loader_sees_every_image_once_in_the_samplers_order(source, packed, workers):
    def batches(dataset):
        loader = dict(
            batch_size=5,
            num_workers=workers,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=dataset,
        )
        return list(Runner.build_dataloader(loader, seed=3))

    ours = batches(dict(type='mmcae.PackedImages', data_root=str(packed.parent), data_prefix='packed', ann_file='', pipeline=PIPELINE))
    theirs = batches(dict(type='mmcae.ImageFolder', data_root=str(source), pipeline=PIPELINE))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a['inputs'], b['inputs'])
    assert sorted(sample.sample_idx for batch in ours for sample in batch['data_samples']) == list(range(24))


def test_subsets_are_mmengines(packed):
    dataset = PackedImages(str(packed), pipeline=PIPELINE, indices=[3, 20])
    whole = PackedImages(str(packed), pipeline=PIPELINE)
    assert len(dataset) == 2 and torch.equal(dataset[1]['inputs'], whole[20]['inputs'])
    assert len(whole.get_subset(5)) == 5


def test_bytes_are_kept_as_they_were(source, packed):
    reader = shards.ShardReader(packed)
    for i in range(len(reader)):
        assert reader.read(i) == (source / reader.path(i)).read_bytes()


def test_more_shards_than_files_may_be_open_and_a_copy_for_another_process(source, packed, monkeypatch):
    monkeypatch.setattr(shards.ShardReader, 'MAX_OPEN', 2)
    reader = shards.ShardReader(packed)
    expected = [reader.read(i) for i in range(24)]
    other = pickle.loads(pickle.dumps(reader))
    assert len(reader.files) == 2 and not other.files
    assert [other.read(i) for i in reversed(range(24))] == expected[::-1]


def test_result_depends_on_the_images_alone(source, packed, tmp_path):
    pack(source, tmp_path / 'again', workers=2)
    for file in packed.glob('shard-*.tar'):
        assert file.read_bytes() == (tmp_path / 'again' / file.name).read_bytes()


def test_webdataset_reads_the_shards(source, packed):
    import webdataset

    files = [str(file) for file in sorted(packed.glob('*.tar'))]
    seen = {}
    for sample in webdataset.WebDataset(files, shardshuffle=False).decode('rgb8'):
        path = sample['json']['path']
        seen[path] = sample[Path(path).suffix[1:]]
    assert len(seen) == 24
    for path, pixels in seen.items():
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(source / path).convert('RGB')))


def test_names_that_are_no_utf8_or_have_dots_and_line_breaks(tmp_path):
    folder = tmp_path / 'odd'
    folder.mkdir()
    names = [b'a.svs_1.2.png', b'a.svs_1.3.png', b'\xff\xfe.png', 'ümläut 图.png'.encode(), b'two\nlines.png']
    for i, name in enumerate(names):
        Image.new('RGB', (4, 4), (i, 0, 0)).save(os.fsencode(folder) + b'/' + name)
    pack(folder, tmp_path / 'packed')
    reader = shards.ShardReader(tmp_path / 'packed')
    assert {os.fsencode(reader.path(i)) for i in range(len(reader))} == set(names)
    with tarfile.open(tmp_path / 'packed/shard-000000.tar') as tar:
        assert [name.split('.', 1)[1] for name in tar.getnames()] == ['png', 'json'] * 5


def test_damaged_bytes_are_replaced_and_reported_by_the_shards_name(packed):
    dataset = PackedImages(str(packed), pipeline=PIPELINE)
    dataset.full_init()
    damage(packed / 'shard-000001.tar', dataset.reader.index.offset[dataset.reader.first[1]] + 5)
    sample = dataset[int(dataset.reader.first[1])]['data_samples']
    ((path, reason),) = sample.bad_files
    assert 'shard-000001.tar' in path and 'damaged' in reason and '--verify' in reason
    count, problems = packing.verify(packed, lambda text: None)
    assert count == 24 and len(problems) == 1 and 'shard-000001.tar is damaged' in problems[0]


def test_every_kind_of_damage_is_found_by_reading_a_shard_again(packed):
    original = {file: file.read_bytes() for file in packed.iterdir() if file.is_file()}
    shard = packed / 'shard-000000.tar'
    for position in (0, 100, 600, len(original[shard]) - 20_000, 512 * (len(original[shard]) // 1024)):
        damage(shard, position)
        changed = shard.read_bytes() != original[shard]
        _, problems = packing.verify(packed, lambda text: None)
        assert changed and (len(problems) == 1 or in_padding(original[shard], position)), position
        shard.write_bytes(original[shard])
    assert packing.verify(packed, lambda text: None) == (24, [])


def in_padding(data, position):
    """Whether a byte belongs to no member of a tar file."""
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        return not any(m.offset <= position < m.offset_data + m.size for m in tar)


def flaky(monkeypatch, owner, name, fails, times, error):
    """Have a function fail so many times for each of what `fails` picks out of its first argument."""
    real, tries = getattr(owner, name), {}

    def call(first, *args, **kwargs):
        if fails(first) and tries.setdefault(str(first), 0) < times:
            tries[str(first)] += 1
            raise error
        return real(first, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return tries


ERRORS = [
    OSError(errno.ESTALE, 'Stale file handle'),
    OSError(errno.EIO, 'Input/output error'),
    OSError(errno.EMFILE, 'Too many'),
    MemoryError(),
]


@pytest.mark.parametrize('error', ERRORS, ids=repr)
def test_a_storage_that_fails_for_a_moment_changes_nothing(source, packed, tmp_path, monkeypatch, error):
    tries = flaky(monkeypatch, Path, 'read_bytes', lambda path: path.name in ('003.png', '004.jpg'), 2, error)
    manifest = pack(source, tmp_path / 'again')
    assert len(tries) == 6 and manifest.images == 24 and not manifest.left_out
    for file in packed.glob('shard-*.tar'):
        assert file.read_bytes() == (tmp_path / 'again' / file.name).read_bytes()


@pytest.mark.parametrize('error', ERRORS, ids=repr)
def test_a_storage_that_stays_away_stops_and_the_next_run_fetches_what_is_missing(source, packed, tmp_path, monkeypatch, error):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    with monkeypatch.context() as patch:
        flaky(patch, Path, 'read_bytes', lambda path: path.match('dog/003.png'), 10**9, error)
        for _ in range(2):
            with pytest.raises(StorageError, match='dog/003.png cannot be read: .*the same command goes on from here'):
                pack(source, tmp_path / 'again')
    manifest = json.loads((tmp_path / 'again/pack.json').read_text())
    assert not manifest['complete'] and not manifest['left_out'] and manifest['consumed'] <= 11
    assert not list((tmp_path / 'again').glob('*.partial'))
    assert pack(source, tmp_path / 'again').complete
    for file in packed.iterdir():
        assert file.name == '.lock' or file.suffix == '.npz' or file.read_bytes() == (tmp_path / 'again' / file.name).read_bytes()


def test_too_little_memory_to_decode_is_no_bad_file(source, tmp_path, monkeypatch):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    flaky(monkeypatch, packing, 'read_image', lambda path: path == 'dog/003.png', 1, MemoryError())
    with pytest.raises(MemoryError):  # what comes from elsewhere is not hidden
        pack(source, tmp_path / 'again')
    flaky(monkeypatch, transforms.image_file, 'to_rgb', lambda image: image.format == 'PNG', 10**9, MemoryError())
    with pytest.raises(StorageError, match='png cannot be read: not enough memory'):
        pack(source, tmp_path / 'again')


def test_files_that_are_gone_and_file_systems_that_are_gone(source, tmp_path, monkeypatch):
    """The first are left out and counted; the second stop the packing."""
    (source / 'cat/broken link.png').symlink_to('nowhere')
    manifest = pack(source, tmp_path / 'packed')
    assert manifest.left_out == dict(unreadable=1) and manifest.images == 24
    files = packing.SourceFiles(source, ['cat/000.jpg', 'cat/gone.png', 'emu/young/000.jpg', 'dog/000.jpg'])
    manifest = packing.pack(files, tmp_path / 'listed', {}, 10**6, 0, 0.5)
    assert manifest.left_out == dict(unreadable=1) and 'No such file' in (tmp_path / 'listed/left_out.tsv').read_text()
    for file in (source / 'emu/young').iterdir():  # as of a disk that is not mounted any more
        file.unlink()
    with pytest.raises(StorageError, match='young/000.jpg does not exist, and the folder above is empty: is its file system mounted'):
        packing.pack(files, tmp_path / 'other', {}, 10**6, 0, 0.5)


def test_shards_on_a_server_that_fails(packed, monkeypatch):
    """What was opened before is opened again; what lasts is no damage of the shard, neither for reading nor for --verify."""
    dataset = PackedImages(str(packed), pipeline=PIPELINE)
    expected = [dataset[i]['inputs'] for i in range(24)]
    descriptors = dict(dataset.reader.files)
    stale = OSError(errno.ESTALE, 'Stale file handle')
    with monkeypatch.context() as patch:
        flaky(patch, os, 'pread', lambda descriptor: True, 1, stale)
        assert all(torch.equal(dataset[i]['inputs'], expected[i]) for i in range(24)) and descriptors
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    with monkeypatch.context() as patch:
        flaky(patch, os, 'pread', lambda descriptor: True, 10**9, stale)
        with pytest.raises(StorageError, match=r'shard-000000.tar/cat/000.jpg cannot be read: Stale file handle'):
            dataset[0]
    with monkeypatch.context() as patch:
        flaky(patch, tarfile, 'open', lambda file: True, 10**9, stale)
        with pytest.raises(StorageError, match='shard-000000.tar cannot be read: Stale'):
            packing.verify(packed, lambda text: None)
    for name in ('pack.json', 'shard-000001.npz'):
        with monkeypatch.context() as patch:
            flaky(patch, Path, 'read_bytes', lambda path, name=name: path.name == name, 10**9, stale)
            with pytest.raises(StorageError, match=f'{name} cannot be read: Stale'):
                PackedImages(str(packed))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda f: (f / 'shard-000001.tar').unlink(), 'shard-000001.tar is missing'),
        (lambda f: (f / 'shard-000001.tar').write_bytes(b'x' * 99), 'has 99 bytes, but'),
        (lambda f: (f / 'shard-000001.npz').unlink(), 'shard-000001.npz cannot be read'),
        (lambda f: (f / 'shard-000001.npz').write_bytes(b'x' * 99), 'shard-000001.npz cannot be read'),
        (lambda f: (f / 'shard-000000.npz').replace(f / 'shard-000001.npz'), 'shard-000000.npz cannot be read'),
        (lambda f: (f / 'pack.json').unlink(), 'holds no packed images'),
        (lambda f: (f / 'pack.json').write_text('{"version": 1, "shards"'), 'pack.json is damaged'),
        (lambda f: (f / 'pack.json').write_text('{"version": 9}'), 'version 9'),
        (lambda f: edit_manifest(f, complete=False), 'not complete.*same command'),
    ],
)
def test_what_is_not_whole_is_refused_and_named(packed, change, message):
    change(packed)
    with pytest.raises(DataError, match=message):
        PackedImages(str(packed))


def edit_manifest(folder, **changes):
    file = folder / 'pack.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_lists_are_refused(packed):
    with pytest.raises(ConfigError, match='pack_images.py --list'):
        PackedImages(str(packed), ann_file='list.txt')


def test_tissue_is_colour_that_is_neither_glass_nor_black():
    rng = np.random.default_rng(0)

    def tile(left, right):
        pixels = np.zeros((300, 400, 3))
        pixels[:, :200], pixels[:, 200:] = left, right
        return (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)

    glass, tissue, black = (243, 242, 241), (200, 140, 180), (2, 2, 2)
    assert packing.tissue_share(tile(glass, glass), 0.06) == 0
    assert packing.tissue_share(tile(tissue, tissue), 0.06) == 1
    assert packing.tissue_share(tile(black, black), 0.06) == 0
    assert packing.tissue_share(tile(tissue, glass), 0.06) == pytest.approx(0.5, abs=0.01)
    assert packing.tissue_share(tile(tissue, tissue), 0.5) == 0
    assert packing.tissue_share(np.full((1, 1, 3), tissue, np.uint8), 0.06) == 1
