"""Folders of torch.distributed.checkpoint: read as torch reads them, without unpickling, and refused where something is wrong with them."""

import io
import os
import pickle
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from mmcae.apis import load_encoder
from mmcae.checkpoints import metadata_of, read_checkpoint
from mmcae.checkpoints.pieces import publish, write_piece
from mmcae.checkpoints.reading import read_sharded
from mmcae.checkpoints.sharded import tiled
from mmcae.utils.errors import CheckpointError

TENSORS = {
    'state_dict.weight': torch.arange(12.0).reshape(4, 3),
    'state_dict.count': torch.tensor(7),
    'state_dict.half': torch.ones(5, dtype=torch.bfloat16),
    'optimizer.weight.exp_avg': torch.full((4, 3), 2.0),
}


def save(folder, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that there are no other processes
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / 'sharded', TENSORS)
    return tmp_path / 'sharded'


def change_metadata(folder, change):
    """Write `.metadata` anew after a change of torch's object."""
    metadata = pickle.loads((folder / '.metadata').read_bytes())
    change(metadata)
    (folder / '.metadata').write_bytes(pickle.dumps(metadata))


def test_the_model_is_read_like_a_file(folder):
    write_piece(dict(meta=dict(iter=3), optimizer=dict(state={})), folder / 'training.pth')
    content = read_checkpoint(folder)
    assert content['meta'] == dict(iter=3) and 'optimizer' not in content
    state = {f'state_dict.{name}': value for name, value in content['state_dict'].items()}
    assert state.keys() == {name for name in TENSORS if name.startswith('state_dict.')}
    assert all(torch.equal(value, TENSORS[name]) and value.dtype == TENSORS[name].dtype for name, value in state.items())
    assert torch.equal(read_sharded(folder).whole('optimizer.weight.exp_avg'), TENSORS['optimizer.weight.exp_avg'])


def test_parts_are_put_together(folder):
    """As of two processes: the second half of the rows is in another file."""
    save(folder.with_name('other'), {'rest': TENSORS['state_dict.weight'][2:].clone()})
    os.rename(folder.with_name('other') / '__0_0.distcp', folder / '__1_0.distcp')
    save(folder.with_name('first'), {**TENSORS, 'state_dict.weight': TENSORS['state_dict.weight'][:2].clone()})
    os.replace(folder.with_name('first') / '__0_0.distcp', folder / '__0_0.distcp')
    os.replace(folder.with_name('first') / '.metadata', folder / '.metadata')
    other = pickle.loads((folder.with_name('other') / '.metadata').read_bytes())

    def join(metadata):
        entry = metadata.state_dict_metadata['state_dict.weight']
        entry.size = torch.Size((4, 3))
        entry.chunks.append(ChunkStorageMetadata(torch.Size((2, 0)), torch.Size((2, 3))))
        (place,) = other.storage_data.values()
        place.relative_path = '__1_0.distcp'
        metadata.storage_data[MetadataIndex('state_dict.weight', (2, 0))] = place

    change_metadata(folder, join)
    assert torch.equal(read_sharded(folder).whole('state_dict.weight'), TENSORS['state_dict.weight'])


def test_a_folder_of_another_program_is_an_encoder(tiny_cae, tmp_path):
    model = tiny_cae()
    save(tmp_path / 'foreign', {f'net.{name}': value for name, value in model.state_dict().items()})
    assert read_checkpoint(tmp_path / 'foreign')['state_dict'].keys() == {f'net.{name}' for name in model.state_dict()}
    save(tmp_path / 'partial', {f'state_dict.{name}': value for name, value in model.state_dict().items()})
    write_piece(dict(meta=metadata_of(model)), tmp_path / 'partial' / 'training.pth')
    publish(tmp_path / 'partial', tmp_path / 'epoch_1.pth')
    encoder = load_encoder(tmp_path / 'epoch_1.pth')
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, model.backbone.blocks[0].attn.qkv.weight)


class Attack:
    def __reduce__(self):
        return os.mkdir, (Attack.path,)


@pytest.mark.parametrize('place', ['metadata', 'planner', 'tensor'])
def test_no_code_is_run(folder, tmp_path, place):
    Attack.path = str(tmp_path / 'attacked')
    if place == 'metadata':
        (folder / '.metadata').write_bytes(pickle.dumps(Attack()))
    elif place == 'planner':
        change_metadata(folder, lambda metadata: setattr(metadata, 'planner_data', {'x': Attack()}))
    else:
        buffer = io.BytesIO()
        torch.save(Attack(), buffer)
        (folder / '__0_0.distcp').write_bytes(buffer.getvalue())

        def point(metadata):
            for stored in metadata.storage_data.values():
                stored.offset, stored.length = 0, len(buffer.getvalue())

        change_metadata(folder, point)
    with pytest.raises(CheckpointError, match='mkdir'):
        read_checkpoint(folder)
    assert not (tmp_path / 'attacked').exists()


def set_place(**values):
    return lambda metadata: [setattr(place, name, value) for place in metadata.storage_data.values() for name, value in values.items()]


def set_entry(**values):
    return lambda metadata: [setattr(metadata.state_dict_metadata['state_dict.weight'], name, value) for name, value in values.items()]


@pytest.mark.parametrize(
    'change',
    [
        set_place(relative_path='../secret'),
        set_place(relative_path='/etc/passwd'),
        set_place(offset=10**12),
        set_place(length=-1),
        set_place(length='many'),
        set_entry(size=torch.Size((2**40, 3))),
        set_entry(chunks=[]),
        set_entry(chunks=None),
        set_entry(chunks=[ChunkStorageMetadata(torch.Size((1, 0)), torch.Size((4, 3)))]),
        lambda metadata: metadata.storage_data.clear(),
        lambda metadata: setattr(metadata, 'state_dict_metadata', 3),
    ],
)
def test_metadata_that_cannot_be_are_refused(folder, change):
    change_metadata(folder, change)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged'):
        read_checkpoint(folder)


def boxes(*parts):
    return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in parts]


@pytest.mark.parametrize('seed', range(8))
def test_parts_make_up_a_tensor_if_each_value_is_in_one(seed):
    """Random boxes, all of the right volume, against counting how often each value is covered."""
    random = np.random.default_rng(seed)
    found = Counter()
    for _ in range(300):
        size = tuple(random.integers(1, 5, random.integers(0, 4)).tolist())
        parts = [((0,) * len(size), size)]
        for _ in range(random.integers(0, 5) if size else 0):  # cut a part in two
            offsets, sizes = parts.pop(random.integers(len(parts)))
            axis = random.integers(len(size))
            cut = int(random.integers(0, sizes[axis] + 1))
            change = lambda values, value: (*values[:axis], value, *values[axis + 1 :])  # noqa: B023, E731
            parts.append((offsets, change(sizes, cut)))
            parts.append((change(offsets, offsets[axis] + cut), change(sizes, sizes[axis] - cut)))
        if random.integers(2):  # and put one elsewhere
            offsets, sizes = parts.pop()
            parts.append((tuple(int(random.integers(0, n - m + 1)) for n, m in zip(size, sizes, strict=True)), sizes))
        covered = np.zeros(size, int)
        for offsets, sizes in parts:
            covered[tuple(slice(at, at + length) for at, length in zip(offsets, sizes, strict=True))] += 1
        entry = SimpleNamespace(size=torch.Size(size), chunks=boxes(*parts))
        assert tiled(entry) == bool((covered == 1).all()), (size, parts)
        found[tiled(entry)] += 1
    assert min(found[True], found[False]) > 5


@pytest.mark.parametrize(
    'parts',
    [
        [((0, 0), (2, 3)), ((0, 0), (2, 3))],  # the first half twice
        [((0, 0), (3, 3)), ((1, 0), (1, 3))],
        [((0, 0), (3, 3))],
        [((0, 0), (4, 3)), ((0, 0), (4, 3))],
        [((0, 0), (4, 2)), ((0, 1), (4, 1))],
    ],
)
def test_parts_that_overlap_or_leave_something_out_are_refused(folder, parts):
    def forge(metadata):
        (place,) = (place for index, place in metadata.storage_data.items() if index.fqn == 'state_dict.weight')
        metadata.state_dict_metadata['state_dict.weight'].chunks = boxes(*parts)
        for offsets, _ in parts:
            metadata.storage_data[MetadataIndex('state_dict.weight', torch.Size(offsets))] = place

    change_metadata(folder, forge)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged .*parts of state_dict.weight do not make it up') as error:
        read_checkpoint(folder)
    assert '\n' not in str(error.value)


def test_a_part_in_two_places_is_refused(folder):
    def forge(metadata):
        metadata.storage_data[MetadataIndex('state_dict.count', None)] = next(iter(metadata.storage_data.values()))

    change_metadata(folder, forge)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged .*a part is in two places'):
        read_checkpoint(folder)


def test_damaged_files_are_named(folder):
    path = folder / '__0_0.distcp'
    content = bytearray(path.read_bytes())
    place = content.index(TENSORS['state_dict.weight'].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='__0_0.distcp is damaged'):
        read_sharded(folder).check()
    os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r'\.metadata is damaged .*lies outside'):
        read_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match='__0_0.distcp'):
        read_checkpoint(folder)


def test_every_cut_and_flipped_byte_of_the_metadata_is_an_error_or_harmless(folder):
    content = (folder / '.metadata').read_bytes()
    for place in range(0, len(content), 31):
        for changed in (content[:place], content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :]):
            (folder / '.metadata').write_bytes(changed)
            try:
                read_checkpoint(folder)
            except CheckpointError:
                pass
